// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"fmt"

	"github.com/songgao/water"
)

// Device is an open TUN device of the kernel's own driver (utun), with one queue. It goes when it is closed.
type Device struct {
	*Queue
	name string
}

// Open makes a device: utun and a number, or whichever is free if name is empty.
func Open(name string) (*Device, error) {
	dev, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, Driver: water.MacOSDriverSystem},
	})
	if err != nil {
		return nil, fmt.Errorf("creating TUN device %q: %w; run as root, and leave the name empty or give utun and a free number", name, err)
	}
	return &Device{NewQueue(dev), dev.Name()}, nil
}

// Name returns the name of the device.
func (d *Device) Name() string { return d.name }

// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// errorList is what could not be done, as one line.
type errorList struct {
	errs []error
	most int // that are written out
}

func (l *errorList) Error() string {
	var b strings.Builder
	for i, err := range l.errs {
		if i == l.most {
			fmt.Fprintf(&b, "; and %d more", len(l.errs)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

func (l *errorList) Unwrap() []error { return l.errs }

func explainDevice(name, doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s device %s: %w", doing, name, err)
}

// explainMaking says why a VXLAN device cannot be made, and what to do.
func explainMaking(name string, c Config, err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("this kernel has no VXLAN: load the module vxlan, or boot a kernel with CONFIG_VXLAN (%w)", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("device %s cannot be made: CAP_NET_ADMIN is needed (%w)", name, err)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("device %s cannot be made: this host has no IPv6; boot it without ipv6.disable=1 (%w)", name, err)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("device %s cannot be made: another VXLAN device has the VNI %d and UDP port %d; choose another by --vxlan-vni (%w)", name, c.VNI, c.Port, err)
	}
	return explainDevice(name, "making", err)
}

// explainUp says why a VXLAN device cannot be brought up: then it opens its socket.
func explainUp(name string, c Config, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("device %s cannot be brought up: another program or device has UDP port %d; end it, or choose another port by --port (%w)", name, c.Port, err)
	}
	return explainDevice(name, "bringing up", err)
}

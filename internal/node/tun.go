// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/weftnet/weft/router/tun"
)

// TUN says by what means the node has its TUN device.
type TUN string

// The kinds of TUN.
const (
	TUNAuto     TUN = "auto" // native, and portable where the kernel cannot
	TUNNative   TUN = "native"
	TUNPortable TUN = "portable" // without offloads; also on kernels without multi-queue devices
)

// ParseTUN reads one of the three.
func ParseTUN(s string) (TUN, error) {
	switch k := TUN(s); k {
	case TUNAuto, TUNNative, TUNPortable:
		return k, nil
	}
	return "", fmt.Errorf("--tun %q is none of %s, %s, %s", s, TUNAuto, TUNNative, TUNPortable)
}

// openTUN opens a device of that kind by open, which is tun.Open.
func openTUN(open func(tun.Config) (*tun.Device, error), c tun.Config, kind TUN, log *zap.Logger) (*tun.Device, error) {
	c.Portable = kind == TUNPortable
	dev, err := open(c)
	if kind == TUNAuto && errors.Is(err, tun.ErrUnsupported) {
		log.Warn("the TUN device is the portable one, which is slower", zap.Error(err))
		c.Portable = true
		dev, err = open(c)
	}
	if err != nil {
		return nil, err
	}
	if n := len(dev.Queues()); n < c.Queues {
		log.Warn("there are fewer shards than wanted: this kernel allows the TUN device no more queues",
			zap.Int("wanted", c.Queues), zap.Int("shards", n))
	}
	return dev, nil
}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weftnet/weft/router/tun"
)

// The portable device is taken where it is asked for, and by itself only where the kernel has no other.
func TestOpenTUN(t *testing.T) {
	unsupported := &tun.Error{Name: Device, Kind: tun.ErrUnsupported}
	busy := &tun.Error{Name: Device, Kind: tun.ErrBusy}
	for _, c := range []struct {
		kind     TUN
		native   error // of opening a native device
		portable error
		opened   []bool // portable?
		want     error
		logged   int
	}{
		{TUNAuto, nil, nil, []bool{false}, nil, 0},
		{TUNAuto, unsupported, nil, []bool{false, true}, nil, 1},
		{TUNAuto, unsupported, busy, []bool{false, true}, busy, 1},
		{TUNAuto, busy, nil, []bool{false}, busy, 0},
		{TUNNative, nil, nil, []bool{false}, nil, 0},
		{TUNNative, unsupported, nil, []bool{false}, unsupported, 0},
		{TUNPortable, nil, nil, []bool{true}, nil, 0},
		{TUNPortable, nil, busy, []bool{true}, busy, 0},
	} {
		core, log := observer.New(zapcore.DebugLevel)
		var opened []bool
		dev, err := openTUN(func(got tun.Config) (*tun.Device, error) {
			opened = append(opened, got.Portable)
			err := c.native
			if got.Portable {
				err = c.portable
			}
			if err != nil {
				return nil, err
			}
			return new(tun.Device), nil
		}, tun.Config{Name: Device}, c.kind, zap.New(core))
		if !errors.Is(err, c.want) || (dev != nil) != (c.want == nil) || log.Len() != c.logged || len(opened) != len(c.opened) {
			t.Errorf("%+v: %v, %v, opened %v, logged %v", c, dev, err, opened, log.All())
			continue
		}
		for i, portable := range c.opened {
			if opened[i] != portable {
				t.Errorf("%+v: opened %v", c, opened)
			}
		}
	}
}

func TestParseTUN(t *testing.T) {
	for _, k := range []TUN{TUNAuto, TUNNative, TUNPortable} {
		if got, err := ParseTUN(string(k)); got != k || err != nil {
			t.Errorf("%s: %v, %v", k, got, err)
		}
	}
	if _, err := ParseTUN("tap"); err == nil || err.Error() != `--tun "tap" is none of auto, native, portable` {
		t.Errorf("error %v", err)
	}
}

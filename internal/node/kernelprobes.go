// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/fastpath/probe"
)

// proberOf is a probe.Prober as the engine of kernel paths needs it.
type proberOf struct {
	*probe.Prober
	port uint16
	fd   int // any socket: the kernel names devices by it
}

func (linux) probes(c probeConfig, came func(probeSeen), log *zap.Logger) (pathProbes, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket for probes of kernel paths: %w", err)
	}
	p := &proberOf{port: c.port, fd: fd}
	p.Prober = probe.New(probe.Config{
		Node: c.id, Port: c.port, Log: log,
		OnProbe: func(from netip.AddrPort, ifindex int, node uint64, kind fastpath.Kind, echo uint64) {
			if device := p.device(ifindex); device != "" {
				came(probeSeen{from: node, way: kind, echo: echo, source: from.Addr(), device: device})
			}
		},
	})
	if err := p.SetAddrs(c.hosts); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// device names a device; "": it is gone.
func (p *proberOf) device(index int) string {
	r, err := unix.NewIfreq("")
	if err != nil || index <= 0 {
		return ""
	}
	r.SetUint32(uint32(index))
	if unix.IoctlIfreq(p.fd, unix.SIOCGIFNAME, r) != nil {
		return ""
	}
	return r.Name()
}

func (p *proberOf) Run(ctx context.Context) error {
	return errors.Join(p.Prober.Run(ctx), p.close())
}

func (p *proberOf) close() error {
	err := p.Prober.Close()
	if cerr := unix.Close(p.fd); cerr != nil {
		err = errors.Join(err, fmt.Errorf("closing a socket: %w", cerr))
	}
	return err
}

func (p *proberOf) Send(a fastpath.Action) error {
	by, err := p.by(a)
	if err != nil {
		return err
	}
	return p.Prober.Send(a.Way, by, netip.AddrPortFrom(a.To, p.port), a.Size, a.Echo)
}

// by is the device by which a probe is to leave whatever the routes are: that of VXLAN for IPv4 (router/fastpath/kernel). 0: its mark says it.
func (p *proberOf) by(a fastpath.Action) (int, error) {
	if a.Way != fastpath.VXLAN || a.To.Is6() {
		return 0, nil
	}
	name := vxlanDevice(a.Via)
	r, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(p.fd, unix.SIOCGIFINDEX, r)
	}
	if err != nil {
		return 0, fmt.Errorf("sending a probe by %s: %w", name, err)
	}
	return int(r.Uint32()), nil
}

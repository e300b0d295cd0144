// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"net"
	"net/netip"

	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/fastpath/kernel"
)

// pathKernel is what kernel paths need of the kernel, as kernel.Kernel has it.
type pathKernel interface {
	Support() kernel.Support
	Apply(d kernel.Desired) error
	Reconcile() (repaired []string, err error)
	// Retire removes devices of an earlier run that end tunnels elsewhere, before the rules for those to come are in place.
	Retire() error
	Found(d kernel.Desired) (map[uint64]fastpath.Kind, error)
	Remove() (removed []string, err error)
	Close() error
	Watch(ctx context.Context, changed func()) error
	Route(to netip.Addr) (fastpath.Hop, bool)
	Neighbour(device string, hop netip.Addr) (net.HardwareAddr, bool)
}

// plainHost is what they need of the host's network besides, as hostnet.Host has it.
type plainHost interface {
	SetPlain(p hostnet.Plaintext) error
	Traffic() (map[netip.Prefix]uint64, error)
	Support() error
	Guard(ctx context.Context, repaired func(lines []string)) error
	Passes() bool
	CarriesIPv6(device string, mtu int) bool
	Tighten(c hostnet.Changes) (hostnet.Changes, error)
}

// flowBypass takes packets of established flows around the host's stack, as bypass.Bypass does.
type flowBypass interface {
	Run(ctx context.Context) error
	Serve(devices, tunnels []string)
	Pause() (resume func())
	Forget()
	State() string
	// Remove has all packets go through the stack, for good, and waits for nothing.
	Remove()
	Close()
}

// pathProbes sends probes from the host's overlay addresses, and receives those of others.
type pathProbes interface {
	// Run hands on what comes until ctx ends, and then closes the sockets.
	Run(ctx context.Context) error
	// Send sends a probe by the way it is to prove. The error is why it could not leave.
	Send(a fastpath.Action) error
}

// probeSeen is a probe that came, and what it says of itself.
type probeSeen struct {
	from   uint64
	way    fastpath.Kind
	echo   uint64
	source netip.Addr
	device string // by which it came
}

// probeConfig is what probes are made with.
type probeConfig struct {
	id    uint64
	hosts []netip.Addr // the host's overlay addresses
	port  uint16
}

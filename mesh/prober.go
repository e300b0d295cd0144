// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/weftnet/weft/mesh/udpstream"
)

// Prober greets a node without joining it. Identity and Keys are required.
type Prober struct {
	Network  Network // nil: SystemNetwork
	Keys     Keys
	Accept   []Keys // others that will do
	Identity Identity
	Name     string
	Universe UniverseInfo // zero: any will do
	// Knock opens a socket for packets before there is a router; those that come in go to deliver, which does not
	// keep b. It is called where TCP does not answer, and what it returns is closed. nil: TCP alone.
	Knock func(deliver func(b []byte, from Addr)) (Knocker, error)
}

// Knocker sends packets as a router does, but to addresses only.
type Knocker interface {
	SendControl(b []byte, to Addr) error
	Close() error
}

// Probe greets the node at addr, by TCP or by QUIC, within 3 s, less if ctx ends before, and returns
// what it says of itself. Whoever knows no universe yet learns it so; a node
// that waits to join itself returns a Hello without universe.
//
// Errors are a [*UniverseMismatchError] or a [*DialError] around ErrWrongToken,
// ErrSelf, ErrClone, ErrNotWeft, ErrVersion, or something that is ErrUnreachable.
func (p Prober) Probe(ctx context.Context, addr netip.AddrPort) (Hello, error) {
	network := p.Network
	if network == nil {
		network = SystemNetwork{}
	}
	id := p.Identity.ID()
	if !id.Valid() {
		return Hello{}, fmt.Errorf("probe %v: this node has no identity", addr)
	}
	ctx, cancel := context.WithTimeout(ctx, defaultStreamTimeout)
	defer cancel()
	me := introduction{purpose: purposeProbe, identity: p.Identity, id: id, name: p.Name, universe: p.Universe}
	g := greeter{network: network, keys: hellos(append([]Keys{p.Keys}, p.Accept...))}
	k := &knocking{open: p.Knock, key: p.Keys.Hello, id: id}
	defer k.close()
	if p.Knock != nil {
		g.udp = k.dial
	}
	var none ways
	who, err := g.first(ctx, none.triesAt(addr), me, 0)
	if err != nil {
		return Hello{}, err
	}
	return who.them.hello(), ignoreClosed(who.Close())
}

// knocking opens streams over packets of its own.
type knocking struct {
	open func(deliver func(b []byte, from Addr)) (Knocker, error)
	key  [32]byte
	id   NodeID

	socket  Knocker
	streams *udpstream.Endpoint
}

// dial may be called again when a call has returned: for the next key.
func (k *knocking) dial(ctx context.Context, to Addr) (net.Conn, error) {
	if k.streams != nil {
		return dialUDP(k.streams)(ctx, to)
	}
	ready := make(chan struct{}) // closed when the two fields are set
	socket, err := k.open(func(b []byte, from Addr) {
		<-ready
		if len(b) > 1 && kind(b[0]) == kindStream {
			k.streams.Deliver(b[1:], udpstream.Addr{Node: uint64(from.Node), Addr: from.Addr})
		}
	})
	if err != nil {
		close(ready)
		return nil, err
	}
	k.socket = socket
	k.streams = udpstream.New(udpstream.Config{
		ResetKey: resetKey(k.key, k.id),
		Send: func(b []byte, to udpstream.Addr) error {
			return socket.SendControl(append([]byte{byte(kindStream)}, b...), Addr{Addr: to.Addr})
		},
		Accept: func(c net.Conn) { _ = c.Close() }, // nobody was asked in
	})
	close(ready)
	return dialUDP(k.streams)(ctx, to)
}

// close is called when nothing dials any more.
func (k *knocking) close() {
	if k.socket != nil {
		_ = k.streams.Close() // whatever is left is of no more use
		_ = k.socket.Close()
	}
}

// Probe is Prober.Probe for a node that knows no universe, on the system's network.
func Probe(ctx context.Context, addr netip.AddrPort, keys Keys, who Identity) (Hello, error) {
	return Prober{Keys: keys, Identity: who}.Probe(ctx, addr)
}

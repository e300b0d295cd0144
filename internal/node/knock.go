// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/envelope"
)

// knocker is a UDP socket of its own by which a host is asked for its mesh before this node has a
// router, and so where TCP does not get through. It speaks to addresses only, with the same
// envelopes as a router. It implements mesh.Knocker.
type knocker struct {
	conn *net.UDPConn
	keys envelope.Keyring
	id   mesh.NodeID
	done chan struct{} // closed when reading has ended
}

// openKnocker opens the socket on any port; what comes in goes to deliver.
func openKnocker(id mesh.NodeID, keys router.Keys, deliver func(b []byte, from mesh.Addr)) (*knocker, error) {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket to ask for the mesh: %w", err)
	}
	k := &knocker{conn: conn, keys: keys.Envelope, id: id, done: make(chan struct{})}
	go k.read(deliver)
	return k, nil
}

func (k *knocker) read(deliver func(b []byte, from mesh.Addr)) {
	defer close(k.done)
	in, body := make([]byte, envelope.MaxSize), make([]byte, 0, envelope.MaxBody)
	for {
		n, from, err := k.conn.ReadFromUDPAddrPort(in)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // somebody refused a datagram
		}
		h, b, err := k.keys.Open(body[:0], in[:n])
		if err == nil && h.Kind == envelope.KindMesh && h.Destination == uint64(k.id) {
			deliver(b, mesh.Addr{Node: mesh.NodeID(h.Source), Addr: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())})
		}
	}
}

// SendControl implements [mesh.Knocker].
func (k *knocker) SendControl(b []byte, to mesh.Addr) error {
	msg, err := k.keys.Seal(nil, envelope.Header{Kind: envelope.KindMesh, Source: uint64(k.id), Destination: uint64(to.Node)}, b, rand.Reader)
	if err != nil {
		return err
	}
	_, err = k.conn.WriteToUDPAddrPort(msg, to.Addr)
	return err
}

// Close implements [mesh.Knocker].
func (k *knocker) Close() error {
	err := k.conn.Close()
	<-k.done
	return err
}

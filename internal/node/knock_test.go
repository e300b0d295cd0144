// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/mesh/memnet"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/envelope"
)

// A node joins, and gets its addresses, where not a single TCP connection gets through.
func TestJoinWithoutTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.net.Filter(func(proto string, _, _ *memnet.Host) bool { return proto == "udp" })
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, nil)
		c.start(n2, nil, "n1")
		c.start(n3, nil, "n2")
		for _, m := range c.machines {
			c.eventually(20*time.Second, m.name+" ready", func() bool { svc := m.service(); return svc != nil && svc.Status().Ready })
			c.attach(m, "w")
		}
		c.connected(20 * time.Second)
		c.distinct()
	})
}

func TestKnocker(t *testing.T) {
	key := func(b byte) router.Keys {
		k, err := envelope.NewKey([32]byte{b})
		if err != nil {
			t.Fatal(err)
		}
		return router.Keys{Envelope: envelope.Keyring{Primary: k}}
	}
	type packet struct {
		text string
		from mesh.Addr
	}
	got := make(chan packet, 10)
	open := func(id mesh.NodeID, k router.Keys) *knocker {
		t.Helper()
		o, err := openKnocker(id, k, func(b []byte, from mesh.Addr) { got <- packet{string(b), from} })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := o.Close(); err != nil {
				t.Error(err)
			}
		})
		return o
	}
	at := func(k *knocker) netip.AddrPort {
		a, ok := k.conn.LocalAddr().(*net.UDPAddr)
		if !ok {
			t.Fatal("no UDP address")
		}
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(a.Port))
	}
	a, b, stranger := open(1, key(1)), open(2, key(1)), open(3, key(2))
	for _, s := range []struct {
		from *knocker
		to   mesh.Addr
	}{
		{stranger, mesh.Addr{Node: 2, Addr: at(b)}}, // another token
		{a, mesh.Addr{Node: 9, Addr: at(b)}},        // meant for another
		{a, mesh.Addr{Node: 2, Addr: at(b)}},
	} {
		if err := s.from.SendControl([]byte("hello"), s.to); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	select {
	case p := <-got:
		if want := (packet{"hello", mesh.Addr{Node: 1, Addr: at(a)}}); p != want {
			t.Errorf("got %v, want %v", p, want)
		}
	case <-ctx.Done():
		t.Error("nothing came")
	}
	if len(got) != 0 {
		t.Errorf("and %v", <-got)
	}
}

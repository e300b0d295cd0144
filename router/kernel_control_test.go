// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/envelope"
)

// want waits for a gossip packet.
func (n *node) wantGossip(text string) {
	n.t.Helper()
	select {
	case got := <-n.gossip:
		if got != text {
			n.t.Errorf("host %d: %q, not %q", n.i, got, text)
		}
	case <-time.After(10 * time.Second):
		n.t.Errorf("host %d: %q has not arrived; %+v", n.i, text, n.Stats())
	}
}

// Gossip of any size comes through, also where the link is narrow.
func TestControlOverKernel(t *testing.T) {
	inEachSetup(t, func(t *testing.T, s setup, a, b *node) {
		for _, size := range []int{1, 500, router.MaxControl} {
			text := fmt.Sprintf("%0*d", size, 7)
			for range 10 {
				if err := a.SendControl([]byte(text), router.Addr{Node: 2}); err != nil {
					t.Fatal(err)
				}
				b.wantGossip(fmt.Sprintf("node %016x, %v: %s", 1, s.where(1), text))
			}
			if err := b.SendControl([]byte(text), router.Addr{Addr: s.where(1)}); err != nil {
				t.Fatal(err)
			}
			a.wantGossip(fmt.Sprintf("node %016x, %v: %s", 2, s.where(2), text))
		}
		a.ns.SetMTU("eth0", 1280)
		b.ns.SetMTU("eth0", 1280)
		text := fmt.Sprintf("%0*d", router.MaxControl, 8)
		if err := a.SendControl([]byte(text), router.Addr{Node: 2}); err != nil {
			t.Fatal(err)
		}
		b.wantGossip(fmt.Sprintf("node %016x, %v: %s", 1, s.where(1), text))
	})
}

// What is sealed with another token is dropped by the kernel, until the keys change.
func TestForeignOverKernel(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			a, b := nodes(t, setup{offload: all, shards: 1, shared: shared})
			reason := router.DropControlLost
			if shared {
				reason = router.DropControlKey
			}
			old, next := meshKeys(t, 0).Envelope, meshKeys(t, 1).Envelope
			send := func(text string) {
				t.Helper()
				if err := a.SendControl([]byte(text), router.Addr{Node: 2}); err != nil {
					t.Fatal(err)
				}
			}
			a.SetKeys(router.Keys{Envelope: next})
			send("too early")
			for deadline := time.Now().Add(10 * time.Second); b.Stats().Drops[reason] == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("not counted: %+v", b.Stats())
				}
			}
			b.SetKeys(router.Keys{Envelope: envelope.Keyring{Primary: old.Primary, Accept: []envelope.Key{next.Primary}}})
			send("in time")
			b.wantGossip(fmt.Sprintf("node %016x, %v: in time", 1, setups[0].where(1)))
			a.SetKeys(router.Keys{Envelope: old})
			send("as before")
			b.wantGossip(fmt.Sprintf("node %016x, %v: as before", 1, setups[0].where(1)))
		})
	}
}

// Datagrams of both sorts that the kernel has joined to one run are handled as such, wherever the run goes.
func TestMixedRunsOverKernel(t *testing.T) {
	for _, shards := range []int{1, 2} {
		t.Run(fmt.Sprint(shards, " shards"), func(t *testing.T) {
			a, b := nodes(t, setup{offload: all, shards: shards})
			var from *net.UDPConn
			a.ns.Do(func() {
				var err error
				if from, err = net.ListenUDP("udp", nil); err != nil {
					t.Fatal(err)
				}
			})
			defer closeIt(t, from)
			ring := meshKeys(t, 0).Envelope
			gossip, err := ring.Seal(nil, envelope.Header{Kind: envelope.KindMesh, Source: 9}, []byte("hello"), random{})
			if err != nil {
				t.Fatal(err)
			}
			data := make([]byte, len(gossip)) // for a session that there is not
			data[0] = 4
			raw, err := from.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var failed error
			if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, len(gossip)) }); err != nil || failed != nil {
				t.Fatal(err, failed)
			}
			for i := range 20 {
				run := append(append([]byte(nil), gossip...), data...)
				if i%2 == 1 {
					run = append(append([]byte(nil), data...), gossip...)
				}
				if _, err := from.WriteToUDPAddrPort(run, setups[0].where(2)); err != nil {
					t.Fatal(err)
				}
				b.wantGossip(fmt.Sprintf("node %016x, %v: hello", 9, netip.AddrPortFrom(setups[0].where(1).Addr(), uint16(from.LocalAddr().(*net.UDPAddr).Port))))
			}
			for deadline := time.Now().Add(10 * time.Second); b.Stats().Drops[router.DropIndex] != 20; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("not all data was handled: %+v", b.Stats())
				}
			}
		})
	}
}

// random is no secret.
type random struct{}

func (random) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(i)
	}
	return len(b), nil
}

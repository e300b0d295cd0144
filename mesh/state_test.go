// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// What makes no sense, or belongs to another mesh, changes nothing, and is said now and then.
func TestNonsenseFromInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 60)
		a := c.node().start()
		synctest.Wait()
		other := testUniverse(9)
		item := []byte(`["x"]`)
		enc := must(t)
		for range 50 {
			a.takeChange([]byte("junk"), testIdentity(9).ID())
			a.takeChange(enc(encodeChange(c.uni.ID, "bag", []byte("junk"))), testIdentity(9).ID())
			a.takeChange(enc(encodeChange(c.uni.ID, recordsName, []byte("junk"))), testIdentity(9).ID())
			a.takeChange(enc(encodeChange(c.uni.ID, recordsName, enc(encodeRecords([]*storedRecord{{raw: []byte{1}}})))), testIdentity(9).ID())
			a.takeChange(enc(encodeChange(c.uni.ID, "of a newer release", item)), testIdentity(9).ID())
			a.takeChange(enc(encodeChange(other.ID, "bag", item)), testIdentity(9).ID())
			a.Deliver([]byte("\x02junk"), Addr{Node: 2}, time.Now())
			a.Deliver(append([]byte{byte(kindDigest)}, enc(cbor.Marshal(digest{Version: digestVersion, Universe: other.ID[:], Members: 5}))...), Addr{Node: 2}, time.Now())
			synctest.Wait()
		}
		who := testIdentity(5)
		foreign, err := who.signRecord(Record{ID: who.ID(), Name: "n5", Universe: other.ID})
		if err != nil {
			t.Fatal(err)
		}
		a.takeChange(enc(encodeChange(c.uni.ID, recordsName, enc(encodeRecords([]*storedRecord{foreign})))), testIdentity(9).ID())
		synctest.Wait()
		if a.bag.has("x") || len(a.Nodes()) != 1 {
			t.Error("nonsense was taken in")
		}
		if n := c.logged("make no sense") + c.logged("makes no sense") + c.logged("was not merged"); n != 5 {
			t.Errorf("%d lines about it", n)
		}
		a.takeChange(enc(encodeChange(c.uni.ID, "bag", item)), testIdentity(9).ID())
		synctest.Wait()
		if !a.bag.has("x") {
			t.Error("sense was not")
		}
	})
}

// Who has told a large change is not told it back, and all others are.
func TestNothingIsToldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 61)
		a := c.node().start()
		others := []*testNode{c.node("n1").start(), c.node("n1").start()}
		c.eventually(10*time.Second, "all see each other", whole(c.nodes...))
		sent := func(from, to *testNode) uint64 {
			from.mu.Lock()
			defer from.mu.Unlock()
			if o := from.outboxes[to.id]; o != nil {
				return o.seq
			}
			return 0
		}
		a.add(strings.Repeat("x", 100<<10))
		c.eventually(5*time.Second, "all have it", agreed(c.nodes...))
		for i, n := range others {
			if back, on := sent(n, a), sent(n, others[1-i]); back != 0 || on > 1 {
				t.Errorf("%s sends it back %d times, and on %d times", n.cfg.Name, back, on)
			}
		}
		if on := sent(others[0], others[1]) + sent(others[1], others[0]); on == 0 {
			t.Error("nobody passes it on")
		}
	})
}

func TestRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 61)
		a := c.node().start()
		synctest.Wait()
		a.Register("late", &bag{})
		if c.logged("was registered after Run") != 1 {
			t.Error("nobody says that it is too late")
		}
		for _, name := range []string{"", "nodes", "bag", "a\nb", "a name of more than thirty-two bytes"} {
			n := c.node()
			m, err := New(n.cfg)
			if err != nil {
				t.Fatal(err)
			}
			m.Register("bag", &bag{})
			m.Register(name, &bag{})
			if err := m.Run(t.Context()); err == nil {
				t.Errorf("%q was taken", name)
			}
			if err := m.Stop(t.Context(), false); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestWorst(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.2:6783")
	self, gone, wrong := dialError(at, ErrSelf), dialError(at, errRefused), dialError(at, ErrWrongToken)
	for _, c := range []struct {
		errs []error
		want error
	}{
		{[]error{self}, self},
		{[]error{self, gone}, gone},
		{[]error{gone, self}, gone},
		{[]error{gone, wrong, self}, wrong},
		{[]error{context.Canceled, dialError(at, errNoRoute), gone}, gone},
	} {
		if got := worst(c.errs); !errors.Is(got, c.want) {
			t.Errorf("%v: %v", c.errs, got)
		}
	}
}

type answering func(host string) ([]netip.Addr, error)

func (a answering) Lookup(_ context.Context, host string) ([]netip.Addr, error) { return a(host) }

func (answering) Listen(uint16) (net.Listener, error) { return nil, net.ErrClosed }

func (answering) Dial(context.Context, netip.AddrPort) (net.Conn, error) { return nil, net.ErrClosed }

func TestResolve(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	n := answering(func(host string) ([]netip.Addr, error) {
		switch host {
		case "both":
			return []netip.Addr{v6, netip.AddrFrom16(v4.As16()), v4}, nil
		case "many":
			var as []netip.Addr
			for a := v4; len(as) < 100; a = a.Next() {
				as = append(as, a)
			}
			return as, nil
		case "slow":
			return nil, &net.DNSError{IsTimeout: true}
		case "none":
			return nil, nil
		case "broken":
			return nil, errors.New("the name service is broken")
		}
		return nil, &net.DNSError{IsNotFound: true}
	})
	for host, want := range map[string]string{
		"slow": "the name service does not answer for slow", "none": "no such host none", "gone:5": "no such host gone",
		"broken": "cannot look up broken: the name service is broken",
	} {
		if as, err := Resolve(t.Context(), n, host, 1); err == nil || err.Error() != want {
			t.Errorf("%s: %v, %v", host, as, err)
		}
	}
	as, err := Resolve(t.Context(), n, "both:7", 1)
	if err != nil || len(as) != 2 || as[0] != netip.AddrPortFrom(v6, 7) || as[1] != netip.AddrPortFrom(v4, 7) {
		t.Error(as, err)
	}
	if as, err := Resolve(t.Context(), n, "many", 1); err != nil || len(as) != maxAddrs {
		t.Error(len(as), err)
	}
	if as, err := Resolve(t.Context(), nil, "10.0.0.1", 9); err != nil || as[0] != netip.AddrPortFrom(v4, 9) {
		t.Error(as, err)
	}
}

func TestAdvertiseHints(t *testing.T) {
	known := func(i int, endpoints ...netip.AddrPort) []byte {
		who := testIdentity(i)
		r, err := who.signRecord(Record{ID: who.ID(), Name: "n", Endpoints: endpoints})
		if err != nil {
			t.Fatal(err)
		}
		return r.raw
	}
	m := &Mesh{id: testIdentity(1).ID(), cfg: Config{
		Targets: []string{"n1", "10.0.0.7:5", "[2001:db8::7]:5"},
		Known: [][]byte{
			known(1, netip.MustParseAddrPort("10.0.0.1:1")),
			known(2),
			known(3, netip.MustParseAddrPort("10.0.0.3:1")),
		},
	}}
	want := []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("10.0.0.3")}
	got := m.hints()
	for i := range want {
		if len(got) != len(want) || got[i] != want[i] {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if a, err := interfaceAddr(); err == nil && (!a.IsGlobalUnicast() || a.Is4In6()) {
		t.Error(a)
	}
}

// A full queue of changes drops, and never blocks, what calls from the packet loop.
func TestFullQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 62)
		a := c.node()
		a.bag.slow = time.Hour
		a.start()
		begin := time.Now()
		fresh := func() []byte { return must(t)(encodeChange(c.uni.ID, "bag", fmt.Appendf(nil, "[%q]", rand.Text()))) }
		for range 2 * mergeQueue {
			a.takeChange(fresh(), testIdentity(9).ID())
		}
		for range 2 * packetQueue {
			a.transport.deliver(fresh(), 2, time.Now())
		}
		if time.Since(begin) != 0 || a.Dropped() < mergeQueue-2 {
			t.Errorf("took %v, dropped %d", time.Since(begin), a.Dropped())
		}
		synctest.Wait() // the first is being merged now
		a.takeChange(fresh(), testIdentity(9).ID())
		a.queueMerge(incoming{})
		if d := time.Since(begin); d != a.tuning.StreamTimeout {
			t.Errorf("an exchange waited %v for room", d)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// never is how long to wait for what must not come.
const never = 120 * time.Millisecond

// socket opens a UDP socket of both families inside the namespace.
func socket(t *testing.T, n *Namespace, port uint16) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// hears returns from where something came, if it came.
func hears(c *net.UDPConn, within time.Duration) (netip.AddrPort, bool) {
	from, err := receive(c, within)
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err == nil
}

// drain throws away what has come.
func drain(c *net.UDPConn) {
	for {
		if _, ok := hears(c, never); !ok {
			return
		}
	}
}

// dials reports whether a TCP connection to an address comes about.
func dials(t *testing.T, from, to *Namespace, addr netip.AddrPort) bool {
	t.Helper()
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", addr.Port()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	err = from.Do(func() error {
		c, err := net.DialTimeout("tcp", addr.String(), 500*time.Millisecond)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return err == nil
}

// at is a host's address of the family, with the port.
func at(l *Link, v6 bool, port uint16) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(l.V6(), port)
	}
	return netip.AddrPortFrom(l.V4(), port)
}

var families = []struct {
	name string
	v6   bool
}{{"v4", false}, {"v6", true}}

func TestBlock(t *testing.T) {
	l := New(t)
	s := l.Switch("lan")
	a, b, c := l.Host("a", s), l.Host("b", s), l.Host("c", s)
	const port, other = 6783, 7777
	onA, onB, onC := socket(t, a.Namespace, port), socket(t, b.Namespace, port), socket(t, c.Namespace, port)
	otherB, otherC := socket(t, b.Namespace, other), socket(t, c.Namespace, other)
	for _, h := range []*Host{b, c} { // neighbours are known
		for _, v6 := range []bool{false, true} {
			reaches(t, a.Namespace, at(h.Link(), v6, 0).Addr(), true)
		}
	}
	// arrives checks whether datagrams from one socket come out at another one.
	arrives := func(from, to *net.UDPConn, addr netip.AddrPort, want bool) {
		t.Helper()
		send(t, from, addr)
		within := soon
		if !want {
			within = never
		}
		if _, ok := hears(to, within); ok != want {
			t.Errorf("to %v: %v, want %v", addr, ok, want)
		}
	}
	for _, f := range families {
		t.Run("one way "+f.name, func(t *testing.T) {
			s.Block(a.Link(), b.Link(), Traffic{OnlyV4: !f.v6, OnlyV6: f.v6})
			defer s.Heal()
			arrives(onA, onB, at(b.Link(), f.v6, port), false)
			arrives(onB, onA, at(a.Link(), f.v6, port), true)
			arrives(onA, onC, at(c.Link(), f.v6, port), true)
			arrives(onA, onB, at(b.Link(), !f.v6, port), true)
			if dials(t, a.Namespace, b.Namespace, at(b.Link(), f.v6, port)) || dials(t, b.Namespace, a.Namespace, at(a.Link(), f.v6, port)) {
				t.Error("TCP works in one direction")
			}
		})
		t.Run("no UDP "+f.name, func(t *testing.T) {
			s.BlockAll(UDP(port))
			defer s.Heal()
			arrives(onA, onB, at(b.Link(), f.v6, port), false)
			arrives(onB, onA, at(a.Link(), f.v6, port), false)
			arrives(otherB, onA, at(a.Link(), f.v6, port), false)
			arrives(otherB, otherC, at(c.Link(), f.v6, other), true)
			if !dials(t, a.Namespace, b.Namespace, at(b.Link(), f.v6, port)) {
				t.Error("TCP is blocked too")
			}
			reaches(t, a.Namespace, at(b.Link(), f.v6, 0).Addr(), true)
		})
		t.Run("no TCP "+f.name, func(t *testing.T) {
			s.Block(nil, b.Link(), TCP(port))
			defer s.Heal()
			arrives(onA, onB, at(b.Link(), f.v6, port), true)
			if dials(t, a.Namespace, b.Namespace, at(b.Link(), f.v6, port)) {
				t.Error("TCP to b is not blocked")
			}
			if !dials(t, a.Namespace, b.Namespace, at(b.Link(), f.v6, other)) {
				t.Error("another port is blocked too")
			}
			if dials(t, b.Namespace, a.Namespace, at(a.Link(), f.v6, port)) {
				t.Error("answers from the port are not blocked")
			}
			if !dials(t, a.Namespace, c.Namespace, at(c.Link(), f.v6, port)) {
				t.Error("TCP to c is blocked too")
			}
		})
	}
	if !dials(t, a.Namespace, b.Namespace, at(b.Link(), false, port)) {
		t.Error("TCP is blocked although all was healed")
	}
	arrives(onA, onB, at(b.Link(), true, port), true)
}

// TestMapping checks what each kind of NAT is named for: which outer addresses a socket inside gets, and who may use them.
func TestMapping(t *testing.T) {
	for _, kind := range []NATKind{KeepPorts, RandomPorts} {
		for _, f := range families {
			t.Run(fmt.Sprintf("%v %s", kind, f.name), func(t *testing.T) {
				l := New(t)
				home, wan := l.Switch("home"), l.Switch("wan")
				r := l.Router("nat", home, wan)
				r.NAT(wan, kind)
				inside, second, p1, p2 := l.Host("inside", home), l.Host("second", home), l.Host("p1", wan), l.Host("p2", wan)
				const port = 6783
				c := socket(t, inside.Namespace, port)
				s1, s2, s1b := socket(t, p1.Namespace, port), socket(t, p2.Namespace, port), socket(t, p1.Namespace, 7777)
				outer := map[netip.AddrPort]bool{}
				for _, s := range []struct {
					conn *net.UDPConn
					to   netip.AddrPort
				}{{s1, at(p1.Link(), f.v6, port)}, {s2, at(p2.Link(), f.v6, port)}, {s1b, at(p1.Link(), f.v6, 7777)}} {
					var first netip.AddrPort
					for i := range 3 { // the mapping stays
						send(t, c, s.to)
						from, ok := hears(s.conn, soon)
						if !ok || from.Addr() != at(r.Link(wan), f.v6, 0).Addr() || i > 0 && from != first {
							t.Fatalf("%v was reached: %v, from %v, before from %v", s.to, ok, from, first)
						}
						first = from
					}
					outer[first] = true
					send(t, s.conn, first)
					if from, ok := hears(c, soon); !ok || from != s.to {
						t.Errorf("the answer of %v: %v, from %v", s.to, ok, from)
					}
				}
				if want := map[NATKind]int{KeepPorts: 1, RandomPorts: 3}[kind]; len(outer) != want {
					t.Errorf("outer addresses for 3 destinations: %v", outer)
				}
				// Others are not let in: another address, another port of a known address.
				third := l.Host("p3", wan)
				for name, s := range map[string]*net.UDPConn{"address": socket(t, third.Namespace, port), "port": socket(t, p2.Namespace, 9999)} {
					for o := range outer {
						send(t, s, o)
					}
					if from, ok := hears(c, never); ok {
						t.Errorf("%v came in, which is another %s than was asked", from, name)
					}
				}
				// A second host inside has an address of its own outside.
				send(t, socket(t, second.Namespace, port), at(p1.Link(), f.v6, port))
				if from, ok := hears(s1, soon); !ok || outer[from] {
					t.Errorf("the second host is seen: %v, at %v", ok, from)
				}
				// A router that has forgotten everything lets nothing in until something goes out.
				drain(c)
				r.Forget()
				for o := range outer {
					send(t, s1, o)
				}
				if from, ok := hears(c, never); ok {
					t.Errorf("%v came in through a router that knows no flows", from)
				}
				send(t, c, at(p1.Link(), f.v6, port))
				if from, ok := hears(s1, soon); !ok || (kind == KeepPorts) != outer[from] {
					t.Errorf("after all flows were forgotten: %v, from %v, before from %v", ok, from, outer)
				}
			})
		}
	}
}

// TestPunching has two hosts behind routers send to each other at the same time, as nodes do that want a direct path: it works where
// both outer addresses can be known before.
func TestPunching(t *testing.T) {
	for _, tt := range []struct {
		name  string
		kinds [2]NATKind
		works bool
	}{
		{"both keep ports", [2]NATKind{KeepPorts, KeepPorts}, true},
		{"one chooses ports", [2]NATKind{RandomPorts, KeepPorts}, false},
		{"both choose ports", [2]NATKind{RandomPorts, RandomPorts}, false},
	} {
		for _, f := range families {
			t.Run(tt.name+" "+f.name, func(t *testing.T) {
				l := New(t)
				wan := l.Switch("wan")
				var nats [2]*Router
				var hosts [2]*Host
				var conns [2]*net.UDPConn
				for i := range 2 {
					home := l.Switch(fmt.Sprintf("home%d", i))
					nats[i] = l.Router(fmt.Sprintf("nat%d", i), home, wan)
					nats[i].NAT(wan, tt.kinds[i])
					hosts[i] = l.Host(fmt.Sprintf("h%d", i), home)
					conns[i] = socket(t, hosts[i].Namespace, 6783)
				}
				public := l.Host("public", wan)
				pub := socket(t, public.Namespace, 6783)
				var seen [2]netip.AddrPort
				for i := range 2 {
					send(t, conns[i], at(public.Link(), f.v6, 6783))
					var ok bool
					if seen[i], ok = hears(pub, soon); !ok {
						t.Fatal("the public host hears nothing")
					}
				}
				got := [2]bool{}
				for range 3 {
					for i := range 2 {
						send(t, conns[i], seen[1-i])
					}
					for i := range 2 {
						_, ok := hears(conns[i], never)
						got[i] = got[i] || ok
					}
				}
				if got[0] != tt.works || got[1] != tt.works {
					t.Errorf("heard: %v, want %v", got, tt.works)
				}
			})
		}
	}
}

// TestCone checks the NAT that looks at addresses alone, and that a host behind one that chooses ports can be reached from behind it.
func TestCone(t *testing.T) {
	l := New(t)
	home, far, wan := l.Switch("home"), l.Switch("far"), l.Switch("wan")
	r, chooser := l.Router("cone", home, wan), l.Router("chooser", far, wan)
	inside := l.Host("inside", home)
	r.Cone(wan, inside)
	chooser.NAT(wan, RandomPorts)
	other, p1, p2 := l.Host("other", far), l.Host("p1", wan), l.Host("p2", wan)
	const port = 6783
	c, s1, s1b, s2 := socket(t, inside.Namespace, port), socket(t, p1.Namespace, port), socket(t, p1.Namespace, 7777), socket(t, p2.Namespace, port)
	outer := at(r.Link(wan), false, port)
	send(t, s1, outer)
	if from, ok := hears(c, never); ok {
		t.Errorf("%v came in unasked", from)
	}
	send(t, c, at(p1.Link(), false, port))
	if from, ok := hears(s1, soon); !ok || from != outer {
		t.Fatalf("seen from %v, %v; want %v", from, ok, outer)
	}
	for _, s := range []*net.UDPConn{s1, s1b} { // another port of the same address, too
		send(t, s, outer)
		from, ok := hears(c, soon)
		if !ok {
			t.Fatal("an address that was asked does not come in")
		}
		send(t, c, from)
		if from, ok := hears(s, soon); !ok || from != outer {
			t.Errorf("the answer came from %v, %v", from, ok)
		}
	}
	send(t, s2, outer)
	if from, ok := hears(c, never); ok {
		t.Errorf("%v came in, whose address was not asked", from)
	}

	o := socket(t, other.Namespace, port)
	send(t, c, at(chooser.Link(wan), false, port)) // does not get in, and lets the answers in
	send(t, o, outer)
	from, ok := hears(c, soon)
	if !ok || from.Addr() != chooser.Link(wan).V4() {
		t.Fatalf("from behind the NAT that chooses ports: %v, %v", from, ok)
	}
	send(t, c, from)
	if _, ok := hears(o, soon); !ok {
		t.Error("the answer does not get in")
	}
}

// TestHome checks the router that leaves v6 as it is and lets only answers in.
func TestHome(t *testing.T) {
	l := New(t)
	home, wan := l.Switch("home"), l.Switch("wan")
	r := l.Router("router", home, wan)
	r.Home(wan, RandomPorts)
	inside, public := l.Host("inside", home), l.Host("public", wan)
	public.Link().RouteV6(home, r)
	const port = 6783
	c, s := socket(t, inside.Namespace, port), socket(t, public.Namespace, port)
	reaches(t, inside.Namespace, public.Link().V6(), true)

	send(t, s, at(inside.Link(), true, port))
	if from, ok := hears(c, never); ok {
		t.Errorf("%v came in unasked", from)
	}
	send(t, c, at(public.Link(), true, port))
	if from, ok := hears(s, soon); !ok || from != at(inside.Link(), true, port) {
		t.Errorf("v6: %v, from %v, which is not its own address", ok, from)
	}
	send(t, s, at(inside.Link(), true, port))
	if _, ok := hears(c, soon); !ok {
		t.Error("an answer does not come in")
	}
	send(t, c, at(public.Link(), false, port))
	if from, ok := hears(s, soon); !ok || from.Addr() != r.Link(wan).V4() || from.Port() == port {
		t.Errorf("v4: %v, from %v", ok, from)
	}
}

func TestRenumberAndMove(t *testing.T) {
	l := New(t)
	one, two := l.Switch("one"), l.Switch("two")
	core := l.Router("core", one, two)
	a, b, c := l.Host("a", one), l.Host("b", one), l.Host("c", two, OnlyV6)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	check := func() {
		t.Helper()
		reaches(t, b.Namespace, a.Link().V4(), true)
		reaches(t, b.Namespace, a.Link().V6(), true)
		reaches(t, a.Namespace, core.Link(two).V4(), true)
		reaches(t, a.Namespace, c.Link().V6(), true)
		reaches(t, c.Namespace, a.Link().V6(), true)
	}
	check()
	gone := func(v4, v6 netip.Addr) {
		t.Helper()
		if a.Link().V4() == v4 || a.Link().V6() == v6 {
			t.Fatalf("still %v and %v", v4, v6)
		}
		reaches(t, b.Namespace, v4, false)
		reaches(t, b.Namespace, v6, false)
	}
	v4, v6 := a.Link().V4(), a.Link().V6()
	a.Link().Renumber()
	gone(v4, v6)
	check()
	if !one.V4().Contains(a.Link().V4()) {
		t.Errorf("%v is not in %v", a.Link().V4(), one.V4())
	}
	v4, v6 = a.Link().V4(), a.Link().V6()
	a.Link().Move(two)
	gone(v4, v6)
	check()
	if !two.V4().Contains(a.Link().V4()) || !two.V6().Contains(a.Link().V6()) {
		t.Errorf("%v and %v are not of the other segment", a.Link().V4(), a.Link().V6())
	}
	two.Cut(a.Link(), c.Link()) // faults know it by its new port
	reaches(t, a.Namespace, c.Link().V6(), false)
	two.Heal()
	a.Link().Move(one) // and back
	check()
	d := l.Host("d", one)
	reaches(t, a.Namespace, d.Link().V4(), true)

	// Traffic to an address that stays goes on while the other side changes, as far as it can: datagrams from the new address.
	k, err := l.Talk(ctx, b.Namespace, a.Namespace, a.Link().V4())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Stop(); err != nil {
		t.Error(err)
	}
	extra := a.Plug(two)
	reaches(t, a.Namespace, core.Link(two).V4(), true)
	reaches(t, c.Namespace, extra.V6(), true)
	reaches(t, b.Namespace, a.Link().V4(), true)
}

func TestDelay(t *testing.T) {
	l := New(t)
	s := l.Switch("lan")
	a, b, c := l.Host("a", s), l.Host("b", s), l.Host("c", s)
	latency := func(to netip.Addr) time.Duration {
		t.Helper()
		reaches(t, a.Namespace, to, true)
		d, err := a.Latency(to, 9)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	b.Link().Delay(Delay{V6: 30 * time.Millisecond})
	if v4, v6 := latency(b.Link().V4()), latency(b.Link().V6()); v6 < 60*time.Millisecond || v4 > 30*time.Millisecond {
		t.Errorf("v4 takes %v, v6 %v", v4, v6)
	}
	b.Link().Delay(Delay{V4: 20 * time.Millisecond})
	if v4, v6 := latency(b.Link().V4()), latency(b.Link().V6()); v4 < 40*time.Millisecond || v6 > 30*time.Millisecond {
		t.Errorf("the other way round: v4 takes %v, v6 %v", v4, v6)
	}
	if v4 := latency(c.Link().V4()); v4 > 20*time.Millisecond {
		t.Errorf("a link without a delay takes %v", v4)
	}
	// What is fast overtakes what is slow.
	const long = 200 * time.Millisecond
	b.Link().Delay(Delay{V6: long})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	k, err := l.Talk(ctx, a.Namespace, b.Namespace, b.Link().V6())
	if err != nil {
		t.Fatal(err)
	}
	if v4 := latency(b.Link().V4()); v4 > long/2 {
		t.Errorf("beside slow v6, v4 takes %v", v4)
	}
	if err := k.Stop(); err != nil {
		t.Error(err)
	}
	b.Link().Delay(Delay{V4: 20 * time.Millisecond})
	// Everything goes through as it was sent, also what the machine moves as one.
	for _, addr := range []netip.Addr{b.Link().V4(), b.Link().V6()} {
		if _, err := l.TransferSum(ctx, a.Namespace, b.Namespace, addr, 1<<20); err != nil {
			t.Error(err)
		}
	}
	s.Cut(a.Link(), b.Link())
	reaches(t, a.Namespace, b.Link().V6(), false)
	s.Heal()
	b.Link().Down()
	reaches(t, a.Namespace, b.Link().V6(), false)
	b.Link().Up()
	reaches(t, a.Namespace, b.Link().V6(), true)
}

func TestTalk(t *testing.T) {
	l := New(t)
	s := l.Switch("lan")
	a, b := l.Host("a", s), l.Host("b", s)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	var all []*Talk
	for _, addr := range []netip.Addr{b.Link().V4(), b.Link().V6()} {
		k, err := l.Talk(ctx, a.Namespace, b.Namespace, addr)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, k)
	}
	start := time.Now()
	time.Sleep(500 * time.Millisecond)
	cut := time.Now()
	s.Block(b.Link(), a.Link(), Traffic{})
	time.Sleep(time.Second)
	s.Heal()
	took := time.Since(cut)
	healed := time.Now()
	for _, k := range all {
		eventually(t, "answers come again", func() bool { return k.Count(healed).Answered > 0 })
		if d := k.Outage(start); d < 900*time.Millisecond || d > took+500*time.Millisecond {
			t.Errorf("an outage of %v, it was %v", d, took)
		}
		lost := k.Count(cut).Sent - k.Count(healed).Sent // a busy machine sends fewer than 50
		if c := k.Count(start); c.Arrived < c.Sent-2 || 5*(c.Sent-c.Answered) < 4*lost || lost < 20 || c.Copies != 0 {
			t.Errorf("nothing came back for %v: %+v", took, c)
		}
		if d := k.Outage(healed.Add(100 * time.Millisecond)); d > 500*time.Millisecond {
			t.Errorf("an outage of %v without a fault", d)
		}
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
	}

	// A connection that breaks is noticed.
	k, err := l.Talk(ctx, a.Namespace, b.Namespace, b.Link().V4())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.tcf.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := k.tcf.Close(); err != nil {
		t.Fatal(err)
	}
	if err := k.Stop(); err == nil {
		t.Error("a connection that was reset: no error")
	}
	s.Cut(a.Link(), b.Link())
	short, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	if _, err := l.Talk(short, a.Namespace, b.Namespace, b.Link().V4()); err == nil {
		t.Error("a talk over a cut link began")
	}
}

// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var t0 = time.Unix(1_700_000_000, 0)

func newMachine(t *testing.T) *Machine {
	t.Helper()
	m, err := New(Config{Self: 1, Rand: randReader{rand.New(rand.NewPCG(1, 2))}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func addr(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 6783)
}

// bench drives one machine by hand.
type bench struct {
	t     *testing.T
	m     *Machine
	now   time.Time
	pings []Action // not answered
	other []Action
}

func newBench(t *testing.T, nodes ...Node) *bench {
	t.Helper()
	b := &bench{t: t, m: newMachine(t), now: t0}
	b.m.SetNodes(nodes, b.now)
	return b
}

// pass lets time pass, and gathers what the machine wants.
func (b *bench) pass(d time.Duration) {
	end := b.now.Add(d)
	for {
		todo, next := b.m.Tick(b.now)
		for _, a := range todo {
			if a.Kind == Ping {
				b.pings = append(b.pings, a)
			} else {
				b.other = append(b.other, a)
			}
		}
		if next.IsZero() || next.After(end) {
			break
		}
		b.now = next
	}
	b.now = end
}

// answer answers all pings by the path.
func (b *bench) answer(p Path) {
	for _, a := range b.pings {
		if a.Path == p {
			b.m.Pong(a.To, p, a.Echo, addr(1), b.now)
		}
	}
	b.pings = slices.DeleteFunc(b.pings, func(a Action) bool { return a.Path == p })
	b.pass(0)
}

func TestPath(t *testing.T) {
	for _, c := range []struct {
		p, back        Path
		valid, relayed bool
		text           string
	}{
		{Path{}, Path{}, false, false, "none"},
		{Direct(addr(1)), Direct(addr(1)), true, false, "192.0.2.1:6783"},
		{Through(2), Through(2), true, true, "via [2]"},
		{Through(2, 3, 10), Through(10, 3, 2), true, true, "via [2 3 a]"},
		{Through(1, 2, 3, 4, 5), Path{}, false, false, "none"},
	} {
		if c.p.Reversed() != c.back || c.p.Valid() != c.valid || c.p.Relayed() != c.relayed || c.p.String() != c.text || len(c.p.Via()) != int(c.p.N) {
			t.Errorf("%+v: %+v, %v, %v, %v", c.p, c.p.Reversed(), c.p.Valid(), c.p.Relayed(), c.p)
		}
	}
}

func TestWhy(t *testing.T) {
	b := newBench(t, Node{ID: 2, Candidates: []netip.AddrPort{addr(2)}}, Node{ID: 3, Candidates: []netip.AddrPort{addr(3)}, Links: []uint64{2}})
	why := func(id uint64) string { return b.m.Explain(id, b.now).Why }
	want := func(id uint64, text string) {
		t.Helper()
		if got := why(id); got != text {
			t.Errorf("why is %q, want %q", got, text)
		}
	}
	want(9, "not a node of this mesh")
	want(2, "not used yet")
	b.m.Used(2, b.now)
	since := t0.Format(time.TimeOnly)
	b.pass(time.Second)
	want(2, "no answer from 192.0.2.2:6783 since "+since+", looking for another way")
	b.answer(Direct(addr(2))) // a second late
	want(2, "answers, measured 205 ms")
	for range 10 {
		b.pass(500 * time.Millisecond)
		b.m.Used(2, b.now)
		b.pass(700 * time.Microsecond)
		b.answer(Direct(addr(2)))
	}
	if got := why(2); !strings.HasPrefix(got, "answers, measured ") || got == "answers, measured 205 ms" {
		t.Error(got)
	}
	last := b.now
	b.m.Used(2, b.now)
	b.pass(8 * time.Second)
	text := why(2)
	var at string
	if n, err := fmt.Sscanf(text, "no answer from 192.0.2.2:6783 since %s", &at); n != 1 || err != nil {
		t.Fatal(text)
	}
	if silent := last.Add(2 * time.Second).Format(time.TimeOnly); strings.TrimSuffix(at, ",") > silent {
		t.Errorf("%q, the silence began before %s", text, silent)
	}
	b.m.Used(3, b.now)
	b.pass(20 * time.Second)
	if got := why(3); !strings.HasSuffix(got, ", and no node that relays reaches it") {
		t.Error(got)
	}
	if e := b.m.Explain(3, b.now); e.Proven {
		t.Errorf("%+v", e)
	}
}

// Who lists links that lead nowhere is found out hop by hop, and the long way that works is taken.
func TestFalseLinks(t *testing.T) {
	for seed := range many(50) {
		w := newSim(t, seed)
		w.record = func(n *Node) {
			if n.ID >= 10 { // say that they reach the other end
				n.Links = append(slices.Clone(n.Links), 5)
			}
		}
		// 1 - 2 - 3 - 4 - 5, and 1 - 10 to 13, which claim 5.
		w.block = func(a, b *simHost) bool {
			x, y := min(a.id, b.id), max(a.id, b.id)
			return y-x != 1 && (x != 1 || y < 10)
		}
		for _, i := range []int{1, 2, 3, 4, 5, 10, 11, 12, 13} {
			w.add(i, noNAT)
		}
		w.run(5 * time.Second)
		a, e := w.hosts[0], w.hosts[4]
		w.talk(a, e)
		w.want(a, e, "relay [2 3 4]", 12*time.Second)
	}
}

func TestObserved(t *testing.T) {
	at := func(ip, port int) netip.AddrPort { return netip.AddrPortFrom(addr(ip).Addr(), uint16(port)) }
	for name, c := range map[string]struct {
		seen []sighting
		then moment // after all
		list []netip.AddrPort
		sym  bool
	}{
		"nobody":    {},
		"agreed":    {[]sighting{{2, at(1, 10), 1}, {3, at(1, 10), 2}}, 3, []netip.AddrPort{at(1, 10)}, false},
		"symmetric": {[]sighting{{2, at(1, 11), 1}, {3, at(1, 10), 2}}, 3, []netip.AddrPort{at(1, 10)}, true},
		"two ways":  {[]sighting{{2, at(1, 11), 1}, {3, at(9, 10), 2}}, 3, []netip.AddrPort{at(1, 11), at(9, 10)}, false},
		"by one at two addresses": {
			[]sighting{{2, at(1, 11), 1}, {2, at(9, 10), 2}}, 3, []netip.AddrPort{at(1, 11), at(9, 10)}, false,
		},
		"another port from now on": {
			[]sighting{{2, at(1, 10), 1}, {3, at(1, 10), 1}, {2, at(1, 11), 5}}, 6, []netip.AddrPort{at(1, 11)}, false,
		},
		"long apart": {[]sighting{{2, at(1, 11), 1}, {3, at(1, 10), 100}}, 101, []netip.AddrPort{at(1, 10), at(1, 11)}, false},
		"expired":    {[]sighting{{2, at(1, 10), 1}, {3, at(9, 10), 60}}, 130, []netip.AddrPort{at(9, 10)}, false},
	} {
		var o observed
		o.init()
		for _, s := range c.seen {
			o.note(s.by, s.addr, s.at*moment(time.Second))
		}
		o.expire(c.then * moment(time.Second))
		if list, sym := o.list(); !slices.Equal(list, c.list) || sym != c.sym {
			t.Errorf("%s: %v, symmetric %v", name, list, sym)
		}
	}
}

func TestObservedIsBounded(t *testing.T) {
	var o observed
	o.init()
	for i := range 10000 {
		o.note(uint64(i), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1), moment(i+1))
	}
	if list, _ := o.list(); len(o.by) != maxObservers || len(list) != maxObserved {
		t.Errorf("%d observers, %d addresses", len(o.by), len(list))
	}
}

// One node that says again and again that it has seen us somewhere else displaces nothing of what others have seen.
func TestOneLyingObserver(t *testing.T) {
	var o observed
	o.init()
	here := netip.MustParseAddrPort("203.0.113.7:6783")
	for by := range 6 {
		o.note(uint64(2+by), here, moment(1+by))
	}
	for i := range 1000 {
		o.note(66, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1), moment(100+i))
	}
	for by := range uint64(3) {
		for i := range 4 {
			o.note(77+by, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(by), byte(i)}), 1), moment(2000+i))
		}
	}
	list, _ := o.list()
	if len(o.by) != 6+4*maxPerObserver || len(list) != maxObserved || !slices.Contains(list, here) || !slices.IsSortedFunc(list, netip.AddrPort.Compare) {
		t.Errorf("%d sightings, %v", len(o.by), list)
	}
}

// However many addresses a node is heard from, so many are kept, those of the record among them; and what was asked is bounded.
func TestCandidatesAreBounded(t *testing.T) {
	listed := make([]netip.AddrPort, 20)
	for i := range listed {
		listed[i] = addr(100 + i)
	}
	b := newBench(t, Node{ID: 2, Candidates: listed})
	for i := range 1000 {
		b.m.Pinged(2, Direct(netip.AddrPortFrom(addr(9).Addr(), uint16(1000+i))), b.now)
		b.m.Punched(2, []netip.AddrPort{netip.AddrPortFrom(addr(8).Addr(), uint16(1000+i))}, b.now)
		b.pass(time.Millisecond)
	}
	s := b.m.nodes[2].state
	if len(s.cands) != MaxCandidates+maxSeen || s.cands[0].addr != addr(100) || s.cands[MaxCandidates-1].addr != addr(115) {
		t.Errorf("%d candidates", len(s.cands))
	}
	b.pass(10 * time.Second)
	b.m.Tick(b.now)
	if len(b.m.pings) > 100 || len(b.m.sent) > 100 {
		t.Errorf("%d pings in mind", len(b.m.pings))
	}
}

// A pong counts once, for its ping, from its node, by its path, and in time.
func TestPongs(t *testing.T) {
	for name, pong := range map[string]func(b *bench, a Action){
		"of another node":  func(b *bench, a Action) { b.m.Pong(3, a.Path, a.Echo, addr(1), b.now) },
		"never asked for":  func(b *bench, a Action) { b.m.Pong(2, a.Path, a.Echo+1, addr(1), b.now) },
		"by another path":  func(b *bench, a Action) { b.m.Pong(2, Direct(addr(3)), a.Echo, addr(1), b.now) },
		"through relays":   func(b *bench, a Action) { b.m.Pong(2, Through(3), a.Echo, netip.AddrPort{}, b.now) },
		"too late":         func(b *bench, a Action) { b.pass(4 * time.Second); b.m.Pong(2, a.Path, a.Echo, addr(1), b.now) },
		"of an older echo": func(b *bench, a Action) { b.m.Pong(2, a.Path, 0, addr(1), b.now) },
	} {
		b := newBench(t, Node{ID: 2, Candidates: []netip.AddrPort{addr(2)}}, Node{ID: 3, Candidates: []netip.AddrPort{addr(3)}})
		b.m.Used(2, b.now)
		b.pass(time.Millisecond)
		i := slices.IndexFunc(b.pings, func(a Action) bool { return a.To == 2 })
		pong(b, b.pings[i])
		if _, proven := b.m.Current(2); proven {
			t.Errorf("a pong %s proves the path", name)
		}
	}
}

// A pong of which it is not certain who sent it proves nothing and replaces nothing; while there is no path it says where to ask again.
func TestUncertainPongs(t *testing.T) {
	near, far := addr(2), addr(102)
	b := newBench(t, Node{ID: 2, Candidates: []netip.AddrPort{near, far}})
	b.m.Used(2, b.now)
	b.pass(time.Millisecond)
	i := slices.IndexFunc(b.pings, func(a Action) bool { return a.Path == Direct(far) })
	echo := b.pings[i].Echo
	b.m.Answered(2, Direct(near), echo, b.now) // by another path
	b.m.Answered(3, Direct(far), echo, b.now)  // of another node
	if p, _ := b.m.Current(2); p != Direct(near) {
		t.Errorf("the path is %v", p)
	}
	b.m.Answered(2, Direct(far), echo, b.now)
	if p, proven := b.m.Current(2); p != Direct(far) || proven {
		t.Errorf("the path is %v, proven %v", p, proven)
	}
	b.pings = nil
	b.pass(20 * time.Second) // others answer as if they were it, all the time
	for range 20 {
		for _, a := range b.pings {
			b.m.Answered(a.To, a.Path, a.Echo, b.now)
		}
		b.pings = nil
		b.pass(time.Second)
	}
	if len(b.pings) == 0 {
		t.Error("it is not asked any more")
	}
	if _, proven := b.m.Current(2); proven {
		t.Error("the path is proven")
	}
	b.pings = nil
	b.m.Used(2, b.now)
	b.pass(3 * time.Second)
	b.answer(Direct(near))
	if p, proven := b.m.Current(2); p != Direct(near) || !proven {
		t.Errorf("the path is %v, proven %v", p, proven)
	}
	b.pings = nil
	b.m.Used(2, b.now)
	b.pass(1500 * time.Millisecond) // it is asked, and does not answer; others do, elsewhere
	for _, a := range b.pings {
		b.m.Answered(2, a.Path, a.Echo, b.now)
	}
	b.m.Answered(2, Direct(far), echo, b.now)
	if p, proven := b.m.Current(2); p != Direct(near) || !proven {
		t.Errorf("the path is %v, proven %v", p, proven)
	}
}

// What others make this host ask does not keep it from asking the paths that it uses.
func TestPingsInReserve(t *testing.T) {
	nodes := []Node{{ID: 2, Candidates: []netip.AddrPort{addr(2)}}}
	const invented = 3000
	for i := range invented {
		nodes = append(nodes, Node{ID: uint64(1000 + i), Candidates: []netip.AddrPort{addr(3)}})
	}
	b := newBench(t, nodes...)
	b.m.Used(2, b.now)
	b.pass(time.Millisecond)
	b.answer(Direct(addr(2)))
	for i := range invented {
		for j := range 8 {
			b.m.Pinged(uint64(1000+i), Direct(netip.AddrPortFrom(addr(9).Addr(), uint16(1+j))), b.now)
		}
		b.m.Punched(uint64(1000+i), []netip.AddrPort{addr(8)}, b.now)
	}
	b.pass(0)
	if n := len(b.m.sent); n < maxPings/2 || n > maxPings/2+100 {
		t.Errorf("%d pings are under way", n)
	}
	b.pings = nil
	b.m.Used(2, b.now)
	b.pass(1200 * time.Millisecond)
	if !slices.ContainsFunc(b.pings, func(a Action) bool { return a.To == 2 }) {
		t.Error("the path in use is not asked")
	}
}

// Nothing is asked of nodes of which nothing is wanted, once there are links enough, and gossip asks once.
func TestWantedAsksOnce(t *testing.T) {
	var nodes []Node
	for i := 2; i <= 30; i++ {
		nodes = append(nodes, Node{ID: uint64(i), Candidates: []netip.AddrPort{addr(i)}, Links: []uint64{2, 3}}) // known to others
	}
	b := newBench(t, nodes...)
	for range 400 {
		b.pass(50 * time.Millisecond)
		for i := 2; i <= 30; i++ {
			b.answer(Direct(addr(i)))
		}
	}
	if links, _, _ := b.m.Own(); len(links) != MaxLinks {
		t.Fatalf("links %v", links)
	}
	id := uint64(4) // the first that is no link
	for b.m.nodes[id].state != nil {
		id++
	}
	b.m.Wanted(id, b.now)
	b.pass(50 * time.Millisecond) // as long as the others
	b.answer(Direct(addr(int(id))))
	if _, proven := b.m.Current(id); !proven {
		t.Fatal("not proven")
	}
	b.pings = nil
	for range 100 {
		b.m.Wanted(id, b.now)
		b.pass(100 * time.Millisecond)
	}
	n := 0
	for _, a := range b.pings {
		if a.To == id {
			n++
		}
	}
	if n > 1 { // the one that looks for nearer links
		t.Errorf("asked %d times", n)
	}
}

// A route leads through nodes that relay only, and through four at most.
func TestRoutes(t *testing.T) {
	node := func(id uint64, links ...uint64) Node {
		return Node{ID: id, Candidates: []netip.AddrPort{addr(int(id))}, Links: links}
	}
	for _, c := range []struct {
		name  string
		nodes []Node
		want  string
	}{
		{"none", []Node{node(2), node(9)}, "[]"},
		{"one hop", []Node{node(2, 9), node(9)}, "[via [2]]"},
		{"the other says so", []Node{node(2), node(9, 2)}, "[via [2]]"},
		{"two of them", []Node{node(2, 9), node(3, 9), node(9)}, "[via [2] via [3]]"},
		{"four hops", []Node{node(2, 4), node(4, 5), node(5, 6), node(6, 9), node(9)}, "[via [2 4 5 6]]"},
		{"five hops", []Node{node(2, 4), node(4, 5), node(5, 6), node(6, 7), node(7, 9), node(9)}, "[]"},
		{"the short one first", []Node{node(2, 4), node(4, 9), node(3, 9), node(9)}, "[via [3] via [2 4]]"},
		{"one that does not relay", []Node{{ID: 2, Candidates: []netip.AddrPort{addr(2)}, Links: []uint64{9}, NoRelay: true}, node(9)}, "[]"},
	} {
		b := newBench(t, c.nodes...)
		for _, id := range []uint64{2, 3} { // are neighbours
			b.m.Used(id, b.now)
			b.pass(time.Millisecond)
			b.answer(Direct(addr(int(id))))
		}
		got := b.m.routesTo(b.m.nodes[9], nil, momentOf(b.now))
		slices.SortStableFunc(got, func(x, y Path) int { return int(x.N) - int(y.N) })
		if s := fmt.Sprint(got); s != c.want && !(c.name == "two of them" && s == "[via [3] via [2]]") {
			t.Errorf("%s: %v, want %s", c.name, s, c.want)
		}
	}
}

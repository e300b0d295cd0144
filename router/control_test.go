// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/router/envelope"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// member is a router without peers whose ways are given by the test.
type member struct {
	*Router
	id    uint64
	conn  *post
	ways  *givenWays
	heard []string
}

// post is a Conn that keeps what is sent.
type post struct {
	loop
	out []letter
}

type letter struct {
	to netip.AddrPort
	b  []byte
}

func (p *post) SendTo(b []byte, to netip.AddrPort, _ uint8) error {
	p.out = append(p.out, letter{to, bytes.Clone(b)})
	return nil
}

// givenWays are ways that a test has laid; it writes down what it is told.
type givenWays struct {
	by   map[uint64]way
	told []string
}

func (g *givenWays) use(node uint64, _ time.Time) (way, bool) {
	w, ok := g.by[node]
	return w, ok
}

func (g *givenWays) direct(node uint64, _ time.Time) (netip.AddrPort, bool) {
	w, ok := g.by[node]
	return w.Addr, ok && w.N == 0
}

func (w way) String() string {
	if w.N == 0 {
		return w.Addr.String()
	}
	return fmt.Sprint("relays ", w.Relays[:w.N])
}

func (g *givenWays) tell(format string, args ...any) {
	g.told = append(g.told, fmt.Sprintf(format, args...))
}

func (g *givenWays) heard(node uint64, back way, sure bool, _ time.Time) {
	g.tell("heard %d by %v%s", node, back, surely(sure))
}

func surely(sure bool) string {
	if sure {
		return ", for sure"
	}
	return ""
}

func (g *givenWays) ponged(node uint64, back way, p envelope.Pong, sure bool, _ time.Time) {
	g.tell("pong %d of %d by %v, who saw %v, boot %d%s", p.Echo, node, back, p.Seen, p.Boot, surely(sure))
}

func (g *givenWays) punched(node uint64, p envelope.Punch, _ time.Time) {
	g.tell("punch %d of %d to %v", p.Echo, node, p.Candidates)
}

func (g *givenWays) examine(node uint64, _ time.Time) { g.tell("examine %d", node) }

// told returns what the ways of a member were told since the last call.
func (m *member) told() []string {
	told := m.ways.told
	m.ways.told = nil
	return told
}

// members are routers 1 to n on a network where all datagrams arrive, in order.
type members struct {
	tb  testing.TB
	all map[uint64]*member
	now time.Time
}

func newMembers(tb testing.TB, n int, change func(*Config)) *members {
	tb.Helper()
	x := &members{tb: tb, all: map[uint64]*member{}, now: time.Unix(1e9, 0)}
	for i := range n {
		id := uint64(i + 1)
		m := &member{id: id, conn: &post{}, ways: &givenWays{by: map[uint64]way{}}}
		c := Config{
			Private: privateOf(id), ID: id, Boot: 100 + id, Keys: Keys{envelope.Keyring{Primary: testKey(tb, 1)}},
			TUN: []Queue{m.conn}, Conns: []Conn{m.conn}, Now: func() time.Time { return x.now },
			Poll:    func(Queue, Conn) (Poller, error) { return nil, nil },
			Control: func(b []byte, from Addr, _ time.Time) { m.heard = append(m.heard, fmt.Sprintf("%v: %s", from, b)) },
		}
		change(&c)
		var err error
		if m.Router, err = New(c); err != nil {
			tb.Fatal(err)
		}
		m.Router.ways = m.ways
		x.all[id] = m
	}
	return x
}

func privateOf(id uint64) session.PrivateKey { return session.PrivateKey{1: byte(id), 31: 64} }

func testKey(tb testing.TB, n byte) envelope.Key {
	tb.Helper()
	k, err := envelope.NewKey([32]byte{n})
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func memberAt(id uint64) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(id)}), 6783)
}

// join lets two reach each other directly.
func (x *members) join(a, b uint64) {
	x.all[a].ways.by[b] = way{Addr: memberAt(b)}
	x.all[b].ways.by[a] = way{Addr: memberAt(a)}
}

// run delivers datagrams until there are none, and returns the number of those that were.
func (x *members) run() (delivered int) {
	x.tb.Helper()
	for again := true; again; {
		again = false
		for _, id := range slices.Sorted(maps.Keys(x.all)) {
			from := x.all[id]
			out := from.conn.out
			from.conn.out = nil
			for _, l := range out {
				again = true
				delivered++
				to := x.all[uint64(l.to.Addr().As4()[3])]
				if to == nil {
					x.tb.Fatalf("to nobody: %v", l.to)
				}
				x.receive(to, l.b, memberAt(id))
			}
		}
	}
	return delivered
}

func (x *members) receive(to *member, b []byte, from netip.AddrPort) {
	x.tb.Helper()
	to.conn.incoming = []underlay.Message{{Buf: b, Addr: from}}
	if _, err := to.shards[0].receive(x.now); err != nil {
		x.tb.Fatal(err)
	}
}

// drops returns the reasons that have occurred.
func (m *member) drops() map[Reason]uint64 {
	all := m.Stats().Drops
	maps.DeleteFunc(all, func(_ Reason, n uint64) bool { return n == 0 })
	return all
}

func (m *member) want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("node %d, %s:\n%q\nnot\n%q", m.id, what, got, want)
	}
}

func (m *member) wantDrops(t *testing.T, want map[Reason]uint64) {
	t.Helper()
	if got := m.drops(); !maps.Equal(got, want) {
		t.Errorf("node %d: drops %v, not %v", m.id, got, want)
	}
}

func TestControlByWays(t *testing.T) {
	x := newMembers(t, 4, func(*Config) {})
	a, d := x.all[1], x.all[4]
	x.join(1, 2)
	x.join(2, 3)
	x.join(3, 4)
	a.ways.by[4] = way{Relays: [4]uint64{2, 3}, N: 2}
	for to, want := range map[Addr]string{
		{Node: 2}:                    "sending",
		{Node: 4}:                    "relayed",
		{Node: 3, Addr: memberAt(3)}: "by address",
		{Addr: memberAt(2)}:          "to whoever is there",
	} {
		if err := a.SendControl([]byte(want), to); err != nil {
			t.Fatal(err)
		}
	}
	if n := x.run(); n != 6 {
		t.Errorf("%d datagrams, not 3 and 3 for the one that is relayed", n)
	}
	slices.Sort(x.all[2].heard)
	x.all[2].want(t, "gossip", x.all[2].heard, "node 0000000000000001, 192.0.2.1:6783: sending", "node 0000000000000001, 192.0.2.1:6783: to whoever is there")
	x.all[3].want(t, "gossip", x.all[3].heard, "node 0000000000000001, 192.0.2.1:6783: by address")
	d.want(t, "gossip", d.heard, "node 0000000000000001: relayed")
	d.want(t, "ways", d.told(), "heard 1 by relays [3 2]")
	if s := x.all[2].Stats(); s.ControlRelayed != 1 || s.ControlRx != 2 || a.Stats().ControlTx != 4 {
		t.Errorf("stats %+v, %+v", s, a.Stats())
	}
	for _, m := range x.all {
		m.wantDrops(t, map[Reason]uint64{})
	}

	for to, want := range map[Addr]string{
		{Node: 9}:           "sending a gossip packet to node 0000000000000009: no way to it is known",
		{}:                  "sending a gossip packet to invalid AddrPort: no way to it is known",
		{Addr: memberAt(2)}: "sending a gossip packet to 192.0.2.2:6783: control datagram is too short or too long: dropped",
	} {
		b := make([]byte, 1)
		if to.Node == 0 && to.Addr.IsValid() {
			b = make([]byte, MaxControl+1)
		}
		if err := a.SendControl(b, to); err == nil || err.Error() != want {
			t.Errorf("%v: %v", to, err)
		}
	}
	if err := a.SendControl(nil, Addr{Node: 1, Addr: memberAt(1)}); err != nil || x.run() != 0 {
		t.Errorf("to itself: %v", err)
	}
	a.wantDrops(t, map[Reason]uint64{DropControlSource: 1})
	a.ways.by[4] = way{Relays: [4]uint64{8}, N: 1}
	if err := a.SendControl(nil, Addr{Node: 4}); !errors.Is(err, ErrNoWay) {
		t.Errorf("by a relay that is not reached: %v", err)
	}
	a.Examine(4)
	a.want(t, "ways", a.told(), "examine 4")
}

// Pings are answered by the way that they came, and everything is told to the ways.
func TestPings(t *testing.T) {
	x := newMembers(t, 3, func(*Config) {})
	a, c := x.all[1], x.all[3]
	x.join(1, 2)
	x.join(2, 3)
	x.join(1, 3)
	ping := envelope.Ping{Echo: 7}.Append(nil)
	for _, by := range []way{{Addr: memberAt(3)}, {Relays: [4]uint64{2}, N: 1}} {
		if err := a.sendControl(envelope.KindPing, 3, by, ping, x.now); err != nil {
			t.Fatal(err)
		}
	}
	x.run()
	c.want(t, "ways", c.told(), "heard 1 by 192.0.2.1:6783", "heard 1 by relays [2]")
	a.want(t, "ways", a.told(), "heard 3 by 192.0.2.3:6783", "pong 7 of 3 by 192.0.2.3:6783, who saw 192.0.2.1:6783, boot 103",
		"heard 3 by relays [2]", "pong 7 of 3 by relays [2], who saw invalid AddrPort, boot 103")

	punch := envelope.Punch{Echo: 8, Candidates: []netip.AddrPort{memberAt(1), memberAt(9)}}.Append(nil)
	if err := a.sendControl(envelope.KindPunch, 3, way{Relays: [4]uint64{2}, N: 1}, punch, x.now); err != nil {
		t.Fatal(err)
	}
	x.run()
	c.want(t, "ways", c.told(), "heard 1 by relays [2]") // any member may have sent it: nothing is done
	for _, m := range x.all {
		m.wantDrops(t, map[Reason]uint64{})
	}
}

func TestControlRefused(t *testing.T) {
	x := newMembers(t, 4, func(c *Config) { c.NoRelay = c.ID == 4 })
	x.join(2, 3)
	b := x.all[2]
	seal := func(key byte, h envelope.Header, body []byte) []byte {
		msg, err := (&envelope.Keyring{Primary: testKey(t, key)}).Seal(nil, h, body, b.config.Rand)
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	hello := []byte("hello")
	good := seal(1, envelope.Header{Kind: envelope.KindMesh, Source: 1, Destination: 2}, hello)
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	by := func(dest uint64, at uint8, relays ...uint64) envelope.Header {
		h := envelope.Header{Kind: envelope.KindMesh, Source: 1, Destination: dest, N: uint8(len(relays)), At: at}
		copy(h.Relays[:], relays)
		return h
	}
	relayed := seal(1, by(3, 0, 2), hello)
	for _, c := range []struct {
		name string
		to   *member
		b    []byte
		want Reason
	}{
		{"only a type", b, []byte{ControlType}, DropControlForm},
		{"cut short", b, good[:20], DropControlForm},
		{"forged", b, forged, DropControlAuth},
		{"cut in its body", b, good[:len(good)-1], DropControlAuth},
		{"forged, to be relayed", b, append(slices.Clone(relayed[:len(relayed)-1]), 0), DropControlAuth},
		{"of another mesh", b, seal(2, by(2, 0), hello), DropControlKey},
		{"of another mesh, to be relayed", b, seal(2, by(3, 0, 2), hello), DropControlKey},
		{"for another node", x.all[3], good, DropControlDestination},
		{"for another relay", x.all[3], relayed, DropControlDestination},
		{"with ourselves as the source", x.all[1], seal(1, envelope.Header{Kind: envelope.KindMesh, Source: 1}, hello), DropControlSource},
		{"to be relayed to a node that is not known", b, seal(1, by(9, 0, 2), hello), DropControlRelay},
		{"to be relayed to a node that is reached by relays", b, seal(1, by(4, 0, 2), hello), DropControlRelay},
		{"to be relayed by one that does not", x.all[4], seal(1, by(3, 0, 4), hello), DropControlRelay},
		{"a ping that is none", b, seal(1, envelope.Header{Kind: envelope.KindPing, Source: 1}, hello), DropControlForm},
		{"a pong that is none", b, seal(1, envelope.Header{Kind: envelope.KindPong, Source: 1}, hello), DropControlForm},
		{"a punch that is none", b, seal(1, envelope.Header{Kind: envelope.KindPunch, Source: 1}, hello), DropControlForm},
	} {
		b.ways.by[4] = way{Relays: [4]uint64{3}, N: 1}
		before := c.to.drops()[c.want]
		x.receive(c.to, slices.Clone(c.b), memberAt(1))
		if c.to.drops()[c.want] != before+1 || len(c.to.conn.out) > 0 || len(c.to.heard) > 0 {
			t.Errorf("%s: drops %v, sent %v, heard %v", c.name, c.to.drops(), c.to.conn.out, c.to.heard)
		}
	}
	x.receive(b, slices.Clone(good), memberAt(1))
	x.receive(b, slices.Clone(relayed), memberAt(1))
	if len(b.heard) != 1 || len(b.conn.out) != 1 || b.conn.out[0].to != memberAt(3) {
		t.Errorf("after all that: heard %v, sent %v", b.heard, b.conn.out)
	}
	b.conn.out = nil
	b.config.Control = nil
	x.receive(b, good, memberAt(1))
	if b.drops()[DropControl] != 1 {
		t.Errorf("gossip that nobody takes: %v", b.drops())
	}
}

// While keys are replaced both meshes are one.
func TestSetKeys(t *testing.T) {
	x := newMembers(t, 2, func(*Config) {})
	a, b := x.all[1], x.all[2]
	x.join(1, 2)
	next := testKey(t, 2)
	send := func(text string) {
		t.Helper()
		if err := a.SendControl([]byte(text), Addr{Node: 2}); err != nil {
			t.Fatal(err)
		}
		x.run()
	}
	a.SetKeys(Keys{envelope.Keyring{Primary: next}})
	send("too early")
	b.SetKeys(Keys{envelope.Keyring{Primary: testKey(t, 1), Accept: []envelope.Key{next}}})
	send("in time")
	b.want(t, "gossip", b.heard, "node 0000000000000001, 192.0.2.1:6783: in time")
	b.wantDrops(t, map[Reason]uint64{DropControlKey: 1})
	a.SetKeys(Keys{})
	if err := a.SendControl(nil, Addr{Node: 2}); !errors.Is(err, envelope.ErrKey) {
		t.Errorf("without a key: %v", err)
	}
}

// What is passed on is bounded, and control datagrams go before bulk.
func TestRelayBudget(t *testing.T) {
	now := time.Unix(1e9, 0)
	var free budget
	free.init(0)
	if !free.take(now, 1<<30, false) {
		t.Error("no limit, and yet refused")
	}
	var b budget
	b.init(80e6) // 10 MB/s, 1 MB at once
	count := func(n int, urgent bool) (taken int) {
		for b.take(now, n, urgent) {
			taken++
		}
		return taken
	}
	if n := count(1000, false); n != 1000 {
		t.Errorf("%d KB at once", n)
	}
	if n := count(1000, true); n != 1000 {
		t.Errorf("%d KB of control at once, after bulk", n)
	}
	now = now.Add(100 * time.Millisecond)
	if n := count(1, false); n != 0 {
		t.Errorf("%d bytes of bulk before the debt is paid", n)
	}
	now = now.Add(10 * time.Millisecond)
	if n := count(1000, false); n != 100 {
		t.Errorf("%d KB in 10 ms", n)
	}
	now = now.Add(time.Hour)
	if n := count(1000, false); n != 1000 {
		t.Errorf("%d KB at once after an hour", n)
	}
	now = now.Add(-time.Hour)
	if n := count(1000, false); n != 0 {
		t.Errorf("%d KB after the clock went back", n)
	}

	x := newMembers(t, 3, func(c *Config) { c.RelayLimit = 8000 })
	x.join(1, 2)
	x.join(2, 3)
	x.all[1].ways.by[3] = way{Relays: [4]uint64{2}, N: 1}
	for range 1000 {
		if err := x.all[1].SendControl(make([]byte, 1000), Addr{Node: 3}); err != nil {
			t.Fatal(err)
		}
	}
	x.run()
	s := x.all[2].Stats()
	if most := uint64(2 * leastBurst / 1000); s.ControlRelayed == 0 || s.ControlRelayed > most || s.ControlRelayed+s.Drops[DropControlLimit] != 1000 {
		t.Errorf("%d were relayed, of %d at most; drops %v", s.ControlRelayed, most, x.all[2].drops())
	}
}

// quiet is a Conn that keeps nothing.
type quiet struct{ loop }

func (*quiet) SendTo([]byte, netip.AddrPort, uint8) error { return nil }

func TestControlDoesNotAllocate(t *testing.T) {
	x := newMembers(t, 3, func(c *Config) {
		c.ControlConn = &quiet{}
		c.Control = func([]byte, Addr, time.Time) {}
	})
	b := x.all[2]
	b.Router.ways = &b.reaching
	if err := b.SetPeers([]Peer{{ID: 1, Key: privateOf(1).Public(), Endpoints: []netip.AddrPort{memberAt(1)}}, {ID: 3, Key: privateOf(3).Public(), Endpoints: []netip.AddrPort{memberAt(3)}}}); err != nil {
		t.Fatal(err)
	}
	for _, p := range b.current.Load().peers {
		p.course.way.Store(&way{Addr: memberAt(p.config.Load().ID)})
		p.course.proven.Store(true)
	}
	seal := func(h envelope.Header, body []byte) []byte {
		msg, err := b.keys.Load().Envelope.Seal(nil, h, body, b.config.Rand)
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	c := &controller{r: b.Router, stats: &b.controlStats}
	gossip := seal(envelope.Header{Kind: envelope.KindMesh, Source: 1}, make([]byte, 1000))
	pinged := envelope.Header{Kind: envelope.KindPing, Source: 1, Destination: 2}
	pingBody := envelope.Ping{Echo: 1}.Append(nil)
	pair, _ := b.pairWith(1)
	pair.Put(&pinged, pingBody)
	ping := seal(pinged, pingBody)
	relayed := seal(envelope.Header{Kind: envelope.KindMesh, Source: 1, Destination: 3, Relays: [4]uint64{2}, N: 1}, make([]byte, 1000))
	body := make([]byte, 1000)
	for name, f := range map[string]func(){
		"gossip":  func() { c.handle(gossip, memberAt(1), x.now) },
		"ping":    func() { c.handle(ping, memberAt(1), x.now) },
		"relayed": func() { relayed[3] = 0; c.handle(relayed, memberAt(1), x.now) },
		"sent":    func() { _ = b.SendControl(body, Addr{Node: 1}) },
	} {
		if n := testing.AllocsPerRun(100, f); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	b.wantDrops(t, map[Reason]uint64{})
}

// A member sends whatever it likes, others send what they have no key for: nothing panics, at most one datagram comes of one, and
// only to where it came from or where we find the next hop.
func FuzzControl(f *testing.F) {
	ping := envelope.Ping{Echo: 1}.Append(nil)
	f.Add([]byte{ControlType}, uint8(1), uint8(0), uint8(0))
	f.Add(ping, uint8(2), uint8(0), uint8(0))
	f.Add(ping, uint8(2), uint8(2), uint8(1))
	f.Add(envelope.Punch{Candidates: []netip.AddrPort{memberAt(1)}}.Append(nil), uint8(4), uint8(1), uint8(1))
	x := newMembers(f, 3, func(*Config) {})
	x.join(1, 2)
	x.join(2, 3)
	m := x.all[2]
	f.Fuzz(func(t *testing.T, b []byte, kind, n, at uint8) {
		x.tb = t
		m.conn.out, m.heard, m.ways.told = nil, nil, nil
		x.receive(m, append([]byte{ControlType}, b[:min(len(b), maxDatagram-1)]...), memberAt(1))
		if len(m.conn.out) > 0 || len(m.heard) > 0 || len(m.told()) > 0 {
			t.Fatalf("%x had an effect", b)
		}
		h := envelope.Header{Kind: envelope.Kind(kind), N: n, At: at, Source: 1, Destination: 3, Relays: [4]uint64{2, 5, 6, 7}}
		for i := min(int(n), len(h.Relays)); i < len(h.Relays); i++ {
			h.Relays[i] = 0
		}
		if n == 0 {
			h.Destination = 2
		}
		msg, err := m.keys.Load().Envelope.Seal(nil, h, b[:min(len(b), envelope.MaxBody)], m.config.Rand)
		if err != nil {
			return
		}
		x.receive(m, msg, memberAt(1))
		if len(m.conn.out) > 1 || len(m.conn.out) == 1 && m.conn.out[0].to != memberAt(1) && m.conn.out[0].to != memberAt(3) {
			t.Fatalf("%+v: sent %v", h, m.conn.out)
		}
	})
}

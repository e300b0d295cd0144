// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// harmed is a mesh of three hosts with a rogue on their network, who holds the token.
type harmed struct {
	*lab.Net
	t       *testing.T
	rogue   *rogue
	self    persona
	known   map[string][]byte // records, by name
	talks   []*lab.Talk
	pids    []int
	memory  []uint64
	lines   []int
	stolen  []net.Conn // that are left open
	begun   time.Time
	victims []*lab.Host // the first two, whose workloads talk
}

const (
	harmGrowth = 64 << 20 // bytes of memory by which a daemon may grow in all
	harmLines  = 100      // lines of its log in all
	harmOutage = 2 * time.Second
)

func underMember(t *testing.T) *harmed {
	t.Helper()
	m := lab.Mesh(t, 3, lab.Hosts(lab.OnlyV4))
	a := &harmed{Net: m, t: t, self: invent(0), begun: time.Now()}
	a.victims = slices.Clone(m.Hosts()[:2])
	attacker := m.Host("attacker", m.Segment)
	allReach(t, patience, m.Workloads...)
	var err error
	if a.rogue, err = newRogue(m.Token, attacker); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.rogue.conn.Close()
		for _, c := range a.stolen {
			_ = c.Close()
		}
	})
	s, err := a.rogue.greet(a.victims[0], a.self, streamProbe)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if a.known, err = a.rogue.records(a.victims[0], a.self); err != nil {
		t.Fatal(err)
	}
	for _, h := range a.victims {
		if a.known[h.Name()] == nil {
			t.Fatalf("no record of %s among %d", h.Name(), len(a.known))
		}
		st := ask[status](t, h, "status")
		a.pids = append(a.pids, st.PID)
		a.memory = append(a.memory, resident(t, st.PID))
		a.lines = append(a.lines, strings.Count(h.Log(), "\n"))
	}
	for _, pair := range [][2]int{{0, 1}, {1, 2}} {
		k, err := m.Talk(t.Context(), m.Workloads[pair[0]].Namespace, m.Workloads[pair[1]].Namespace, m.Workloads[pair[1]].V4)
		if err != nil {
			t.Fatal(err)
		}
		a.talks = append(a.talks, k)
	}
	return a
}

// node returns ID and boot of a host's node.
func (a *harmed) node(h *lab.Host) (wireRecord, string) {
	a.t.Helper()
	w, err := readRecord(a.known[h.Name()])
	if err != nil {
		a.t.Fatal(err)
	}
	return w, fmt.Sprintf("%016x-%016x", w.ID, w.Boot)
}

// pour sends what next returns to the victims in turn, so many a second for that long.
func (a *harmed) pour(perSecond int, d time.Duration, next func(i int, to *lab.Host) []byte) {
	a.t.Helper()
	start := time.Now()
	for i := 0; time.Since(start) < d; i++ {
		if due := start.Add(time.Duration(i) * time.Second / time.Duration(perSecond)); time.Now().Before(due) {
			time.Sleep(time.Until(due))
		}
		to := a.victims[i%len(a.victims)]
		_ = a.rogue.send(to, next(i, to)) // what has no room in the socket would be lost anyway
	}
}

// alive returns whether a host has another one for a member that answers, and by which way.
func (a *harmed) alive(h, other *lab.Host) error {
	for _, p := range ask[[]struct {
		Name  string `json:"name"`
		ID    string `json:"node_id"`
		State string `json:"state"`
	}](a.t, h, "peers") {
		if w, _ := a.node(other); p.ID == fmt.Sprintf("%016x", w.ID) {
			if p.State != "alive" {
				return fmt.Errorf("%s says of %s: %s", h.Name(), other.Name(), p.State)
			}
			return nil
		}
	}
	return fmt.Errorf("%s does not know %s", h.Name(), other.Name())
}

// logs waits until the log of a host has a line with all of the parts.
func (a *harmed) logs(h *lab.Host, parts ...string) {
	a.t.Helper()
	eventually(a.t, patience, func() error {
		for line := range strings.Lines(h.Log()) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return nil
			}
		}
		return fmt.Errorf("the log of %s has no line with %q", h.Name(), parts)
	})
}

// unharmed checks all that must be so whatever a member does.
func (a *harmed) unharmed(t *testing.T, since time.Time) {
	t.Helper()
	for i, k := range a.talks {
		time.Sleep(100 * time.Millisecond)
		if d := k.Outage(since); d > harmOutage {
			t.Errorf("talk %d: nothing was answered for %v", i, d)
		}
		if c := k.Count(since); c.Sent > 0 && c.Answered < c.Sent*9/10 {
			t.Errorf("talk %d: %d of %d datagrams were answered", i, c.Answered, c.Sent)
		}
	}
	eventually(t, patience, func() error {
		return errors.Join(a.alive(a.victims[0], a.victims[1]), a.alive(a.victims[1], a.victims[0]))
	})
	for i, h := range a.victims {
		if pid := ask[status](t, h, "status").PID; pid != a.pids[i] {
			t.Fatalf("the daemon of %s has another pid, %d, not %d", h.Name(), pid, a.pids[i])
		}
		now, lines := resident(t, a.pids[i]), strings.Count(h.Log(), "\n")-a.lines[i]
		t.Logf("%s: %d MiB of memory, %d before; %d lines more in the log", h.Name(), now>>20, a.memory[i]>>20, lines)
		if now > a.memory[i]+harmGrowth {
			t.Errorf("the daemon of %s takes %d MiB of memory, before it took %d", h.Name(), now>>20, a.memory[i]>>20)
		}
		if lines > harmLines {
			t.Errorf("%d lines were logged on %s", lines, h.Name())
		}
		if log := h.Log(); strings.Contains(log, "panic") || strings.Contains(log, a.Token) {
			t.Errorf("the log of %s tells of a panic, or the token", h.Name())
		}
	}
}

// TestHostileMember lets somebody who holds the token do what docs/security.md says that a member can try, to daemons whose workloads talk: their talk goes on, they
// stay members of each other, what they hold and log is bounded, and who did it is named where that can be known.
func TestHostileMember(t *testing.T) {
	a := underMember(t)
	r := a.rogue
	first, second := a.victims[0], a.victims[1]
	w1, process1 := a.node(first)
	w2, process2 := a.node(second)
	who := fmt.Sprintf("%016x", a.self.id)
	phase := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			since := time.Now()
			a.t = t
			f(t)
			a.unharmed(t, since)
		})
	}

	seen := a.Capture(first.Namespace, first.Link().Device(), 0)
	phase("records of invented nodes", func(*testing.T) {
		var batches [][]byte
		for i := 0; i < 1200; i += 4 {
			var raw [][]byte
			for range 4 {
				at, _ := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), weftPort).MarshalBinary()
				raw = append(raw, r.record(invent(0), wireRecord{Seq: 1, Boot: 1, Name: fmt.Sprintf("ghost%d", i), Endpoints: [][]byte{at}}))
			}
			batches = append(batches, r.changes(raw...))
		}
		a.pour(500, 2*time.Second, func(i int, to *lab.Host) []byte {
			w, _ := a.node(to)
			return r.seal(envelopeMesh, a.self.id, w.ID, batches[i/2%len(batches)])
		})
	})
	seen.Stop()
	phase("the name, the endpoints and the key of another", func(t *testing.T) {
		liar := invent(w2.ID)
		raw := r.record(liar, wireRecord{Seq: 1 << 40, Boot: 7, Name: second.Name(), PublicKey: w2.PublicKey, Endpoints: w2.Endpoints, Suites: w2.Suites, MTU: w2.MTU})
		a.pour(50, 2*time.Second, func(_ int, to *lab.Host) []byte {
			w, _ := a.node(to)
			return r.seal(envelopeMesh, liar.id, w.ID, r.changes(raw))
		})
		want := fmt.Sprintf("(%016x) claims the key of node", liar.id)
		for _, h := range a.victims {
			eventually(t, patience, func() error {
				if all := strings.Join(ask[status](t, h, "status").Warnings, "\n"); !strings.Contains(all, want) {
					return fmt.Errorf("%s does not warn of the claim: %q", h.Name(), all)
				}
				return nil
			})
		}
	})
	phase("old records, altered and not", func(t *testing.T) {
		later := w2
		later.Seq += 1000
		altered := append(bytes.Clone(a.known[second.Name()][:96]), encoded(later)...)
		a.pour(300, time.Second, func(i int, to *lab.Host) []byte {
			w, _ := a.node(to)
			return r.seal(envelopeMesh, a.self.id, w.ID, r.changes([][]byte{a.known[first.Name()], a.known[second.Name()], altered}[i%3]))
		})
		a.logs(first, "a node record was left out", who)
	})
	phase("death of those who live", func(*testing.T) {
		a.pour(200, 3*time.Second, func(i int, to *lab.Host) []byte {
			w, process := a.node(to)
			other := process1
			if process == process1 {
				other = process2
			}
			// To each: that the other does not answer, has left, or that it itself does not.
			victim, from := []string{other, other, process}[i/2%3], []string{process, other, other}[i/2%3]
			return r.seal(envelopeMesh, []uint64{a.self.id, w1.ID + w2.ID - w.ID}[i/6%2], w.ID, member([]byte{3, 5}[i/12%2], "Incarnation", 1+i/60, "Node", victim, "From", from))
		})
	})
	phase("death for good", func(t *testing.T) { // nobody can object to the last of numbers by a greater one
		for i := range 20 {
			for _, h := range a.victims {
				w, _ := a.node(h)
				_ = r.send(h, r.seal(envelopeMesh, a.self.id, w.ID, member([]byte{3, 5}[i/10], "Incarnation", 1<<32-1, "Node", []string{process1, process2}[i%2], "From", "x")))
			}
			time.Sleep(100 * time.Millisecond)
		}
		for range 5 {
			if err := errors.Join(a.alive(first, second), a.alive(second, first), a.alive(a.Hosts()[2], first)); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second)
		}
		a.logs(first, "an incarnation that nobody can have", who)
	})
	phase("control datagrams once more", func(t *testing.T) {
		recorded := slices.Concat(wire(seen, second.Link(), first.Link(), 16), wire(seen, a.Hosts()[2].Link(), first.Link(), 16))
		if len(recorded) < 10 {
			t.Fatalf("%d control datagrams were recorded", len(recorded))
		}
		s := newSender(t, r.from, first.Link().V4())
		start := time.Now()
		for i := 0; time.Since(start) < 2*time.Second; i++ {
			from := []netip.Addr{second.Link().V4(), netip.AddrFrom4([4]byte{198, 18, 7, byte(i)})}[i%2] // by somebody without the token
			s.send(t, raw(netip.AddrPortFrom(from, weftPort), first.Link().V4(), recorded[i/2%len(recorded)]))
			time.Sleep(200 * time.Microsecond)
		}
	})
	phase("pings and pongs in the name of another", func(t *testing.T) {
		before := drops(t, first)["control-forged"]
		a.pour(300, 2*time.Second, func(i int, to *lab.Host) []byte {
			w, _ := a.node(to)
			other := w1.ID + w2.ID - w.ID
			body := make([]byte, []int{24, 50, 42}[i/2%3])
			for j := range body {
				body[j] = byte(rand.Uint32())
			}
			if len(body) > 24 { // an address, mapped, and a port
				copy(body[8:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3, 4, 5})
			}
			return r.seal([]byte{envelopePing, envelopePong, envelopePunch}[i/2%3], other, w.ID, body)
		})
		if n := drops(t, first)["control-forged"] - before; n < 100 {
			t.Errorf("%d of some 300 are counted as forged", n)
		}
	})
	phase("connections left open", func(t *testing.T) {
		opened, refused := 0, 0
		for range 60 { // by a stranger, who says nothing
			for _, h := range a.victims {
				if c, err := r.dial(h); err == nil {
					a.stolen = append(a.stolen, c)
					opened++
				}
			}
		}
		time.Sleep(3500 * time.Millisecond) // until the silent ones are hung up on: they are as many as one address may have
		for range 40 {
			for _, h := range a.victims {
				s, err := r.greet(h, a.self, streamMessage)
				if err != nil {
					refused++
					continue
				}
				a.stolen = append(a.stolen, s)
			}
		}
		t.Logf("%d silent connections, %d streams, %d refused", opened, len(a.stolen)-opened, refused)
		if len(a.stolen)-opened == 0 {
			t.Error("no stream was opened")
		}
		a.logs(first, "a connection was closed", who)
		for i := range 400 { // QUIC begins, and nothing follows
			for _, h := range a.victims {
				w, _ := a.node(h)
				b := make([]byte, 1201)
				for j := range b {
					b[j] = byte(rand.Uint32())
				}
				copy(b, []byte{packetStream, 0xc3, 0, 0, 0, 1, 8})
				_ = r.send(h, r.seal(envelopeMesh, invent(0).id>>1+uint64(i), w.ID, b))
			}
		}
	})
	phase("a storm of what makes no sense", func(*testing.T) {
		junk := make([]byte, 1200)
		for i := range junk {
			junk[i] = byte(rand.Uint32())
		}
		var sealed [2][][]byte
		for i := range 2000 {
			for j, h := range a.victims {
				w, _ := a.node(h)
				b := slices.Clone(junk[:rand.IntN(len(junk))+1])
				b[0] = byte(i % 5)
				source, relays := a.self.id, []uint64(nil)
				if i%4 == 1 {
					source = rand.Uint64()>>1 | 1
				}
				if i%8 == 3 { // by the other victim and back
					w.ID, relays = w1.ID+w2.ID-w.ID, []uint64{w.ID}
				}
				sealed[j] = append(sealed[j], r.seal(byte(1+i/3%4), source, w.ID, b, relays...))
			}
		}
		a.pour(8000, 4*time.Second, func(i int, to *lab.Host) []byte {
			return sealed[i%2][i/2%len(sealed[0])]
		})
		a.logs(first, "makes no sense", who)
		a.logs(second, "makes no sense", who)
	})
	a.t = t
	allReach(t, patience, a.Workloads...)
	for _, k := range a.talks {
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
		c := k.Count(a.begun)
		t.Logf("%+v, longest silence %v", c, k.Outage(a.begun))
		if c.Answered < c.Sent*97/100 {
			t.Errorf("%d of %d datagrams were answered", c.Answered, c.Sent)
		}
	}
}

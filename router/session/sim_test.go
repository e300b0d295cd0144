// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	mrand "math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// sim is two nodes, a network that an adversary owns, and simulated time.
type sim struct {
	t        rapid.TB
	now      time.Time
	nodes    [2]*node
	keys     [2]PrivateKey
	configs  [2]PeerConfig // how the other node is added
	addrs    [2]netip.AddrPort
	rand     *mrand.ChaCha8
	way      flights
	order    int
	recorded []flight // what was ever sent, for replays

	fate func(to int, msg []byte) []flight // decides what becomes of a datagram; nil: arrives after 10 ms

	nextID  uint64
	sentBy  map[uint64]int // packet -> the node that sent it
	arrived map[uint64]int // packet -> how often
}

// flight is a datagram under way.
type flight struct {
	at    time.Time
	order int
	to    int
	msg   []byte
}

type flights []flight

func (f flights) Len() int { return len(f) }
func (f flights) Less(i, j int) bool {
	return f[i].at.Before(f[j].at) || f[i].at.Equal(f[j].at) && f[i].order < f[j].order
}
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)   { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	old := *f
	x := old[len(old)-1]
	*f = old[:len(old)-1]
	return x
}

const simDelay = 10 * time.Millisecond

func newSim(t rapid.TB, seed [32]byte, suiteA, suiteB Suite) *sim {
	s := &sim{
		t: t, now: epoch, addrs: [2]netip.AddrPort{addrA, addrB}, rand: mrand.NewChaCha8(seed),
		sentBy: map[uint64]int{}, arrived: map[uint64]int{},
	}
	for i := range s.keys {
		k, err := NewPrivateKey(s.rand)
		must(t, err)
		s.keys[i] = k
	}
	for i, suite := range []Suite{suiteA, suiteB} {
		s.configs[i] = PeerConfig{Public: s.keys[1-i].Public(), Preshared: PresharedKey{5}, Suite: suite}
	}
	s.start(0)
	s.start(1)
	return s
}

// start starts node i, or starts it again without any memory.
func (s *sim) start(i int) {
	m, err := New(Config{Private: s.keys[i], Rand: s.rand})
	must(s.t, err)
	p, err := m.AddPeer(s.configs[i])
	must(s.t, err)
	s.nodes[i] = &node{
		t: s.t, m: m, p: p, drops: map[error]int{},
		send: func(msg []byte) { s.transmit(1-i, msg) },
		got:  func(b []byte) { s.delivered(i, b) },
	}
}

func (s *sim) transmit(to int, msg []byte) {
	f := flight{at: s.now.Add(simDelay), to: to, msg: msg}
	s.recorded = append(s.recorded, f)
	if s.fate == nil {
		s.fly(f)
		return
	}
	for _, f := range s.fate(to, msg) {
		s.fly(f)
	}
}

func (s *sim) fly(f flight) {
	s.order++
	f.order = s.order
	f.msg = bytes.Clone(f.msg)
	heap.Push(&s.way, f)
}

// packet has node i send a packet and returns its number.
func (s *sim) packet(i int) uint64 {
	s.nextID++
	s.sentBy[s.nextID] = i
	b := binary.BigEndian.AppendUint64([]byte("packet: "), s.nextID)
	s.nodes[i].packet(s.now, b)
	return s.nextID
}

// delivered checks what node i took for a packet of the other: sent by the other, and for the first
// time.
func (s *sim) delivered(i int, b []byte) {
	s.t.Helper()
	if len(b) != 16 || !bytes.HasPrefix(b, []byte("packet: ")) {
		s.t.Fatalf("node %d accepted what nobody sent: %x", i, b)
	}
	id := binary.BigEndian.Uint64(b[8:])
	if from, ok := s.sentBy[id]; !ok || from == i {
		s.t.Fatalf("node %d accepted packet %d of node %d", i, id, from)
	}
	if s.arrived[id]++; s.arrived[id] > 1 {
		s.t.Fatalf("node %d accepted packet %d twice", i, id)
	}
}

// run lets time pass until end.
func (s *sim) run(end time.Time) {
	for {
		next, timer := end, -1
		if len(s.way) > 0 && s.way[0].at.Before(next) {
			next = s.way[0].at
		}
		for i, n := range s.nodes {
			if at := n.p.Next(); !at.IsZero() && at.Before(next) {
				next, timer = at, i
			}
		}
		if next.After(s.now) {
			s.now = next
		}
		switch {
		case timer >= 0:
			s.nodes[timer].tick(s.now)
		case len(s.way) > 0 && !s.way[0].at.After(next) && next.Before(end):
			f := heap.Pop(&s.way).(flight)
			s.nodes[f.to].datagram(s.now, f.msg, s.addrs[1-f.to])
			if used := s.nodes[f.to].m.table.used; used > 6 {
				s.t.Fatalf("node %d has %d indices for one peer", f.to, used)
			}
		default:
			s.now = end
			return
		}
	}
}

func drawSim(t *rapid.T) *sim {
	seed := [32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), rapid.Uint64().Draw(t, "seed")))
	suite := func(name string) Suite { return Suite(rapid.IntRange(0, 1).Draw(t, name)) }
	return newSim(t, seed, suite("suite of a"), suite("suite of b"))
}

// TestSimHostileNetwork lets an adversary lose, duplicate, delay, alter and replay datagrams while
// the nodes talk, restart and reset. Nothing is accepted that was not sent, and nothing twice. Once
// the network is sound again, both directions work within 30 s: 15 s until silence is noticed, up
// to 5.3 s until a handshake may be sent, twice if both sides were just about to.
func TestSimHostileNetwork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSim(t)
		for i := range s.configs {
			s.configs[i].Keepalive = time.Duration(rapid.SampledFrom([]int{0, 0, 25}).Draw(t, "keepalive")) * time.Second
			s.start(i)
		}
		loss := rapid.IntRange(0, 90).Draw(t, "loss %")
		mischief := rapid.IntRange(0, 60).Draw(t, "mischief %")
		dice := mrand.New(mrand.NewChaCha8([32]byte{rapid.Uint8().Draw(t, "dice")}))
		s.fate = func(to int, msg []byte) (out []flight) {
			if dice.IntN(100) >= loss {
				out = append(out, flight{at: s.now.Add(simDelay), to: to, msg: msg})
			}
			if dice.IntN(100) < mischief {
				f := flight{at: s.now.Add(time.Duration(dice.Int64N(int64(20 * time.Second)))), to: to, msg: bytes.Clone(msg)}
				switch dice.IntN(4) {
				case 0: // late copy
				case 1: // altered
					f.msg[dice.IntN(len(f.msg))] ^= 1 << dice.IntN(8)
				case 2: // cut
					f.msg = f.msg[:dice.IntN(len(f.msg))]
				case 3: // something from the past, to either side
					old := s.recorded[dice.IntN(len(s.recorded))]
					f.msg, f.to = old.msg, dice.IntN(2)
				}
				out = append(out, f)
			}
			return out
		}
		both := func(name string) int { return rapid.IntRange(0, 1).Draw(t, name) }
		for range rapid.IntRange(1, 25).Draw(t, "events") {
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0:
				s.start(both("restart"))
			case 1:
				s.nodes[both("reset")].p.Reset()
			case 2: // both initiate at the same time
				for _, n := range s.nodes {
					msg, _ := n.p.Initiate(nil, s.now)
					n.emit(msg)
				}
			case 3:
				s.run(s.now.Add(time.Duration(rapid.IntRange(1, 200).Draw(t, "s")) * time.Second))
			case 4, 5, 6:
				for range rapid.IntRange(1, 20).Draw(t, "packets") {
					s.packet(both("from"))
				}
			default:
				s.run(s.now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond))
			}
		}

		s.fate = nil
		healed := s.now
		var last [2]uint64
		for s.now.Before(healed.Add(30 * time.Second)) {
			for i := range last {
				last[i] = s.packet(i)
			}
			s.run(s.now.Add(500 * time.Millisecond))
		}
		for i, id := range last {
			if s.arrived[id] != 1 {
				t.Fatalf("30 s after the network healed, packets of node %d do not arrive: %+v; %+v",
					i, s.nodes[0].p.Stats(), s.nodes[1].p.Stats())
			}
		}
		// And from here on nothing is lost.
		before := s.now
		var ids []uint64
		for s.now.Before(before.Add(5 * time.Minute)) {
			ids = append(ids, s.packet(0), s.packet(1))
			s.run(s.now.Add(time.Second))
		}
		for _, id := range ids {
			if s.arrived[id] != 1 {
				t.Fatalf("packet %d was lost in a sound network", id)
			}
		}
	})
}

// TestSimSoundNetworkLosesNothing: over twelve minutes of traffic of any pattern, in a network that
// delays but does not lose, every packet arrives: rekeys and collisions cost nothing.
func TestSimSoundNetworkLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSim(t)
		var delay [2]time.Duration
		for i := range delay {
			delay[i] = time.Duration(rapid.IntRange(0, 400).Draw(t, "delay ms")) * time.Millisecond
		}
		dice := mrand.New(mrand.NewChaCha8([32]byte{rapid.Uint8().Draw(t, "dice")}))
		s.fate = func(to int, msg []byte) []flight {
			d := delay[to]/2 + time.Duration(dice.Int64N(int64(delay[to]/2)+1)) // reorders
			return []flight{{at: s.now.Add(d), to: to, msg: msg}}
		}
		var ids []uint64
		end := s.now.Add(12 * time.Minute)
		for s.now.Before(end) {
			talk := rapid.SampledFrom([][]int{{0}, {1}, {0, 1}}).Draw(t, "who")
			gap := time.Duration(rapid.SampledFrom([]int{500, 3000, 20_000}).Draw(t, "gap ms")) * time.Millisecond
			for stop := s.now.Add(time.Duration(rapid.IntRange(1, 400).Draw(t, "for s")) * time.Second); s.now.Before(stop); {
				for _, i := range talk {
					ids = append(ids, s.packet(i))
				}
				s.run(s.now.Add(gap))
			}
		}
		s.run(s.now.Add(30 * time.Second))
		for _, id := range ids {
			if s.arrived[id] != 1 {
				t.Fatalf("packet %d of %d from node %d was lost; drops %v and %v",
					id, len(ids), s.sentBy[id], s.nodes[0].drops, s.nodes[1].drops)
			}
		}
	})
}

// TestSimHandshakesPerHour: an hour of traffic takes some thirty handshakes, not more.
func TestSimHandshakesPerHour(t *testing.T) {
	for name, who := range map[string][]int{"one way": {0}, "both ways": {0, 1}} {
		s := newSim(t, [32]byte{1}, Weft, Weft)
		for _, n := range s.nodes { // starts with a collision
			msg, _ := n.p.Initiate(nil, s.now)
			n.emit(msg)
		}
		for range 3600 {
			for _, i := range who {
				s.packet(i)
			}
			s.run(s.now.Add(time.Second))
		}
		total := 0
		for _, f := range s.recorded {
			if f.msg[0] == TypeInitiation {
				total++
			}
		}
		if total < 29 || total > 33 {
			t.Errorf("%s: %d initiations in an hour", name, total)
		}
	}
}

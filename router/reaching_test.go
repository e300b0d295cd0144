// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// mesh is hosts that all know each other, whose records follow what they say of themselves a little later.
type mesh struct {
	t     *testing.T
	net   *routertest.Net
	shape shape
	hosts map[int]*host

	mu      sync.Mutex
	blocked map[[2]netip.AddrPort]bool // from, to
	events  map[int][]router.PathEvent
	news    chan struct{}
	stopped chan struct{}

	spreading sync.WaitGroup
}

// newMesh runs n hosts. cuts are pairs of which the first does not reach the second.
func newMesh(t *testing.T, seed uint64, n int, s shape, cuts ...[2]int) *mesh {
	t.Helper()
	m := &mesh{
		t: t, net: routertest.NewNet(seed), shape: s, hosts: map[int]*host{}, blocked: map[[2]netip.AddrPort]bool{},
		events: map[int][]router.PathEvent{}, news: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	m.net.SetFilter(func(from, to netip.AddrPort, _ []byte) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return !m.blocked[[2]netip.AddrPort{from, to}]
	})
	for i := 1; i <= n; i++ {
		m.hosts[i] = newHostWith(t, m.net, i, s, func(c *router.Config) {
			c.OnReach = func() {
				select {
				case m.news <- struct{}{}:
				default:
				}
			}
			c.OnPath = func(e router.PathEvent) {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.events[i] = append(m.events[i], e)
			}
		})
	}
	for _, c := range cuts {
		m.cut(c[0], c[1], true)
	}
	m.gossip()
	for _, h := range m.hosts {
		h.start()
	}
	m.spreading.Go(func() {
		for {
			select {
			case <-m.stopped:
				return
			case <-m.news:
				time.Sleep(100 * time.Millisecond)
				m.gossip()
			}
		}
	})
	return m
}

// gossip tells everybody everything.
func (m *mesh) gossip() {
	all := map[int]router.Peer{}
	for i, h := range m.hosts {
		p := peer(i, m.shape)
		p.Boot = 100 + uint64(i)
		r := h.Reach()
		p.Links = r.Links
		p.Endpoints = append(p.Endpoints, r.Observed...)
		all[i] = p
	}
	for i, h := range m.hosts {
		var peers []router.Peer
		for j := 1; j <= len(m.hosts); j++ {
			if j != i {
				peers = append(peers, all[j])
			}
		}
		if err := h.SetPeers(peers); err != nil {
			m.t.Error(err)
		}
	}
}

func (m *mesh) stop() {
	close(m.stopped)
	m.spreading.Wait()
	for _, h := range m.hosts {
		h.stop()
	}
}

// move gives a host another address.
func (h *host) move(to netip.AddrPort) {
	for _, c := range h.conns {
		c.Move(to)
	}
	if h.control != nil {
		h.control.Move(to)
	}
}

// cut makes datagrams from one host to the other get lost, or not any more.
func (m *mesh) cut(from, to int, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocked[[2]netip.AddrPort{at(from), at(to)}] = cut
}

// way returns how host i reaches host j.
func (m *mesh) way(i, j int) router.PeerStats {
	m.t.Helper()
	for _, p := range m.hosts[i].PeerStats() {
		if p.Name == fmt.Sprint("host", j) {
			return p
		}
	}
	m.t.Fatalf("host %d does not know host %d", i, j)
	return router.PeerStats{}
}

// told returns what OnPath of host i was told of host j.
func (m *mesh) told(i, j int) []string {
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []string
	for _, e := range m.events[i] {
		if e.Node == uint64(j) {
			list = append(list, fmt.Sprint(e.Path, " ", e.Via))
		}
	}
	return list
}

// flow sends a packet each 20 ms from i to j and back, and tells how long the longest silence was, and how many were lost.
type flow struct {
	m    *mesh
	i, j int
	sent int
}

const flowGap = 20 * time.Millisecond

// run keeps the flow up for d. It returns the longest silence at either end, and how many packets were sent and lost there.
func (f *flow) run(d time.Duration) (silence time.Duration, lost int) {
	a, b := f.m.hosts[f.i], f.m.hosts[f.j]
	a.delivered()
	b.delivered()
	var quietA, quietB time.Duration
	sent, arrived := 0, 0
	for range d / flowGap {
		f.sent++
		a.queues[0].Inject(udp(addr4(f.i, 9), addr4(f.j, 9), fmt.Sprint(f.sent)))
		b.queues[0].Inject(udp(addr4(f.j, 9), addr4(f.i, 9), fmt.Sprint(f.sent)))
		sent += 2
		time.Sleep(flowGap)
		quietA, quietB = quietA+flowGap, quietB+flowGap
		if n := len(a.delivered()); n > 0 {
			arrived += n
			quietA = 0
		}
		if n := len(b.delivered()); n > 0 {
			arrived += n
			quietB = 0
		}
		silence = max(silence, quietA, quietB)
	}
	return silence, sent - arrived
}

func inEachMesh(t *testing.T, n int, f func(t *testing.T, m *mesh), cuts ...[2]int) {
	t.Helper()
	for _, s := range shapes {
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, 1, n, s, cuts...)
				defer m.stop()
				f(t, m)
			})
		})
	}
}

// A path is shown as proven with its round trip, and nothing is told of it as it is what was to be expected.
func TestNodeIsReachedDirectly(t *testing.T) {
	inEachMesh(t, 2, func(t *testing.T, m *mesh) {
		establish(m.hosts[1], m.hosts[2])
		p := m.way(1, 2)
		if p.Path != router.PathUDP || p.Via != nil || p.RTT <= 0 || p.Why == "" || p.Endpoint != at(2) || p.PathSince.IsZero() {
			t.Errorf("%+v", p)
		}
		if told := m.told(1, 2); len(told) > 0 {
			t.Errorf("told %v", told)
		}
		time.Sleep(time.Second)
		if r := m.hosts[1].Reach(); fmt.Sprint(r) != "{[192.0.2.1:6783] false [2]}" {
			t.Errorf("reach %+v", r)
		}
	})
}

// The first address is dead, the third one lives: no packet waits for the retry of a handshake.
func TestRightAddressAtOnce(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		p := peer(2, shape{})
		p.Suite = a.PeerStats()[0].Suite
		p.Endpoints = []netip.AddrPort{at(101), at(102), at(2)}
		a.setPeers(p)
		start := time.Now()
		var all [][]byte
		for i := range 50 {
			all = append(all, udp(addr4(1, 9), addr4(2, 9), fmt.Sprint(i)))
			a.queues[0].Inject(all[i])
			time.Sleep(10 * time.Millisecond)
		}
		b.want(all...)
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v", took)
		}
		a.wantDrops(nil)
	})
}

// Two hosts that do not reach each other do so through the third, and no packet is lost to begin with.
func TestRelayIsFound(t *testing.T) {
	inEachMesh(t, 3, func(t *testing.T, m *mesh) {
		time.Sleep(3 * time.Second)
		a, b := m.hosts[1], m.hosts[2]
		p := udp(addr4(1, 9), addr4(2, 9), "hello")
		a.queues[0].Inject(p)
		time.Sleep(2 * time.Second)
		b.want(p)
		f := &flow{m: m, i: 1, j: 2}
		if silence, lost := f.run(20 * time.Second); silence > 2*flowGap || lost > 0 {
			t.Errorf("silence of %v, %d lost", silence, lost)
		}
		if w := m.way(1, 2); w.Path != router.PathRelay || fmt.Sprint(w.Via) != "[3]" {
			t.Errorf("%+v", w)
		}
		if told := fmt.Sprint(m.told(1, 2)); told != "[relay [3]]" {
			t.Errorf("told %v", told)
		}
		// What was in the way goes away.
		m.cut(1, 2, false)
		m.cut(2, 1, false)
		silence, lost := f.run(100 * time.Second)
		if silence > 2*flowGap || lost > 0 {
			t.Errorf("silence of %v, %d lost when the direct way was found", silence, lost)
		}
		if told := fmt.Sprint(m.told(1, 2)); told != "[relay [3] udp []]" {
			t.Errorf("told %v", told)
		}
	}, [2]int{1, 2}, [2]int{2, 1})
}

// One direction is blocked: both take the relay.
func TestOneWay(t *testing.T) {
	inEachMesh(t, 3, func(t *testing.T, m *mesh) {
		time.Sleep(3 * time.Second)
		f := &flow{m: m, i: 1, j: 2}
		if silence, _ := f.run(10 * time.Second); silence > 3*time.Second {
			t.Errorf("silence of %v", silence)
		}
		if silence, lost := f.run(20 * time.Second); silence > 2*flowGap || lost > 0 {
			t.Errorf("silence of %v, %d lost", silence, lost)
		}
		for _, w := range []router.PeerStats{m.way(1, 2), m.way(2, 1)} {
			if w.Path != router.PathRelay {
				t.Errorf("%+v", w)
			}
		}
	}, [2]int{2, 1})
}

// A relay dies, then the direct way: traffic goes on within 3 s.
func TestRelayDies(t *testing.T) {
	inEachMesh(t, 4, func(t *testing.T, m *mesh) {
		time.Sleep(4 * time.Second)
		f := &flow{m: m, i: 1, j: 2}
		f.run(5 * time.Second)
		dead := int(m.way(1, 2).Via[0])
		for i := 1; i <= 4; i++ {
			m.cut(i, dead, true)
			m.cut(dead, i, true)
		}
		if silence, _ := f.run(20 * time.Second); silence > 3*time.Second {
			t.Errorf("silence of %v", silence)
		}
		if w := m.way(1, 2); w.Path != router.PathRelay || int(w.Via[0]) != 7-dead {
			t.Errorf("%+v", w)
		}
	}, [2]int{1, 2}, [2]int{2, 1})
}

func TestDirectWayDies(t *testing.T) {
	inEachMesh(t, 3, func(t *testing.T, m *mesh) {
		time.Sleep(4 * time.Second)
		f := &flow{m: m, i: 1, j: 2}
		f.run(10 * time.Second)
		m.cut(1, 2, true)
		m.cut(2, 1, true)
		if silence, _ := f.run(10 * time.Second); silence > 3*time.Second {
			t.Errorf("silence of %v", silence)
		}
		if w := m.way(1, 2); w.Path != router.PathRelay || fmt.Sprint(w.Via) != "[3]" {
			t.Errorf("%+v", w)
		}
	})
}

// A host gets another address under traffic, and nobody is told.
func TestRoamingUnderTraffic(t *testing.T) {
	for _, s := range shapes {
		synctest.Test(t, func(t *testing.T) {
			m := newMesh(t, 1, 3, s)
			defer m.stop()
			time.Sleep(3 * time.Second)
			f := &flow{m: m, i: 1, j: 2}
			f.run(5 * time.Second)
			for round := range 3 {
				m.hosts[2].move(at(70 + round))
				if silence, _ := f.run(10 * time.Second); silence > 3*time.Second {
					t.Errorf("%v: silence of %v", s, silence)
				}
				if w := m.way(1, 2); w.Path != router.PathUDP || w.Endpoint != at(70+round) {
					t.Errorf("%v: %+v", s, w)
				}
			}
		})
	}
}

// Only one side sends, and it is the other one that moves: it is found, though it has nothing to say.
func TestRoamingOfTheSilent(t *testing.T) {
	inEachMesh(t, 3, func(t *testing.T, m *mesh) {
		time.Sleep(3 * time.Second)
		a, b := m.hosts[1], m.hosts[2]
		send := func(d time.Duration) (silence time.Duration) {
			b.delivered()
			var quiet time.Duration
			for range d / flowGap {
				a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "one way"))
				time.Sleep(flowGap)
				quiet += flowGap
				if len(b.delivered()) > 0 {
					quiet = 0
				}
				silence = max(silence, quiet)
			}
			return silence
		}
		send(20 * time.Second)
		b.move(at(70))
		if silence := send(10 * time.Second); silence > 3*time.Second {
			t.Errorf("silence of %v", silence)
		}
	})
}

// Many keys come and go on a path through a relay.
func TestRekeyThroughRelay(t *testing.T) {
	length := 3 * session.RejectAfterTime
	if raceDetector {
		length = session.RejectAfterTime + session.RekeyAfterTime/4
	}
	inEachMesh(t, 3, func(t *testing.T, m *mesh) {
		time.Sleep(3 * time.Second)
		f := &flow{m: m, i: 1, j: 2}
		f.run(2 * time.Second)
		if silence, lost := f.run(length); silence > 2*flowGap || lost > 0 {
			t.Errorf("silence of %v, %d lost", silence, lost)
		}
	}, [2]int{1, 2}, [2]int{2, 1})
}

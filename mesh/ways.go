// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"net/netip"
	"sync"
	"time"
)

// maxWays bounds how many nodes and addresses are remembered; of more, any is forgotten.
const maxWays = 2 * maxRecords

// ways is what this process has seen of how others can be reached. Its lock is a leaf: nothing
// is locked while it is held, and each packet that comes in takes it.
type ways struct {
	began time.Time // of moments; fixed
	mu    sync.Mutex
	nodes map[NodeID]*way
	tcp   map[netip.AddrPort]refusal // where TCP failed, and has not answered since
}

// refusal is how TCP failed at an address.
type refusal struct {
	at      time.Time
	refused bool // else there was no answer
}

// way is what was seen of one node. In a large mesh there are many, and to few of them there have been streams.
type way struct {
	udp    netip.AddrPort // where its packets came from last, directly; not valid: never
	direct [2]moment      // when one did, over IPv4 and over IPv6
	heard  moment         // when the last packet came, by whichever path
	met    uint64         // the process that introduced itself last
	tcp    *wayTCP        // nil: there is nothing to tell
}

// wayTCP is what was seen of a node by TCP.
type wayTCP struct {
	at       netip.AddrPort // where it answered last; not valid: nowhere
	boot     uint64         // the process that did
	answered moment
	checked  moment         // when it was last asked for a packet, see blocked.go
	silent   netip.AddrPort // where it answers while no packet comes; not valid: packets do
}

// byTCP returns what is known of TCP, for writing to.
func (n *way) byTCP() *wayTCP {
	if n.tcp == nil {
		n.tcp = &wayTCP{}
	}
	return n.tcp
}

// node returns the way of id, a new one if need be. Called with mu held.
func (w *ways) node(id NodeID) *way {
	n := w.nodes[id]
	if n == nil {
		if w.nodes == nil {
			w.nodes = make(map[NodeID]*way)
		}
		makeRoom(w.nodes)
		n = &way{}
		w.nodes[id] = n
	}
	return n
}

func makeRoom[K comparable, V any](m map[K]V) {
	for k := range m {
		if len(m) < maxWays {
			return
		}
		delete(m, k)
	}
}

// byTCP returns what is known of id by TCP.
func (w *ways) byTCP(id NodeID) wayTCP {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nodes[id]; n != nil && n.tcp != nil {
		return *n.tcp
	}
	return wayTCP{}
}

// udp returns where the packets of id came from last, directly; not valid: none did.
func (w *ways) udp(id NodeID) netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nodes[id]; n != nil {
		return n.udp
	}
	return netip.AddrPort{}
}

// met returns the process of id that introduced itself last; 0: none did.
func (w *ways) met(id NodeID) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nodes[id]; n != nil {
		return n.met
	}
	return 0
}

// answered notes that a node greeted by TCP.
func (w *ways) answered(id NodeID, boot uint64, at netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.node(id)
	t := n.byTCP()
	t.at, t.boot, t.answered, n.met = at, boot, momentSince(w.began, time.Now()), boot
	delete(w.tcp, at)
}

// greeted notes that a process of a node has introduced itself, which it has signed.
func (w *ways) greeted(id NodeID, boot uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.node(id).met = boot
}

// failed notes that nobody answered by TCP.
func (w *ways) failed(at netip.AddrPort, err error, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tcp == nil {
		w.tcp = make(map[netip.AddrPort]refusal)
	}
	makeRoom(w.tcp)
	w.tcp[at] = refusal{at: now, refused: errors.Is(err, errRefused)}
}

// another notes that another process answers for a node with these addresses: what TCP did when the one before died says nothing of it.
func (w *ways) another(addrs []netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range addrs {
		delete(w.tcp, a)
	}
}

// failedLately tells whether TCP failed at the address within tcpMemory.
func (w *ways) failedLately(at netip.AddrPort, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.tcp[at]
	return ok && now.Sub(r.at) < tcpMemory
}

// family tells the family of an address as an index.
func family(a netip.AddrPort) int {
	if a.Addr().Unmap().Is4() {
		return 0
	}
	return 1
}

// lastHeard returns when the last packet of a node came; zero: none did.
func (w *ways) lastHeard(id NodeID) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nodes[id]; n != nil && n.heard != 0 {
		now := time.Now() // by the clock as it is now
		return now.Add(n.heard.time(w.began).Sub(now))
	}
	return time.Time{}
}

// heard notes a packet, and tells whether it ends a silence.
func (w *ways) heard(from Addr, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.node(from.Node)
	n.heard = momentSince(w.began, at)
	if from.Addr.IsValid() {
		n.udp = netip.AddrPortFrom(from.Addr.Addr().Unmap(), from.Addr.Port())
		n.direct[family(n.udp)] = n.heard
	}
	if n.tcp == nil {
		return false
	}
	ended := n.tcp.silent.IsValid()
	n.tcp.silent = netip.AddrPort{}
	return ended
}

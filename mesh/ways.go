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
	mu    sync.Mutex
	nodes map[NodeID]*way
	tcp   map[netip.AddrPort]refusal // where TCP failed, and has not answered since
}

// refusal is how TCP failed at an address.
type refusal struct {
	at      time.Time
	refused bool // else there was no answer
}

// way is what was seen of one node.
type way struct {
	tcp        netip.AddrPort // where it answered by TCP last; not valid: nowhere
	boot       uint64         // the process that did
	answeredAt time.Time
	udp        netip.AddrPort // where its packets came from last, directly; not valid: never
	direct     [2]time.Time   // when one did, over IPv4 and over IPv6
	heardAt    time.Time      // when the last packet came, by whichever path
	checked    time.Time      // when it was last asked for one, see blocked.go
	met        uint64         // the process that introduced itself last
	silent     netip.AddrPort // where it answers by TCP while no packet comes; not valid: packets do
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

// of returns what is known of id.
func (w *ways) of(id NodeID) way {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nodes[id]; n != nil {
		return *n
	}
	return way{}
}

// answered notes that a node greeted by TCP.
func (w *ways) answered(id NodeID, boot uint64, at netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.node(id)
	n.tcp, n.boot, n.met, n.answeredAt = at, boot, boot, time.Now()
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
	if n := w.nodes[id]; n != nil {
		return n.heardAt
	}
	return time.Time{}
}

// heard notes a packet, and tells whether it ends a silence.
func (w *ways) heard(from Addr, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.node(from.Node)
	n.heardAt = at
	if from.Addr.IsValid() {
		n.udp = netip.AddrPortFrom(from.Addr.Addr().Unmap(), from.Addr.Port())
		n.direct[family(n.udp)] = at
	}
	ended := n.silent.IsValid()
	n.silent = netip.AddrPort{}
	return ended
}

// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
)

// peer is what this process knows of another node beside its record. Guarded by
// Mesh.mu. Invariant: there is one for every node that has a record or a living
// process, and for no other. In a large mesh there are many, and nearly all are alive.
type peer struct {
	living processes // a dead one lingers for some seconds
	loss   *loss     // nil: it is alive, and nothing is to be remembered of when it was not
	since  time.Time // when its status began
	taken  tokens    // its records, see flood.go
	at     int32     // in Mesh.alive, if status is Alive
	status Status
	seen   bool // it was alive, or has introduced itself
}

// loss is what is known of a node that is not alive.
type loss struct {
	last   netip.AddrPort // where gossip last reached it
	boot   uint64         // the process that was last found dead
	rumour uint64         // process whose death is being checked, see death.go; 0: none
	retry  retry          // of rejoin.go
}

// lost returns what is known of the node's not being alive, for writing to.
func (p *peer) lost() *loss {
	if p.loss == nil {
		p.loss = &loss{}
	}
	return p.loss
}

// wasLost tells whether the process was the last of the node's that was found dead.
func (p *peer) wasLost(boot uint64) bool { return p.loss != nil && p.loss.boot == boot }

// rumoured tells whether the death of the process is being checked.
func (p *peer) rumoured(boot uint64) bool { return p.loss != nil && p.loss.rumour == boot }

// forgetLoss drops what is of no more use once the node is alive.
func (p *peer) forgetLoss() {
	if l := p.loss; l != nil && p.status == Alive && !l.retry.busy && l.rumour == 0 && (l.boot == 0 || p.runs(l.boot)) {
		p.loss = nil
	}
}

// last returns where gossip last reached the node; not valid: nowhere.
func (p *peer) last() (at netip.AddrPort) {
	for is := range p.living.all() {
		at = is.addr
	}
	if !at.IsValid() && p.loss != nil {
		at = p.loss.last
	}
	return at
}

// noteAlive is memberlist's word that a process answers.
func (m *Mesh) noteAlive(id NodeID, boot uint64, addr netip.AddrPort) {
	m.mu.Lock()
	p := m.peer(id)
	if !p.runs(boot) {
		m.countMember(id, boot, 1)
		m.ways.another(append(m.addrsLocked(id), addr))
		if p.living.len() == 0 {
			m.aliveCount.Add(1)
		}
	}
	p.living.set(boot, addr)
	p.seen = true
	if l := p.loss; l != nil && l.rumour != 0 {
		old := l.rumour
		l.rumour = 0     // denied
		if old != boot { // another process took its place
			m.drop(id, p, old)
		}
	}
	m.refresh(id)
	m.mu.Unlock()
	m.changed()
	m.gossipSoon() // what waited while there was nobody
}

// peer returns the node's peer, a new one if need be. Called with mu held.
func (m *Mesh) peer(id NodeID) *peer {
	p := m.peers[id]
	if p == nil {
		p = &peer{status: Failed, since: time.Now()}
		m.peers[id] = p
		m.listAway(id, p)
	}
	return p
}

// refresh works out the node's status anew. Called with mu held.
func (m *Mesh) refresh(id NodeID) {
	p := m.peers[id]
	r, known := m.records.get(id)
	status := m.statusOf(p, r)
	changed := status != p.status
	if changed {
		m.listAlive(id, p, status)
		p.status, p.since = status, time.Now()
		m.listAway(id, p)
	}
	if !known && p.living.len() == 0 {
		delete(m.peers, id)
		m.unlistAway(id)
	}
	p.forgetLoss()
	if !changed {
		return
	}
	switch status {
	case Failed:
		p.lost().retry.restart(p.since)
	case Stopped: // it comes to us when it is back; a try now and then is for when it cannot
		l := p.lost()
		l.retry.wait, l.retry.next = maxRetry, p.since.Add(maxRetry)
	}
	if known {
		m.logStatus(r.Record, p)
	}
}

func (m *Mesh) statusOf(p *peer, r *storedRecord) Status {
	current := p.runs(r.Boot)
	n := p.living.len()
	successor := n > 1 || n == 1 && !current // a process that the record does not speak of yet
	switch {
	case r.State == StateLeft && !successor:
		return Left
	case r.State == StateStopped && !successor:
		return Stopped
	case n > 0:
		return Alive
	}
	return Failed
}

func (m *Mesh) logStatus(r Record, p *peer) {
	f := []zap.Field{zap.String("name", r.Name), zap.Stringer("node", r.ID)}
	switch p.status {
	case Alive:
		m.log.Info("node is alive", append(f, zap.Stringer("at", p.last()))...)
	case Failed:
		if p.last().IsValid() { // else it was stopped, and its new record came before its first packet
			m.log.Warn("node does not answer; it is tried again and again", append(f, zap.Stringer("at", p.last()))...)
		}
	case Stopped:
		m.log.Info("node has stopped for a while", f...)
	case Left:
		m.log.Info("node has left for good", f...)
	}
}

// countMember counts a process in or out. Called with mu held.
func (m *Mesh) countMember(id NodeID, boot uint64, sign int) {
	m.memberPast.add(m.memberSum, time.Now())
	m.memberSum += uint64(sign) * sumOf(appendEntry(nil, id, boot))
}

// listAlive puts the node on the list of those alive or takes it off. Called with mu held, before p has its new status.
func (m *Mesh) listAlive(id NodeID, p *peer, status Status) {
	switch {
	case status == Alive:
		p.at = int32(len(m.alive))
		m.alive = append(m.alive, id)
	case p.status == Alive:
		last := len(m.alive) - 1
		m.alive[p.at] = m.alive[last]
		m.peers[m.alive[p.at]].at = p.at
		m.alive = m.alive[:last]
	}
}

// listAway does the same for those that are to be tried. Called with mu held.
func (m *Mesh) listAway(id NodeID, p *peer) {
	if p.status == Failed || p.status == Stopped {
		m.away[id] = p
	} else {
		m.unlistAway(id)
	}
}

func (m *Mesh) unlistAway(id NodeID) {
	if _, listed := m.away[id]; !listed {
		return
	}
	if delete(m.away, id); len(m.away) == 0 {
		m.away = make(map[NodeID]*peer) // one that has held thousands stays as large
	}
}

// aliveOthers returns the nodes that are alive, this one not among them.
func (m *Mesh) aliveOthers() []NodeID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.alive)
}

// someAlive returns up to n of the nodes that are alive, chosen at random.
func (m *Mesh) someAlive(n int) (ids []NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.alive) <= n {
		return slices.Clone(m.alive)
	}
	for len(ids) < n {
		if id := m.alive[rand.N(len(m.alive))]; !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// memberNameOf returns memberlist's name of a node that is alive.
func (m *Mesh) memberNameOf(id NodeID) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.peers[id]; p != nil {
		for is := range p.living.all() {
			return memberName(id, is.boot), true
		}
	}
	return "", false
}

// aliveElsewhere returns a living process of the node other than boot.
func (m *Mesh) aliveElsewhere(id NodeID, boot uint64) (netip.AddrPort, uint64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.peers[id]; p != nil {
		for is := range p.living.all() {
			if is.boot != boot {
				return is.addr, is.boot, true
			}
		}
	}
	return netip.AddrPort{}, 0, false
}

// addrsOf returns where to dial the node, best first, at most maxDials of them.
func (m *Mesh) addrsOf(id NodeID) []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.addrsLocked(id)
}

func (m *Mesh) addrsLocked(id NodeID) []netip.AddrPort {
	var addrs []netip.AddrPort
	add := func(a netip.AddrPort) {
		if a.IsValid() && len(addrs) < maxDials && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	r, _ := m.records.get(id)
	w := m.ways.byTCP(id)
	if p := m.peers[id]; p != nil {
		if w.boot == r.Boot {
			add(w.at)
		}
		add(p.living.addr(r.Boot))
		add(w.at)
		for is := range p.living.all() {
			add(is.addr)
		}
		add(p.last())
	}
	for _, a := range r.Endpoints {
		add(a)
	}
	add(w.at)
	return addrs
}

// mergeRecords takes node records in, and passes on those that were new.
func (m *Mesh) mergeRecords(b []byte, to audience, from NodeID) {
	rs, insane, err := m.tuning.Shared.decodeRecords(b)
	if err != nil {
		m.oddity(from, "node records that make no sense were dropped", err)
		return
	}
	if insane > 0 {
		m.oddity(from, "a node record that makes no sense was left out", errWire)
	}
	rs, forged := m.screen(rs)
	if forged > 0 {
		m.oddity(from, "a node record was left out", errSignature)
	}
	var news []*storedRecord
	outbid, due, hasty := false, false, NodeID(0)
	m.mu.Lock()
	for _, r := range rs {
		switch {
		case r.ID == m.id:
			outbid = m.outbid(r) || outbid
		case r.Universe != m.universe.ID:
		case !m.mayChange(r.ID):
			hasty = r.ID
		case m.records.put(r):
			m.noteChange(r.ID)
			news = append(news, r)
			due = m.callOn(m.peer(r.ID)) || due
			m.refresh(r.ID)
		}
	}
	m.mu.Unlock()
	if hasty != 0 {
		m.oddity(hasty, "a node changes its record too often: some changes come late", errHasty)
	}
	if outbid {
		m.spreadOwn()
	}
	if len(news) == 0 {
		return
	}
	if due {
		m.pokeRejoin()
	}
	switch {
	case len(news) <= recordsAlone || to == everybody:
		m.spreadRecords(news)
	case to == askers:
		m.nudge()
	}
	m.changed()
}

// screen returns those of rs that may be news and that their nodes have made, and how many may be news but are forged. Signatures are
// checked outside of the lock, as that takes its time.
func (m *Mesh) screen(rs []*storedRecord) (good []*storedRecord, forged int) {
	m.mu.Lock()
	good = slices.DeleteFunc(rs, func(r *storedRecord) bool { return !m.records.wants(r) })
	m.mu.Unlock()
	n := len(good)
	good = slices.DeleteFunc(good, func(r *storedRecord) bool { return !m.authentic(r) })
	return good, n - len(good)
}

// Alive returns how many other nodes are alive.
func (m *Mesh) Alive() int { return int(m.aliveCount.Load()) }

// Node returns one node, false if it is not known.
func (m *Mesh) Node(id NodeID) (Node, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, known := m.records.get(id)
	if !known {
		return Node{}, false
	}
	return m.nodeOf(r), true
}

// nodeOf is the node whose record r is. Called with mu held.
func (m *Mesh) nodeOf(r *storedRecord) Node {
	p := m.peers[r.ID]
	if p == nil {
		return Node{Record: r.Record, Signed: r.raw, Status: Self, Since: m.started, Addr: m.addr}
	}
	n := Node{Record: r.Record, Signed: r.raw, Status: p.status, Since: p.since}
	if p.status == Failed {
		n.Heard = m.ways.lastHeard(r.ID)
	}
	if addrs := m.addrsLocked(r.ID); len(addrs) > 0 {
		n.Addr = addrs[0]
		if p.status == Alive {
			n.Blocked = m.blocked(r.ID, addrs)
		}
	}
	return n
}

// Nodes returns all nodes known, this one included, ordered by ID.
func (m *Mesh) Nodes() []Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	nodes := make([]Node, 0, len(m.records.byID))
	for _, r := range m.records.all() {
		nodes = append(nodes, m.nodeOf(r))
	}
	return nodes
}

// Version is another number whenever Nodes, Targets or Universe may return something else than before.
func (m *Mesh) Version() uint64 { return m.version.Load() }

// wasSeen tells whether a node has been alive for as long as this process runs. Called with mu held.
func (m *Mesh) wasSeen(id NodeID) bool {
	p := m.peers[id]
	return id == m.id || p != nil && p.seen
}

// forgotten drops the peer whose record made room for others. Called with mu held.
func (m *Mesh) forgotten(id NodeID) {
	if p := m.peers[id]; p != nil && p.living.len() == 0 {
		delete(m.peers, id)
		m.unlistAway(id)
	}
}

// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// What is blocked. Where TCP answers and no packet comes, by whichever path, though some were
// asked for, UDP is; where TCP fails and packets come directly after that, over the same IP, TCP is. Either is noted when a
// stream is opened, and ends with the first sign to the contrary.
const (
	udpFresh   = 10 * time.Second // a packet that came so lately says that UDP gets through
	udpAsks    = 6                // packets sent in vain, half a second apart, say that it does not
	udpRecheck = 30 * time.Second // between two checks of one node
	tcpVerdict = 10 * time.Minute // how long a failure of TCP counts
)

// blocked returns what does not get through to a node that is reached at addr, and what to do;
// empty: nothing is known to be blocked.
func (w *ways) blocked(id NodeID, addr netip.AddrPort, now time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.nodes[id]
	if n == nil {
		return ""
	}
	t := n.tcp
	if t == nil {
		t = &wayTCP{}
	}
	if t.silent.IsValid() {
		return fmt.Sprintf("UDP does not get through to %v, TCP does: let UDP port %d pass", t.silent, t.silent.Port())
	}
	r, failed := w.tcp[addr]
	switch {
	case !failed || now.Sub(r.at) > tcpVerdict || t.answered.time(w.began).After(r.at) || !n.direct[family(addr)].time(w.began).After(r.at):
		return ""
	case r.refused:
		return fmt.Sprintf("TCP is refused at %v, UDP gets through: let TCP port %d pass", addr, addr.Port())
	}
	return fmt.Sprintf("TCP does not get through to %v, UDP does: let TCP port %d pass", addr, addr.Port())
}

// toCheck tells whether it is time to ask a node that has answered by TCP for a packet, and notes that it is.
func (w *ways) toCheck(id NodeID, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.node(id)
	t := n.byTCP()
	if now.Sub(n.heard.time(w.began)) < udpFresh || now.Sub(t.checked.time(w.began)) < udpRecheck {
		return false
	}
	t.checked = momentSince(w.began, now)
	return true
}

// silence notes that UDP does not get through to a node that answers at addr by TCP, unless
// a packet came since. It tells whether that is news.
func (w *ways) silence(id NodeID, at netip.AddrPort, since time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.node(id)
	if !n.heard.time(w.began).Before(since) {
		return false
	}
	t := n.byTCP()
	news := t.silent != at
	t.silent = at
	return news
}

// blocked returns what does not get through to a node.
func (m *Mesh) blocked(id NodeID, addrs []netip.AddrPort) string {
	var first netip.AddrPort
	if len(addrs) > 0 {
		first = addrs[0]
	}
	return m.ways.blocked(id, first, time.Now())
}

// blockedLocked does so with mu held.
func (m *Mesh) blockedLocked(id NodeID) string { return m.blocked(id, m.addrsLocked(id)) }

// checkUDP asks a node that answers by TCP at addr for a packet.
func (m *Mesh) checkUDP(id NodeID, at netip.AddrPort) {
	begin := time.Now()
	if m.member.Load() == nil || !m.ways.toCheck(id, begin) {
		return
	}
	m.spawn(func(ctx context.Context) {
		for range udpAsks {
			if _, err := m.member.Load().Ping("", memberUDP(id)); err == nil || ctx.Err() != nil {
				return
			}
		}
		if m.ways.silence(id, at, begin) {
			m.log.Warn("blocked", zap.Stringer("node", id), zap.String("what", m.ways.blocked(id, at, time.Now())))
			m.changed()
		}
	})
}

// checkTCP finds out whether TCP is blocked where QUIC was quicker.
func (m *Mesh) checkTCP(id NodeID, at netip.AddrPort) {
	if m.ways.failedLately(at, time.Now()) {
		return
	}
	m.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, m.tuning.StreamTimeout)
		defer cancel()
		conn, err := m.network.Dial(ctx, at)
		if err == nil {
			m.closeQuietly(conn)
			return
		}
		m.ways.failed(at, dialError(at, err), time.Now())
		if b := m.ways.blocked(id, at, time.Now()); b != "" {
			if ok, _ := m.oddities.pass("tcp|"+id.String(), time.Now()); ok {
				m.log.Info("blocked", zap.Stringer("node", id), zap.String("what", b))
			}
		}
		m.changed()
	})
}

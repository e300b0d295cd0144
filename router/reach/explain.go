// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"fmt"
	"net/netip"
	"time"
)

// Explanation is what there is to tell about the way to a node.
type Explanation struct {
	Path   Path
	Proven bool          // a pong came back over it
	RTT    time.Duration // how long pongs take over it; 0: not known
	Since  time.Time     // that it is the path; zero: nothing is known but where it may be
	Why    string        // for people
}

// Explain tells how a node is reached and why. A node that is not known has none.
func (m *Machine) Explain(id uint64, at time.Time) Explanation {
	n := m.nodes[id]
	switch {
	case n == nil:
		return Explanation{Why: "not a node of this mesh"}
	case n.state == nil:
		return Explanation{Path: n.guess(), Why: notUsed}
	}
	s := n.state
	return Explanation{Path: s.path, Proven: s.proven, RTT: s.rtt(), Since: s.since.time(), Why: s.why(momentOf(at))}
}

const notUsed = "not used yet"

// why says why the path is what it is.
func (s *state) why(now moment) string {
	rtt := s.rtt()
	switch {
	case s.direct() && s.doubtful(now):
		return fmt.Sprintf("no answer from %v since %s", s.path.Addr, clock(s.doubt))
	case s.direct():
		return "answers, measured " + milliseconds(rtt)
	case s.roamed && !s.path.Relayed():
		return fmt.Sprintf("heard from %v", s.path.Addr)
	case len(s.cands) == 0 && s.proven:
		return "no address is known"
	case len(s.cands) == 0:
		return "no address is known, and no node that relays reaches it"
	}
	addr, since := s.silence()
	switch {
	case since.IsZero() && s.proven:
		return "an answer came by this way first"
	case since.IsZero():
		return notUsed
	case s.proven || s.path.Relayed():
		return fmt.Sprintf("no answer from %v since %s", addr, clock(since))
	case s.exam != nil:
		return fmt.Sprintf("no answer from %v since %s, looking for another way", addr, clock(since))
	}
	return fmt.Sprintf("no answer from %v since %s, and no node that relays reaches it", addr, clock(since))
}

// silence returns the address that should answer and does not, and since when: that which has answered last, or else the first.
func (s *state) silence() (addr netip.AddrPort, since moment) {
	var answered moment
	for _, c := range s.cands {
		if c.silent.IsZero() {
			continue
		}
		if since.IsZero() || c.answered.After(answered) {
			addr, since, answered = c.addr, c.silent, c.answered
		}
	}
	return addr, since
}

// clock returns the time of day.
func clock(t moment) string { return t.time().Local().Format(time.TimeOnly) }

// milliseconds returns d as people read it.
func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 10 {
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"flag"
	"testing"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

var simCrashes = flag.Int("sim.crashes", 3, "how many schedules TestCrashAtEveryCommit takes through all crashes")

// Schedules in which nothing else goes wrong, each as often as it has commits, and twice: with a crash right before a
// commit, and with one right after it.
func TestCrashAtEveryCommit(t *testing.T) {
	for seed := range uint64(*simCrashes) {
		total := crashing(seed, 0, healthy, nil).commits
		if total < 20 {
			t.Errorf("schedule %d has %d commits", seed, total)
		}
		for at := range total {
			for _, as := range []fault{failBefore, failAfter} {
				if s := crashing(seed, at+1, as, nil); s.err != nil {
					var trace bytes.Buffer
					crashing(seed, at+1, as, &trace)
					t.Fatalf("schedule %d, crash %d at commit %d of %d: %v\n%s", seed, as, at+1, total, s.err, trace.String())
				}
			}
		}
	}
}

// crashing runs a schedule of joins, allocations, moved addresses, a leave and two nodes that are gone, one of which two
// others forget at once, with a crash at a commit, 0 for none.
func crashing(seed uint64, at int, as fault, trace *bytes.Buffer) *sim {
	s := emptySim(seed)
	if trace != nil {
		s.trace = trace
	}
	s.chaos = chaos{most: 6, rest: time.Second, sniff: true}
	s.crashAt, s.crashAs = at, as
	s.found("10.32.0.0/28", 5, int(seed%4))
	up := func(f func(n *simNode)) {
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		if n.alloc != nil && !n.condemned {
			f(n)
			n.reap()
			s.check()
		}
	}
	for i := range s.nodes {
		s.nodes[i].start()
		s.lull()
	}
	for range 6 {
		up((*simNode).allocate)
		up((*simNode).release)
		s.lull()
	}
	leaver := s.nodes[1]
	for range 8 {
		if leaver.alloc != nil && !leaver.gone {
			leaver.leave()
			leaver.reap()
		}
		s.check()
		s.lull()
	}
	for _, dead := range []*simNode{s.nodes[4], s.nodes[3]} {
		dead.condemned = true
		if dead.alloc != nil {
			dead.down("gone for good")
		}
		s.check()
		for _, by := range s.nodes[:3] {
			if by.alloc != nil && !by.alloc.leaving && !s.dead[dead.id] {
				by.forget([]ring.Owner{dead.id}, true, false)
				s.check()
			}
		}
		up((*simNode).allocate)
		for range 6 {
			s.lull()
		}
	}
	if s.err == nil {
		s.settle()
	}
	return s
}

// lull lets a second go by in which nothing goes wrong, and whoever has crashed come up.
func (s *sim) lull() {
	for end := s.now.Add(time.Second); s.err == nil; {
		n := s.earliest()
		if (len(s.wire) == 0 || s.wire[0].at.After(end)) && (n == nil || n.timer.After(end)) {
			s.now = end
			break
		}
		s.proceed()
		for _, n := range s.nodes {
			for range len(n.waiting) + len(n.pending) + len(n.forgets) {
				n.progress()
			}
		}
		s.check()
	}
	for _, n := range s.nodes {
		if n.met && n.alloc == nil && !n.condemned && !n.gone {
			n.start()
			s.check()
		}
	}
}

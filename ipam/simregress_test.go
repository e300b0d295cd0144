// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// Schedules that the simulator has found, in short.

// A node was leaving, by a clock that was an hour ahead, and is started again instead.
func TestComesBackFromLeavingWithAnEarlierClock(t *testing.T) {
	back := func(t *testing.T) *sim {
		s := emptySim(1)
		s.chaos = chaos{most: 2, rest: -1}
		s.found("10.32.0.0/28", 2, 0)
		s.calm = true
		s.restart()
		s.pass(5 * time.Second)
		n := s.nodes[1]
		if n.alloc.ledger.effective.Len() == 0 {
			t.Fatal("node 2 has no addresses")
		}
		n.alloc.close()
		n.alloc.Wake()
		s.pass(2 * time.Second)
		if len(s.nodes[0].alloc.closed) != 1 {
			t.Fatal("node 1 has not heard that node 2 is leaving")
		}
		n.down("restart")
		n.skew = -time.Hour
		n.start()
		s.pass(2 * time.Second)
		return s
	}
	t.Run("and wants all addresses", func(t *testing.T) {
		s := back(t)
		total := 0
		for range 18 {
			if s.drainOne(s.nodes[1]) {
				total++
			} else {
				s.pass(2 * time.Second) // the last one may be on its way to the other
			}
		}
		if total != 14 || s.err != nil {
			t.Errorf("%d addresses of 14, %v", total, s.err)
		}
	})
	t.Run("and another one leaves", func(t *testing.T) {
		s := back(t)
		for range 10 {
			s.nodes[0].leave()
			s.pass(time.Second)
			if s.nodes[0].gone {
				return
			}
		}
		t.Error("it has to stay: ", s.err)
	})
}

// What is asked for by force does not wait for what was asked for before and cannot be had.
func TestForceDoesNotQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/24", 4)
		n4 := nodes[3]
		n4.allocate(t.Context(), "w", 5)
		for _, m := range nodes[:3] {
			c.crash(m)
		}
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- n4.Forget(ctx, ForgetRequest{Dead: []ring.Owner{1}}) }()
		time.Sleep(time.Minute)
		c.sure(n4, time.Minute, ForgetRequest{Dead: []ring.Owner{3}, Force: true})
		cancel()
		var e *ForgetError
		if err := <-done; !errors.As(err, &e) {
			t.Errorf("error %v", err)
		}
	})
}

// Who comes up again with a proposal that was not decided hears others before it finishes that, even if it could alone.
func TestStartDoesNotFinishProposalsAtOnce(t *testing.T) {
	s := emptySim(1)
	s.chaos = chaos{most: 3, rest: -1}
	s.found("10.32.0.0/28", 3, 0)
	s.calm = true
	s.restart()
	s.pass(5 * time.Second)
	n := s.nodes[0]
	ballot := ring.Ballot{Count: 7, Node: 2}
	if err := n.alloc.change(func(x *edit) {
		if err := x.edit(func(r *ring.Ring) error {
			_, err := r.Accept(ballot, ring.Retirement{Dead: 3, Heir: 2, By: 2, At: 1})
			return err
		}); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	s.nodes[2].condemned = true
	s.nodes[2].down("gone for good")
	n.down("restart")
	n.start()
	for _, wait := range []time.Duration{0, 2 * time.Second} {
		s.pass(wait)
		if v := n.ledger().ring.Votes(); len(n.ledger().ring.Log()) > 0 || v.Promised != ballot {
			t.Errorf("after %v the log is %v, and the vote %+v", wait, n.ledger().ring.Log(), v)
		}
	}
	if s.pass(10 * time.Second); !s.dead[3] || s.err != nil {
		t.Errorf("not finished: %v", s.err)
	}
}

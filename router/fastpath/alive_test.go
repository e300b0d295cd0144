// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// asker drives a Machine whose peer may be dead, or reached by no kernel path any more.
type asker struct {
	t         *testing.T
	m         *Machine
	now       time.Time
	dead      bool // nothing is answered
	deaf      bool // nothing is answered by kernel paths
	asks      int
	switches  []Action
	switchedA []time.Time
}

func newAsker(t *testing.T) *asker {
	a := &asker{t: t, m: New(Config{Rand: source{rand.New(rand.NewPCG(1, 2))}, Asks: true}), now: time.Unix(1e9, 0)}
	a.m.Set([]Candidate{candidateOf(2, VXLAN)}, a.now)
	return a
}

// run lets time pass, with traffic, in steps of 2 ms; answers take 2 ms.
func (a *asker) run(d time.Duration) {
	type answer struct {
		echo uint64
		at   time.Time
	}
	var due []answer
	for end := a.now.Add(d); a.now.Before(end); a.now = a.now.Add(2 * time.Millisecond) {
		a.m.Active(2, a.now)
		for len(due) > 0 && !due[0].at.After(a.now) {
			a.m.Proof(2, due[0].echo, a.now)
			due = due[1:]
		}
		do, _ := a.m.Step(a.now)
		for _, x := range do {
			switch {
			case x.Kind == Switch:
				a.switches, a.switchedA = append(a.switches, x), append(a.switchedA, a.now)
			case x.Way == UDP:
				a.asks++
				if !a.dead {
					due = append(due, answer{x.Echo, a.now.Add(2 * time.Millisecond)})
				}
			case !a.dead && !a.deaf:
				due = append(due, answer{x.Echo, a.now.Add(2 * time.Millisecond)})
			}
		}
	}
}

// A path that is silent is left only if the peer answers otherwise.
func TestTheDeadAnswerNobody(t *testing.T) {
	a := newAsker(t)
	a.run(10 * time.Second)
	if len(a.switches) != 1 || a.switches[0].Way != VXLAN || a.asks != 0 {
		t.Fatalf("%+v, and %d asks of somebody who answers", a.switches, a.asks)
	}
	a.dead = true
	a.run(time.Minute)
	if s := a.m.Status(2); len(a.switches) != 1 || s.Path != VXLAN || !strings.HasPrefix(s.Why, "kept, though nothing answers since ") || a.asks < 100 || a.asks > 400 {
		t.Fatalf("%+v; %+v; %d asks", a.switches, s, a.asks)
	}
	a.dead = false // and answers by its path as well
	a.run(10 * time.Second)
	if s := a.m.Status(2); len(a.switches) != 1 || strings.HasPrefix(s.Why, "kept") {
		t.Fatalf("%+v; %+v", a.switches, s)
	}
	if n := len(a.m.echoes); n > 10 {
		t.Errorf("%d echoes are kept in mind", n)
	}
	a.deaf = true
	from := a.now
	a.run(5 * time.Second)
	if len(a.switches) != 2 || a.switches[1].Way != UDP || a.switchedA[1].Sub(from) > 1800*time.Millisecond {
		t.Fatalf("%+v, after %v", a.switches, a.switchedA[1].Sub(from))
	}
}

// One that comes back, and does not answer by its path any more, is found out soon.
func TestTheDeadComeBackChanged(t *testing.T) {
	a := newAsker(t)
	a.run(10 * time.Second)
	a.dead = true
	a.run(10 * time.Second)
	a.dead, a.deaf = false, true
	from := a.now
	a.run(5 * time.Second)
	if len(a.switches) != 2 || a.switches[1].Way != UDP || a.switchedA[1].Sub(from) > 1200*time.Millisecond {
		t.Fatalf("%+v, %v", a.switches, a.switchedA)
	}
	a.m.Set(nil, a.now)
	if len(a.m.echoes) != 0 {
		t.Errorf("%d echoes of nobody", len(a.m.echoes))
	}
}

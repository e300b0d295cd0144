// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestExplain(t *testing.T) {
	log := []Retirement{{Dead: 1, Heir: 2, By: 4, At: 10}, {Dead: 5, Heir: 6, By: 4, At: 20}, {Dead: 2, Heir: 3, By: 4, At: 30}}
	retired := func(i int) Step {
		return Step{Kind: Retired, From: log[i].Dead, Owner: 3, Retirements: log[i : i+1]}
	}
	v := func(epoch, count uint32) Version { return Version{epoch, count} }
	for _, c := range []struct {
		name string
		reg  Register
		want []Step
	}{
		{"unknown", Register{}, nil},
		{"seeded", Register{v(0, 1), 4, 0}, []Step{{Kind: Seeded, Version: v(0, 1), Owner: 4}}},
		{"adopted", Register{v(0, 2), 4, 0}, []Step{{Kind: Seeded, Version: v(0, 1)}, {Kind: Adopted, Version: v(0, 2), Owner: 4}}},
		{"granted", Register{v(0, 2), 4, 8}, []Step{
			{Kind: Seeded, Version: v(0, 1), Owner: 8}, {Kind: Granted, Version: v(0, 2), Owner: 4, From: 8},
		}},
		{"granted after adoption", Register{v(0, 3), 4, 8}, []Step{
			{Kind: Seeded, Version: v(0, 1)},
			{Kind: Adopted, Version: v(0, 2), Owner: 8},
			{Kind: Granted, Version: v(0, 3), Owner: 4, From: 8},
		}},
		{"claimed", Register{v(0, 3), 4, 0}, []Step{{Kind: Seeded, Version: v(0, 1)}, {Kind: Claimed, Version: v(0, 3), Owner: 4}}},
		{"claimed after adoption", Register{v(0, 8), 4, 0}, []Step{
			{Kind: Seeded, Version: v(0, 1)},
			{Kind: Adopted, Version: v(0, 2)},
			{Kind: Passed, Times: 2},
			{Kind: Claimed, Version: v(0, 8), Owner: 4},
		}},
		{"granted on", Register{v(0, 6), 4, 8}, []Step{
			{Kind: Seeded, Version: v(0, 1)},
			{Kind: Passed, Times: 1},
			{Kind: Claimed, Version: v(0, 5), Owner: 8},
			{Kind: Granted, Version: v(0, 6), Owner: 4, From: 8},
		}},
		{"owned by one who is retired", Register{v(0, 1), 1, 0}, []Step{{Kind: Seeded, Version: v(0, 1), Owner: 1}, retired(0)}},
		{"granted by one who is retired", Register{v(0, 2), 4, 2}, []Step{
			{Kind: Seeded, Version: v(0, 1), Owner: 2}, {Kind: Granted, Version: v(0, 2), Owner: 4, From: 2}, retired(2),
		}},
		{"granted between two who are retired", Register{v(0, 2), 1, 5}, []Step{
			{Kind: Seeded, Version: v(0, 1), Owner: 5}, {Kind: Granted, Version: v(0, 2), Owner: 1, From: 5}, retired(0), retired(1),
		}},
		{"taken over", Register{v(2, 1), 6, 0}, []Step{{Kind: TakenOver, Version: v(2, 1), Owner: 6, Retirements: log[:2]}}},
		{"taken over, then the heir died", Register{v(1, 1), 2, 0}, []Step{
			{Kind: TakenOver, Version: v(1, 1), Owner: 2, Retirements: log[:1]}, retired(2),
		}},
		{"taken over and granted", Register{v(3, 2), 4, 3}, []Step{
			{Kind: TakenOver, Version: v(3, 1), Owner: 3, Retirements: log}, {Kind: Granted, Version: v(3, 2), Owner: 4, From: 3},
		}},
		{"taken over and claimed by another", Register{v(2, 3), 4, 0}, []Step{
			{Kind: TakenOver, Version: v(2, 1), Owner: 6, Retirements: log[:2]}, {Kind: Claimed, Version: v(2, 3), Owner: 4},
		}},
		{"taken over, by another log", Register{v(2, 1), 9, 0}, []Step{{Kind: TakenOver, Version: v(2, 1), Owner: 9}}},
		{"taken over, by a longer log", Register{v(4, 3), 9, 0}, []Step{
			{Kind: TakenOver, Version: v(4, 1)}, {Kind: Claimed, Version: v(4, 3), Owner: 9},
		}},
		{"granted, by a count that nobody writes", Register{v(1, 0), 4, 8}, []Step{
			{Kind: Granted, Version: v(1, 0), Owner: 4, From: 8},
		}},
	} {
		n := &naive{slots: slots{c.reg}, log: log}
		if got := n.ring(t).Explain(0); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n%+v, want\n%+v", c.name, got, c.want)
		}
	}
	if got := New(1).Explain(1); got != nil {
		t.Errorf("a slot behind the end: %v", got)
	}
}

// Whatever is told of a slot has happened to it, in this order, and nothing has happened to it besides.
func TestExplainTellsWhatHappened(t *testing.T) {
	seen := make(map[Kind]int)
	often(t, 3, func(t *rapid.T) {
		h := newHistory(t)
		h.run(t)
		all := merged(t, h.replicas...)
		for s := range h.truth {
			steps := all.Explain(uint32(s))
			for _, step := range steps {
				seen[step.Kind]++
			}
			if why := h.denies(s, steps); why != "" {
				t.Fatalf("slot %d: %s; told %+v, happened %+v, log %v", s, why, steps, h.writes[s], all.Log())
			}
		}
	})
	for k := Seeded; k <= Retired; k++ {
		if seen[k] == 0 {
			t.Errorf("no slot was %v: the histories are too simple", k)
		}
	}
}

// denies says what is wrong with the steps told of a slot.
func (h *history) denies(slot int, steps []Step) string {
	writes := h.writes[slot]
	now := writes[len(writes)-1].reg
	// Of earlier epochs nothing is held.
	writes = writes[slices.IndexFunc(writes, func(w write) bool { return w.reg.Version.Epoch == now.Version.Epoch }):]
	for _, s := range steps {
		switch s.Kind {
		case Retired:
			if len(writes) > 0 {
				return "a write is missing before the retirements"
			}
			if len(s.Retirements) != 1 || !slices.Contains(h.decided, s.Retirements[0]) ||
				s.Retirements[0].Dead != s.From || s.Owner != h.decided[len(h.decided)-1].Heir {
				return "no such retirement"
			}
			continue
		case Passed:
			for range s.Times {
				if len(writes) < 2 || writes[0].kind != Granted || writes[1].kind != Claimed {
					return "not so often passed on"
				}
				writes = writes[2:]
			}
			continue
		case Claimed:
			if len(writes) > 0 && writes[0].kind == Granted {
				writes = writes[1:]
			}
		}
		if len(writes) == 0 {
			return "more told than happened"
		}
		w := writes[0]
		if w.kind != s.Kind || w.reg.Version != s.Version || s.Owner != 0 && s.Owner != w.reg.Owner || s.From != w.reg.From {
			return "not what was written: " + s.Kind.String()
		}
		if w.kind == TakenOver && (s.Owner == 0 || s.Retirements[len(s.Retirements)-1].Heir != s.Owner) {
			return "taken over by nobody, or another"
		}
		if w.kind == TakenOver && !slices.ContainsFunc(s.Retirements, func(e Retirement) bool { return e.Dead == w.dead }) {
			return "taken over from somebody else"
		}
		writes = writes[1:]
	}
	if len(writes) > 0 {
		return "less told than happened"
	}
	return ""
}

// Registers that nobody can legally have written are explained somehow.
func TestExplainArbitraryRings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := anyNaive(t, sizes().Draw(t, "size"), "ring")
		n.slots[0] = Register{Version{rapid.Uint32().Draw(t, "epoch"), rapid.Uint32().Draw(t, "count")}, 3, rapid.SampledFrom([]Owner{0, 1}).Draw(t, "from")}
		r := n.ring(t)
		for s := range n.slots {
			if steps := r.Explain(uint32(s)); len(steps) == 0 && n.slots[s].Version.Count > 1 {
				t.Fatalf("slot %d, %v, is not explained", s, n.slots[s])
			}
		}
	})
}

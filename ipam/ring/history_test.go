// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"slices"

	"pgregory.net/rapid"
)

// history drives replicas through legal writes and merges. Node i+1 writes on replica i only, and only what nobody else
// may write at the time: who may is known from truth, the newest register of each slot wherever it is. How nodes come to
// know that without being told is package ipam's matter, not this one's.
type history struct {
	replicas []*Ring
	oracle   []*naive
	seed     []Owner // nodes, and names that nodes are still to adopt
	adopted  map[Owner]bool
	truth    slots
	writes   [][]write // of each slot, from its seed on
	decided  []Retirement
	proposed map[proposal]Retirement
}

// write is one write to one slot.
type write struct {
	kind Kind
	reg  Register
	dead Owner // of a takeover: whose slot it was
}

type proposal struct {
	instance int
	ballot   Ballot
}

const firstName = Owner(100) // the name of node i is firstName+i

func newHistory(t *rapid.T) *history {
	n := rapid.SampledFrom([]int{1, 2, 3, 5, 8}).Draw(t, "nodes")
	h := &history{adopted: make(map[Owner]bool), proposed: make(map[proposal]Retirement)}
	for i := range n {
		o := Owner(i + 1)
		if rapid.IntRange(0, 2).Draw(t, "named in the seed") == 0 {
			o += firstName
		}
		h.seed = append(h.seed, o)
	}
	seed, err := Seed(uint32(rapid.IntRange(n, 48).Draw(t, "size")), h.seed)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		h.replicas = append(h.replicas, seed.Clone())
		h.oracle = append(h.oracle, naiveOf(seed))
	}
	h.truth = naiveOf(seed).slots
	h.writes = make([][]write, len(h.truth))
	for s, reg := range h.truth {
		h.writes[s] = []write{{kind: Seeded, reg: reg}}
	}
	return h
}

// run takes steps, checking after each of them.
func (h *history) run(t *rapid.T) {
	for range rapid.SampledFrom([]int{0, 3, 10, 30, 100, 300}).Draw(t, "steps") {
		i := rapid.IntRange(0, len(h.replicas)-1).Draw(t, "at")
		was := h.oracle[i].clone()
		h.step(t, i)
		check(t, h.replicas[i], h.oracle[i])
		if !h.oracle[i].notBehind(was) {
			t.Fatalf("a step took replica %d back", i)
		}
		if m := merged(t, was.ring(t), h.replicas[i]); !m.Equal(h.replicas[i]) {
			t.Fatalf("replica %d does not win over what it was before", i)
		}
	}
}

func (h *history) step(t *rapid.T, i int) {
	self := Owner(i + 1)
	what := rapid.SampledFrom([]string{
		"merge", "merge", "merge", "grant", "grant", "claim", "claim", "revoke", "adopt",
		"take over", "take over", "retire", "promise", "accept",
	}).Draw(t, "what")
	if what != "merge" && h.dead(self) {
		return // whoever is retired writes no more
	}
	r, s := h.replicas[i], h.oracle[i]
	switch what {
	case "merge":
		h.merge(t, i, rapid.IntRange(0, len(h.replicas)-1).Draw(t, "with"))
	case "grant":
		to := Owner(rapid.IntRange(1, len(h.replicas)).Draw(t, "to"))
		h.write(t, i, write{kind: Granted, reg: Register{Owner: to, From: self}}, func(x Register) bool { return x.Owner == self && x.From == 0 && to != self && !s.retired(to) },
			func(iv Interval) (error, bool) { return r.Grant(self, to, iv), s.grant(self, to, iv) })
	case "claim": // the granter's whole ring comes with it
		granters := []Owner{Owner(rapid.IntRange(1, len(h.replicas)).Draw(t, "anybody"))}
		for _, x := range h.truth {
			if x.Owner == self && x.From != 0 {
				granters = append(granters, x.From)
			}
		}
		from := rapid.SampledFrom(granters).Draw(t, "granter")
		h.merge(t, i, int(from-1))
		h.write(t, i, write{kind: Claimed, reg: Register{Owner: self}}, func(x Register) bool {
			return x.Owner == self && x.From == from && !s.retired(from)
		}, func(iv Interval) (error, bool) { return r.Claim(self, iv), s.claim(self, iv) })
	case "revoke":
		h.write(t, i, write{kind: Claimed, reg: Register{Owner: self}}, func(x Register) bool { return x.From == self },
			func(iv Interval) (error, bool) { return r.Revoke(self, iv), s.revoke(self, iv) })
	case "adopt":
		if name := self + firstName; slices.Contains(h.seed, name) && !h.adopted[name] {
			h.adopted[name] = true
			for _, iv := range r.OwnedBy(name) {
				for n := iv.First; n <= iv.Last; n++ {
					if h.truth[n].Owner != name {
						return // taken over meanwhile
					}
				}
				if err := r.Adopt(name, self, iv); err != nil || !s.adopt(name, self, iv) {
					t.Fatalf("adopting %v: %v", iv, err)
				}
				h.wrote(i, iv, write{kind: Adopted})
			}
		}
	case "take over":
		for j := range h.replicas { // the survey
			h.merge(t, i, j)
		}
		for _, iv := range r.Where(func(x Register) bool { return r.Retired(x.Owner) != nil || r.Retired(x.From) != nil }) {
			if !rapid.Bool().Draw(t, "this one") {
				continue
			}
			was := s.clone()
			if err, ok := r.TakeOver(self, iv), s.takeOver(self, iv); (err == nil) != ok {
				t.Fatalf("taking over %v with %v: %v, the oracle says %v", iv, s.log, err, ok)
			} else if !ok {
				continue
			}
			for n := iv.First; n <= iv.Last; n++ {
				dead := was.slots[n].Owner
				if !was.retired(dead) {
					dead = was.slots[n].From
				}
				h.wrote(i, Interval{n, n}, write{kind: TakenOver, dead: dead})
			}
		}
	case "retire":
		h.retire(t, i)
	case "promise":
		b := Ballot{rapid.Uint32Range(0, 3).Draw(t, "ballot"), Owner(rapid.IntRange(1, 3).Draw(t, "ballot of"))}
		if r.Promise(b) != s.promise(b) {
			t.Fatalf("promising %v to %v", b, s.votes)
		}
	case "accept":
		h.accept(t, i)
	}
}

func (h *history) dead(o Owner) bool {
	return slices.ContainsFunc(h.decided, func(e Retirement) bool { return e.Dead == o })
}

func (h *history) merge(t *rapid.T, i, j int) {
	log := h.oracle[i].clone()
	news, err := h.replicas[i].Merge(h.replicas[j])
	if err != nil || len(news.Conflicts) > 0 || news.Split != nil {
		t.Fatalf("merge of reachable rings: %+v, error %v", news, err)
	}
	want, _ := h.oracle[i].merge(h.oracle[j].slots)
	checkSet(t, news.Slots, want)
	if changed, _ := log.mergeLog(h.oracle[j]); changed != news.Log {
		t.Fatalf("the log has changed: %v, want %v", news.Log, changed)
	}
	h.oracle[i].mergeLog(h.oracle[j])
}

// write does f on an interval that is drawn. Where node i+1 may not write all of it, or does not know enough to, f is
// tried on a copy, if at all: r and the oracle must agree there, too.
func (h *history) write(t *rapid.T, i int, w write, may func(Register) bool, f func(Interval) (error, bool)) {
	size := len(h.truth)
	first := rapid.IntRange(0, size-1).Draw(t, "first")
	last := rapid.IntRange(first, size-1).Draw(t, "last")
	if own := h.replicas[i].Where(may); len(own) > 0 && rapid.IntRange(0, 3).Draw(t, "meant well") > 0 {
		iv := rapid.SampledFrom(own).Draw(t, "of")
		first, last = max(first, int(iv.First)), min(last, int(iv.Last))
		if first > last {
			first, last = int(iv.First), int(iv.Last)
		}
	}
	iv := Interval{uint32(first), uint32(last)}
	legal := true
	for s := first; s <= last; s++ {
		legal = legal && may(h.truth[s]) && h.oracle[i].slots[s] == h.truth[s]
	}
	r, s := h.replicas[i].Clone(), h.oracle[i].clone()
	if err, ok := f(iv); (err == nil) != ok {
		t.Fatalf("%v of %v: error %v, the oracle says %v", w.kind, iv, err, ok)
	}
	check(t, h.replicas[i], h.oracle[i])
	if !legal {
		*h.replicas[i], *h.oracle[i] = *r, *s
		check(t, h.replicas[i], h.oracle[i])
		return
	}
	h.wrote(i, iv, w)
}

// wrote takes down what replica i holds in the slots of iv now.
func (h *history) wrote(i int, iv Interval, w write) {
	for s := iv.First; s <= iv.Last; s++ {
		w.reg = h.oracle[i].slots[s]
		h.truth[s] = w.reg
		h.writes[s] = append(h.writes[s], w)
	}
}

// retire makes replica i learn of the next retirement, or decides one.
func (h *history) retire(t *rapid.T, i int) {
	r, s := h.replicas[i], h.oracle[i]
	if len(s.log) == len(h.decided) {
		n := len(h.replicas)
		dead := rapid.IntRange(0, n-1).Draw(t, "dead")
		heir := dead + rapid.IntRange(0, n-1).Draw(t, "heir")
		if o := h.seed[dead]; rapid.Bool().Draw(t, "by its name") && !h.adopted[o] {
			dead = int(o) - 1
		}
		e := Retirement{
			Dead: Owner(dead + 1), Heir: Owner(heir%n + 1),
			By: Owner(i + 1), At: int64(len(h.decided)), Forced: rapid.Bool().Draw(t, "forced"),
		}
		if err := r.Clone().Retire(e); (err == nil) != s.clone().retire(e) {
			t.Fatalf("retiring %v with %v: %v", e, s.log, err)
		} else if err != nil {
			return
		}
		h.decided = append(h.decided, e)
	}
	e := h.decided[len(s.log)]
	if err := r.Retire(e); err != nil || !s.retire(e) {
		t.Fatalf("retiring %v with %v: %v", e, s.log, err)
	}
}

// accept accepts a proposal; no ballot makes two different ones.
func (h *history) accept(t *rapid.T, i int) {
	r, s := h.replicas[i], h.oracle[i]
	b := Ballot{rapid.Uint32Range(0, 3).Draw(t, "ballot"), Owner(rapid.IntRange(1, 3).Draw(t, "ballot of"))}
	e := anyRetirement().Draw(t, "value")
	p := proposal{len(s.log), b}
	if v, ok := h.proposed[p]; ok {
		e = v
	} else if s.mayRetire(e) {
		h.proposed[p] = e
	}
	done, err := r.Accept(b, e)
	if ok := s.accept(b, e); done != ok || err != nil && s.mayRetire(e) {
		t.Fatalf("accepting %v %v: %v, %v, the oracle says %v", b, e, done, err, ok)
	}
}

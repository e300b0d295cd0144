// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestRetireRefuses(t *testing.T) {
	r := New(8)
	for _, e := range []Retirement{{Dead: 1, Heir: 2, By: 3, At: 5}, {Dead: 4, Heir: 5, By: 5}} {
		if err := r.Retire(e); err != nil {
			t.Fatal(err)
		}
	}
	if !r.Promise(Ballot{3, 9}) {
		t.Fatal("no promise")
	}
	before := naiveOf(r)
	for name, c := range map[string]struct {
		e    Retirement
		want string
		is   error
	}{
		"twice":                {Retirement{Dead: 1, Heir: 3, By: 3}, "ring: 0000000000000001 is already retired", ErrRetired},
		"for a retired heir":   {Retirement{Dead: 2, Heir: 1, By: 3}, "ring: the heir 0000000000000001 is already retired", ErrRetired},
		"nobody":               {Retirement{Heir: 2, By: 3}, "ring: 0000000000000002 cannot take over from 0000000000000000", nil},
		"for nobody":           {Retirement{Dead: 2, By: 3}, "ring: 0000000000000000 cannot take over from 0000000000000002", nil},
		"for itself":           {Retirement{Dead: 2, Heir: 2, By: 3}, "ring: 0000000000000002 cannot take over from 0000000000000002", nil},
		"by nobody":            {Retirement{Dead: 2, Heir: 3}, "ring: the retirement of 0000000000000002 by 0000000000000000 at 0 s cannot be written down", nil},
		"before the first day": {Retirement{Dead: 2, Heir: 3, By: 3, At: -1}, "ring: the retirement of 0000000000000002 by 0000000000000003 at -1 s cannot be written down", nil},
	} {
		_, accepted := r.Accept(Ballot{4, 9}, c.e)
		for _, err := range []error{r.Retire(c.e), accepted} {
			if err == nil || err.Error() != c.want || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%s: error %v, want %s", name, err, c.want)
			}
		}
	}
	check(t, r, before)
	if err := r.Retire(Retirement{Dead: 2, Heir: 3, By: 3}); err != nil || r.Votes() != (Votes{}) {
		t.Fatalf("error %v; votes of the entry before: %v", err, r.Votes())
	}
}

func TestVotes(t *testing.T) {
	r := New(8)
	e, f := Retirement{Dead: 1, Heir: 2, By: 3}, Retirement{Dead: 2, Heir: 1, By: 3}
	accept := func(b Ballot, e Retirement) bool {
		t.Helper()
		ok, err := r.Accept(b, e)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	for _, step := range []struct {
		name      string
		got, want bool
	}{
		{"promise to nobody", r.Promise(Ballot{1, 0}), false},
		{"promise", r.Promise(Ballot{1, 5}), true},
		{"the same again", r.Promise(Ballot{1, 5}), false},
		{"an earlier one", r.Promise(Ballot{1, 4}), false},
		{"accept less than promised", accept(Ballot{1, 4}, e), false},
		{"accept what is promised", accept(Ballot{1, 5}, e), true},
		{"the same again", accept(Ballot{1, 5}, e), true},
		{"a later one, not promised", accept(Ballot{2, 1}, f), true},
		{"a later promise", r.Promise(Ballot{7, 7}), true},
		{"accept less than that", accept(Ballot{7, 6}, e), false},
	} {
		if step.got != step.want {
			t.Errorf("%s: %v", step.name, step.got)
		}
	}
	if want := (Votes{Ballot{7, 7}, Ballot{2, 1}, f}); r.Votes() != want {
		t.Errorf("votes %v, want %v", r.Votes(), want)
	}
	const used = "ring: ballot 2 of 0000000000000001 cannot propose to retire 0000000000000001: it is nobody's, or was used before"
	if ok, err := r.Accept(Ballot{2, 1}, e); ok || err == nil || err.Error() != used {
		t.Errorf("a ballot used twice: %v, %v", ok, err)
	}
	if ok, err := r.Accept(Ballot{9, 0}, e); ok || err == nil {
		t.Errorf("a ballot of nobody: %v, %v", ok, err)
	}
}

// What an acceptor reports once, it and all who merge with it report for as long as the entry is not decided, unless a
// later proposal was accepted.
func TestVotesAgainstTheOracle(t *testing.T) {
	often(t, 5, func(t *rapid.T) {
		n := anyNaive(t, 1, "ring")
		r := n.ring(t)
		for range rapid.IntRange(1, 10).Draw(t, "steps") {
			was := n.clone()
			b := anyBallot().Draw(t, "ballot")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				if r.Promise(b) != n.promise(b) {
					t.Fatalf("promise %v", b)
				}
			case 1:
				e := anyRetirement().Draw(t, "value")
				ok, err := r.Accept(b, e)
				if ok != n.accept(b, e) || err != nil && ok {
					t.Fatalf("accept %v %v: %v, %v", b, e, ok, err)
				}
			default:
				o := anyNaive(t, 1, "other")
				if _, err := r.Merge(o.ring(t)); err != nil {
					t.Fatal(err)
				}
				n.merge(o.slots)
				n.mergeLog(o)
			}
			check(t, r, n)
			if !n.notBehind(was) || n.votes.Accepted.Compare(n.votes.Promised) > 0 {
				t.Fatalf("from %v and %v to %v and %v", was.log, was.votes, n.log, n.votes)
			}
		}
	})
}

// Logs that contradict each other are settled in the same way everywhere, and told.
func TestSplit(t *testing.T) {
	with := func(at int64, dead ...Owner) *Ring {
		r := New(1)
		for i, d := range dead {
			if err := r.Retire(Retirement{Dead: d, Heir: 9, By: 9, At: at + int64(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if !r.Promise(Ballot{uint32(len(dead)), 1}) {
			t.Fatal("no promise")
		}
		return r
	}
	long, early, late := with(0, 1, 2, 3), with(0, 1, 4), with(0, 1)
	late.log = late.log.with(Retirement{Dead: 5, Heir: 9, By: 9, At: 7})
	for name, c := range map[string]struct {
		winner, loser *Ring
		at            int
	}{
		"the longer one": {long, late, 1}, "the later one": {late, early, 1}, "the later one from the beginning": {with(1, 1, 2), with(0, 1, 2), 0},
	} {
		want := Split{c.at, c.winner.Log()[c.at], c.loser.Log()[c.at]}
		for _, x := range []struct {
			r, o    *Ring
			changed bool
		}{{c.winner.Clone(), c.loser, false}, {c.loser.Clone(), c.winner, true}} {
			news, err := x.r.Merge(x.o)
			if err != nil || news.Log != x.changed || news.Split == nil || *news.Split != want {
				t.Errorf("%s: news %+v, error %v", name, news, err)
			}
			if !x.r.Equal(c.winner) {
				t.Errorf("%s: log %v, votes %v", name, x.r.Log(), x.r.Votes())
			}
		}
	}
}

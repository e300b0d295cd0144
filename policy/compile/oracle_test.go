// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"flag"
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/policytest"
)

// pairs is how many pairs of a set of policies and a connection TestJudged has.
var pairs = flag.Int("compile.pairs", 100_000, "pairs of a set of policies and a connection that TestJudged has")

// here is the node of the compilers in tests.
const here = "n1"

// judged fails unless both ends of a connection are decided as w judges them, and put down to the same.
func judged(t failing, w *policy.World, s *State, c policy.Connection) {
	t.Helper()
	d := w.Judge(c)
	egress, ingress := s.Verdict(c)
	if err := same(w, s, Side{c.Src, policy.Egress}, d.Egress, egress); err != nil {
		t.Fatalf("%+v: egress: %v", c, err)
	}
	if err := same(w, s, Side{c.Dst, policy.Ingress}, d.Ingress, ingress); err != nil {
		t.Fatalf("%+v: ingress: %v", c, err)
	}
}

// same compares a verdict with what is wanted. What is not an endpoint here is open, and so is what no policy selects, for whatever reason.
func same(w *policy.World, s *State, side Side, want policy.Verdict, got Verdict) error {
	if got.Allow != got.By.Allowed {
		return fmt.Errorf("allow is %v, by %+v", got.Allow, got.By)
	}
	if e, ok := w.EndpointAt(side.Addr); !ok || e.Node != here {
		if _, there := s.Sides[side]; there || !got.Allow {
			return fmt.Errorf("%v is not an endpoint of this node: %+v", side.Addr, got.By)
		}
		return nil
	}
	want.Endpoint = policy.Name{}
	if _, there := s.Sides[side]; !there && got.Allow && want.Allowed && want.Reason != policy.ByRule {
		return nil
	}
	if !reflect.DeepEqual(*got.By, want) {
		return fmt.Errorf("%+v, want %+v", *got.By, want)
	}
	return nil
}

// TestJudged holds the states of random worlds to policy.World, for random connections that aim at them.
func TestJudged(t *testing.T) {
	const each = 50
	for seed := range uint64(*pairs / each) {
		s := policytest.Seeded(seed)
		u := policytest.Generate(s)
		c := New(here, Limits{})
		u.Tell(c)
		c.Commit()
		state := c.State()
		sound(seeded{t, seed}, state)
		w := u.World()
		for range each {
			judged(seeded{t, seed}, w, state, u.Connection(s))
		}
	}
}

// seeded says in which world it fails.
type seeded struct {
	*testing.T
	seed uint64
}

func (s seeded) Fatalf(format string, args ...any) {
	s.T.Helper()
	s.T.Fatalf("seed %d: %s", s.seed, fmt.Sprintf(format, args...))
}

// sound fails unless the state is as its types say.
func sound(t failing, s *State) {
	t.Helper()
	known := map[Identity]bool{World: true, OwnNode: true}
	for _, i := range s.Identities {
		known[i] = true
	}
	for _, i := range s.Blocks {
		known[i] = true
	}
	for _, i := range s.Selves {
		known[i] = true
	}
	used := map[TableID]bool{}
	for side, id := range s.Sides {
		used[id] = true
		if s.Tables[id] == nil {
			t.Fatalf("%v has no table %d", side, id)
		}
	}
	for id, table := range s.Tables {
		if !used[id] || table.ID != id {
			t.Fatalf("table %d is nobody's, or has the ID %d", id, table.ID)
		}
		for c := range table.Cells {
			switch {
			case !known[c.Identity]:
				t.Fatalf("table %d: nobody has the identity of %+v", id, c)
			case c.Protocol == 0 && (c.First != 0 || c.Last != 0 || c.Identity == World), c.First > c.Last:
				t.Fatalf("table %d: %+v", id, c)
			}
			for o := range table.Cells {
				if o != c && o.Identity == c.Identity && o.Protocol == c.Protocol && o.First <= c.Last && c.First <= o.Last {
					t.Fatalf("table %d: %+v overlaps with %+v", id, c, o)
				}
			}
		}
	}
}

// both gives objects to a compiler and to a world of its own.
type both struct {
	*policy.World
	c *Compiler
}

func (b both) SetPolicy(p *policy.Policy)      { b.World.SetPolicy(p); b.c.SetPolicy(p) }
func (b both) DeletePolicy(k policy.PolicyKey) { b.World.DeletePolicy(k); b.c.DeletePolicy(k) }
func (b both) SetEndpoint(e policy.Endpoint)   { b.World.SetEndpoint(e); b.c.SetEndpoint(e) }
func (b both) DeleteEndpoint(n policy.Name)    { b.World.DeleteEndpoint(n); b.c.DeleteEndpoint(n) }
func (b both) SetNamespace(n policy.Namespace) { b.World.SetNamespace(n); b.c.SetNamespace(n) }
func (b both) DeleteNamespace(name string)     { b.World.DeleteNamespace(name); b.c.DeleteNamespace(name) }
func (b both) SetNode(n policy.Node)           { b.World.SetNode(n); b.c.SetNode(n) }
func (b both) DeleteNode(name string)          { b.World.DeleteNode(name); b.c.DeleteNode(name) }

// TestChanges makes changes one after another: each delta leads to the state, that is the one of a new compiler with the same objects, and it judges
// as the world does.
func TestChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { changes(t, policytest.Rapid(t), rapid.IntRange(1, 12).Draw(t, "commits")) })
}

// TestManyChanges is TestChanges for longer histories of more objects, without shrinking what fails.
func TestManyChanges(t *testing.T) {
	for seed := range uint64(80) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { changes(t, policytest.Seeded(seed), 40) })
	}
}

// TestTakeovers has endpoints come by addresses of others, and of nodes, before those let them go: whose they are depends on what was first.
func TestTakeovers(t *testing.T) {
	shared := 0
	for seed := range uint64(150) {
		s := policytest.Seeded(seed)
		b := both{policy.NewWorld(), New(here, Limits{})}
		policytest.Generate(s).Tell(b)
		applied := NewState()
		for range 15 {
			applied.Apply(b.c.Commit())
			if diff := differ(applied, b.c.State()); diff != "" {
				t.Fatalf("seed %d: the delta leads elsewhere: %s", seed, diff)
			}
			sound(seeded{t, seed}, applied)
			u := policytest.Of(b.World)
			for range 15 {
				judged(seeded{t, seed}, b.World, applied, u.Connection(s))
			}
			for range 1 + s.IntN(2) {
				policytest.NewChange(s).Apply(b)
			}
			if len(u.Endpoints) < 2 || len(u.Nodes) == 0 {
				continue
			}
			e, from := u.Endpoints[s.IntN(len(u.Endpoints))], u.Endpoints[s.IntN(len(u.Endpoints))].Addrs
			if s.IntN(4) == 0 {
				from = u.Nodes[s.IntN(len(u.Nodes))].Addrs[:1]
			}
			if len(from) > 0 {
				e.Addrs, e.ID = from, fmt.Sprint("id", s.IntN(3))
				b.SetEndpoint(e)
				shared++
			}
		}
	}
	if shared < 500 {
		t.Errorf("only %d addresses were taken over", shared)
	}
}

// failing is what tests and properties have in common.
type failing interface {
	Helper()
	Fatalf(format string, args ...any)
}

func changes(t failing, s policytest.Source, commits int) {
	u := policytest.Generate(s)
	b := both{policy.NewWorld(), New(here, Limits{})}
	u.Tell(b)
	applied := NewState()
	for range commits {
		d := b.c.Commit()
		tight(t, applied, d)
		applied.Apply(d)
		state := b.c.State()
		if diff := differ(applied, state); diff != "" {
			t.Fatalf("the delta leads elsewhere: %s", diff)
		}
		sound(t, state)
		anew := New(here, Limits{})
		now := policytest.Of(b.World)
		now.Tell(anew)
		anew.Commit()
		if got, want := canonical(state), canonical(anew.State()); !reflect.DeepEqual(got, want) {
			t.Fatalf("after changes:\n%v\nfrom scratch:\n%v", got, want)
		}
		for range 10 {
			judged(t, b.World, state, now.Connection(s))
		}
		if d := b.c.Commit(); !d.Empty() {
			t.Fatalf("nothing has changed: %+v", d)
		}
		for range 1 + s.IntN(3) {
			policytest.NewChange(s).Apply(b)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/policy"
)

// TestAim holds the generators to their purpose: whatever a verdict can be comes up often, at both ends, and neither verdict is rare.
func TestAim(t *testing.T) {
	const worlds, each = 400, 25
	found := map[string]int{}
	for seed := range uint64(worlds) {
		s := Seeded(seed)
		u := Generate(s)
		w := u.World()
		for range each {
			c := u.Connection(s)
			if !c.Src.IsValid() || c.Src.Is4() != c.Dst.Is4() {
				t.Fatalf("seed %d: %v", seed, c)
			}
			d := w.Judge(c)
			found[fmt.Sprint("allowed ", d.Allowed())]++
			for i, v := range []policy.Verdict{d.Ingress, d.Egress} {
				by := ""
				if v.Reason == policy.ByRule {
					by = fmt.Sprintf(" tier %d", w.Policy(v.Policy).Tier)
				}
				found[fmt.Sprintf("direction %d reason %d allowed %v%s", i, v.Reason, v.Allowed, by)]++
			}
			found[fmt.Sprint("protocol ", c.Protocol)]++
			found[fmt.Sprint("v4 ", c.Src.Is4())]++
		}
	}
	least := map[string]int{"allowed true": worlds * each / 4, "allowed false": worlds * each / 4, "v4 true": 2000, "v4 false": 1000}
	for _, p := range append(protocols(), icmp, icmpv6) {
		least[fmt.Sprint("protocol ", p)] = 200
	}
	for d := range 2 {
		for _, what := range []string{
			"reason 0 allowed true", "reason 2 allowed true", "reason 4 allowed false", "reason 5 allowed true",
			"reason 3 allowed true tier 0", "reason 3 allowed false tier 0", "reason 3 allowed true tier 1",
			"reason 3 allowed true tier 2", "reason 3 allowed false tier 2",
		} {
			least[fmt.Sprintf("direction %d %s", d, what)] = 25
		}
		least[fmt.Sprintf("direction %d reason 1 allowed true", d)] = 25
	}
	for what, n := range least {
		if found[what] < n {
			t.Errorf("%s: %d times, want %d", what, found[what], n)
		}
	}
	if t.Failed() || testing.Verbose() {
		for what, n := range found {
			t.Logf("%6d %s", n, what)
		}
	}
}

// TestSame holds them to the same objects from the same numbers.
func TestSame(t *testing.T) {
	a, b := Generate(Seeded(7)), Generate(Seeded(7))
	if !reflect.DeepEqual(a, b) {
		t.Error("two universes from one seed")
	}
	if c := Generate(Seeded(8)); reflect.DeepEqual(a, c) {
		t.Error("one universe from two seeds")
	}
	if again := Of(a.World()); !reflect.DeepEqual(Of(again.World()), again) || len(again.Policies) != len(a.Policies) {
		t.Errorf("%+v is not %+v", again, a)
	}
}

// TestDisjoint shows that no two objects have an address in common, until there is a takeover.
func TestDisjoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Rapid(t)
		w := Generate(s).World()
		for range 10 {
			NewChange(s).Apply(w)
		}
		for e := range w.Endpoints() {
			for _, a := range e.Addrs {
				if at, _ := w.EndpointAt(a); at.Name != e.Name {
					t.Fatalf("%v has %v of %v", at.Name, a, e.Name)
				}
			}
		}
		for n := range w.Nodes() {
			for _, a := range n.Addrs {
				if _, ok := w.EndpointAt(a); ok {
					t.Fatalf("%v of the node %s is an endpoint's", a, n.Name)
				}
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/weftnet/weft/integration/lab"
)

// A watch hears of each element that is added or deleted, by transaction; the generation tells that there was one.
func TestWatchRules(t *testing.T) {
	l := lab.New(t)
	h := l.Host("host", l.Switch("lan"))
	w, err := h.WatchRules()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	r, err := h.Rules()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	generation := func() uint32 {
		t.Helper()
		g, err := r.Generation()
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	// heard waits for so many transactions.
	heard := func(n int) (all []lab.RuleChange) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); len(all) < n; time.Sleep(time.Millisecond) {
			some, err := w.Take()
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("%d transactions heard, not %d; %v", len(all), n, err)
			}
			all = append(all, some...)
		}
		if len(all) != n {
			t.Fatalf("%d transactions heard, not %d: %+v", len(all), n, all)
		}
		return all
	}
	before := generation()
	if err := h.Untrack(); err != nil {
		t.Fatal(err)
	}
	// A table, two chains, a rule in each.
	if c := heard(1)[0]; c.Others != 5 || len(c.Elements) != 0 || c.At.IsZero() {
		t.Errorf("the rules: %+v", c)
	}
	if g := generation(); g != before+1 {
		t.Errorf("generation %d after %d", g, before)
	}
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	var c nftables.Conn
	err = h.Do(func() error {
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "some"})
		set := &nftables.Set{Table: table, Name: "addrs", KeyType: nftables.TypeIPAddr}
		if err := c.AddSet(set, []nftables.SetElement{{Key: a.AsSlice()}, {Key: b.AsSlice()}}); err != nil {
			return err
		}
		if err := c.Flush(); err != nil {
			return err
		}
		if err := c.SetDeleteElements(set, []nftables.SetElement{{Key: a.AsSlice()}}); err != nil {
			return err
		}
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	all := heard(2)
	var got []lab.Element
	for _, x := range all {
		got = append(got, x.Elements...)
	}
	want := []lab.Element{{"some", "addrs", a.AsSlice(), true}, {"some", "addrs", b.AsSlice(), true}, {"some", "addrs", a.AsSlice(), false}}
	if len(got) != len(want) {
		t.Fatalf("heard %+v", got)
	}
	for i := range want {
		if got[i].Table != want[i].Table || got[i].Set != want[i].Set || string(got[i].Key) != string(want[i].Key) || got[i].Added != want[i].Added {
			t.Errorf("element %d: %+v, want %+v", i, got[i], want[i])
		}
	}
	if g := generation(); g != before+3 {
		t.Errorf("generation %d after %d", g, before)
	}
	if err := h.DropTable(lab.UntrackedTable); err != nil {
		t.Fatal(err)
	}
	heard(1)
}

// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func entries(prefixes ...string) []Entry[string] {
	var es []Entry[string]
	for _, p := range prefixes {
		es = append(es, Entry[string]{pfx(p), p})
	}
	return es
}

func TestLookup(t *testing.T) {
	tab, err := New(entries("10.32.0.0/12", "10.32.4.0/22", "10.32.4.7/32", "fd00:77::/64", "fd00:77::400/118", "192.168.1.77/24", "::ffff:172.16.0.0/108"))
	if err != nil {
		t.Fatal(err)
	}
	if tab.Len() != 7 {
		t.Errorf("Len() = %d, want 7", tab.Len())
	}
	for _, c := range []struct{ addr, want string }{
		{"10.32.0.1", "10.32.0.0/12"},
		{"10.47.255.255", "10.32.0.0/12"},
		{"10.48.0.0", ""},
		{"10.32.5.1", "10.32.4.0/22"},
		{"10.32.4.7", "10.32.4.7/32"},
		{"::ffff:10.32.4.7", "10.32.4.7/32"},
		{"::10.32.4.7", ""},
		{"192.168.1.1", "192.168.1.77/24"},
		{"172.16.9.9", "::ffff:172.16.0.0/108"},
		{"fd00:77::1", "fd00:77::/64"},
		{"fd00:77::1%eth0", "fd00:77::/64"},
		{"fd00:77::401", "fd00:77::400/118"},
		{"fd00:78::", ""},
	} {
		got, ok := tab.Lookup(netip.MustParseAddr(c.addr))
		if got != c.want || ok != (c.want != "") {
			t.Errorf("Lookup(%s) = %q, %v, want %q", c.addr, got, ok, c.want)
		}
	}
	if _, ok := tab.Lookup(netip.Addr{}); ok {
		t.Error("the invalid address was found")
	}
}

func TestEmpty(t *testing.T) {
	built, err := New[int](nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tab := range map[string]*Table[int]{"nil": nil, "zero": {}, "built": built} {
		if _, ok := tab.Lookup(netip.MustParseAddr("10.0.0.1")); ok || tab.Len() != 0 {
			t.Errorf("the %s table is not empty", name)
		}
	}
}

func TestNewErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []Entry[string]
		want string
	}{
		{"twice", entries("10.0.0.0/24", "10.1.0.0/24", "10.0.0.0/24"), "route to 10.0.0.0/24: given twice, so its owner is not clear"},
		{"twice but for host bits", entries("10.0.0.0/24", "10.0.0.9/24"), "route to 10.0.0.0/24: given twice"},
		{"twice but for the mapping", entries("10.0.0.0/24", "::ffff:10.0.0.0/120"), "route to 10.0.0.0/24: given twice"},
		{"invalid", []Entry[string]{{}}, "route to invalid Prefix: not a valid prefix"},
		{"half mapped", entries("::ffff:10.0.0.0/80"), "not a valid prefix"},
	} {
		tab, err := New(c.in)
		if err == nil || tab != nil || !strings.HasPrefix(err.Error(), c.want) && !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: %v, %v, want error %q", c.name, tab, err, c.want)
		}
	}
}

// golden is the slow table: a list that is searched from end to end.
type golden []Entry[int]

func (g golden) lookup(a netip.Addr) (value int, ok bool) {
	best := -1
	for _, e := range g {
		if p := e.Prefix.Masked(); p.Contains(a) && p.Bits() > best {
			value, ok, best = e.Value, true, p.Bits()
		}
	}
	return value, ok
}

// crowded draws addresses from few bits, so that prefixes nest and look-ups hit.
func crowded(t *rapid.T, label string) netip.Addr {
	few := rapid.SampledFrom([]byte{0, 1, 2, 3, 127, 128, 254, 255})
	if rapid.Bool().Draw(t, label+" v4") {
		return netip.AddrFrom4([4]byte{10, few.Draw(t, label), few.Draw(t, label), few.Draw(t, label)})
	}
	a := [16]byte{0: 0xfd, 7: few.Draw(t, label), 8: few.Draw(t, label), 14: few.Draw(t, label), 15: few.Draw(t, label)}
	return netip.AddrFrom16(a)
}

func TestLookupIsTheGoldenOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want golden
		seen := map[netip.Prefix]bool{}
		for i := range rapid.IntRange(0, 60).Draw(t, "n") {
			a := crowded(t, "prefix")
			p := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
			if !seen[p.Masked()] {
				seen[p.Masked()] = true
				want = append(want, Entry[int]{p, i})
			}
		}
		tab, err := New(want)
		if err != nil {
			t.Fatal(err)
		}
		if tab.Len() != len(want) {
			t.Fatalf("Len() = %d, want %d", tab.Len(), len(want))
		}
		for range 50 {
			a := crowded(t, "addr")
			w, wok := want.lookup(a)
			for _, a := range []netip.Addr{a, netip.AddrFrom16(a.As16())} {
				if got, ok := tab.Lookup(a); got != w || ok != wok {
					t.Fatalf("Lookup(%v) = %d, %v, want %d, %v", a, got, ok, w, wok)
				}
			}
		}
	})
}

func TestLookupDoesNotAllocate(t *testing.T) {
	tab, err := New(entries("10.32.0.0/12", "10.32.4.0/22", "fd00:77::/64"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.32.4.1", "::ffff:10.32.4.1", "fd00:77::9", "192.0.2.1"} {
		addr := netip.MustParseAddr(a)
		if n := testing.AllocsPerRun(100, func() { tab.Lookup(addr) }); n != 0 {
			t.Errorf("Lookup(%s) allocates %v times", a, n)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	var es []Entry[int]
	for i := range 4096 {
		es = append(es, Entry[int]{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32 + byte(i>>8), byte(i), 0}), 24), i})
	}
	tab, err := New(es)
	if err != nil {
		b.Fatal(err)
	}
	addr := netip.MustParseAddr("10.40.3.7")
	for b.Loop() {
		tab.Lookup(addr)
	}
}

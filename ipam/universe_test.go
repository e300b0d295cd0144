// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/ipam/ring"
)

func TestParseUniverse(t *testing.T) {
	for _, c := range []struct {
		in, out string
		size    uint64
	}{
		{"10.32.0.0/12", "10.32.0.0/12", 1 << 20},
		{"10.0.0.0/8", "10.0.0.0/8", 1 << 24},
		{"10.32.0.0/29", "10.32.0.0/29", 8},
		{"fd00:10:32::/64", "fd00:10:32::/64", 1 << 31},
		{"fd00::/97", "fd00::/97", 1 << 31},
		{"fd00::/98", "fd00::/98", 1 << 30},
		{"fd00::/112", "fd00::/112", 1 << 16},
		{"fd00::/125", "fd00::/125", 8},
		{"10.32.0.0/12,fd00::/64", "10.32.0.0/12,fd00::/64", 1 << 20},
		{" fd00::/120 , 10.32.0.0/12 ", "10.32.0.0/12,fd00::/120", 256},
	} {
		u, err := ParseUniverse(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if u.String() != c.out || u.Size() != c.size {
			t.Errorf("%q: %v with %d slots, want %s with %d", c.in, u, u.Size(), c.out, c.size)
		}
		if again, err := ParseUniverse(u.String()); err != nil || again != u {
			t.Errorf("%q is not read back: %v, %v", u, again, err)
		}
	}
}

func TestParseUniverseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                            `range "" is not in CIDR notation; write it like 10.32.0.0/12 or fd00:10:32::/64`,
		"10.32.0.0":                   `range "10.32.0.0" is not in CIDR notation; write it like 10.32.0.0/12 or fd00:10:32::/64`,
		"10.32.0.0/12,":               `range "" is not in CIDR notation; write it like 10.32.0.0/12 or fd00:10:32::/64`,
		"10.32.0.5/12":                "range 10.32.0.5/12 has host bits set; write 10.32.0.0/12",
		"fd00::1/64":                  "range fd00::1/64 has host bits set; write fd00::/64",
		"10.32.0.0/30":                "range 10.32.0.0/30 is too small; choose a /29 or larger",
		"fd00::/126":                  "range fd00::/126 is too small; choose a /125 or larger",
		"10.0.0.0/7":                  "range 10.0.0.0/7 is too large; choose a /8 or smaller",
		"fd00::/8":                    "range fd00::/8 is too large; choose a /16 or smaller",
		"10.0.0.0/8,192.168.0.0/16":   "range 10.0.0.0/8,192.168.0.0/16 names two IPv4 ranges; give at most one of each family",
		"fd00::/64,fd01::/64":         "range fd00::/64,fd01::/64 names two IPv6 ranges; give at most one of each family",
		"127.0.0.0/8":                 "range 127.0.0.0/8 holds no addresses that workloads can have; choose a private one such as 10.32.0.0/12",
		"224.0.0.0/8":                 "range 224.0.0.0/8 holds no addresses that workloads can have; choose a private one such as 10.32.0.0/12",
		"240.0.0.0/8":                 "range 240.0.0.0/8 holds no addresses that workloads can have; choose a private one such as 10.32.0.0/12",
		"fe80::/64":                   "range fe80::/64 holds no addresses that workloads can have; choose a private one such as 10.32.0.0/12",
		"::ffff:10.0.0.0/120":         "range ::ffff:10.0.0.0/120 is IPv4 written as IPv6; write it as IPv4",
		"10.32.0.0/12,fd00::/64,junk": `range "junk" is not in CIDR notation; write it like 10.32.0.0/12 or fd00:10:32::/64`,
	} {
		if u, err := ParseUniverse(in); err == nil || err.Error() != want {
			t.Errorf("%q: %v, %v\nwant %s", in, u, err, want)
		}
	}
}

func mustUniverse(t testing.TB, s string) Universe {
	t.Helper()
	u, err := ParseUniverse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestSlotsAndAddresses(t *testing.T) {
	ranges := []string{"10.32.0.0/12", "10.32.0.0/29", "fd00:1:2:3::/64", "fd00:1:2:3:ffff:ffff:ffff:0/112", "10.0.0.0/8,fd00::/64", "10.32.0.0/12,fd00::/120"}
	rapid.Check(t, func(t *rapid.T) {
		u, err := ParseUniverse(rapid.SampledFrom(ranges).Draw(t, "range"))
		if err != nil {
			t.Fatal(err)
		}
		slot := uint32(rapid.Uint64Range(0, u.Size()-1).Draw(t, "slot"))
		v4, v6 := u.Addrs(slot)
		if v4.IsValid() != u.V4.IsValid() || v6.IsValid() != u.V6.IsValid() {
			t.Fatalf("slot %d: %v %v", slot, v4, v6)
		}
		for _, a := range []netip.Addr{v4, v6} {
			if !a.IsValid() {
				continue
			}
			if got, ok := u.Slot(a); !ok || got != slot || !u.Contains(a) {
				t.Fatalf("slot %d is %v, which is slot %d, %v", slot, a, got, ok)
			}
			if a.Is4() {
				if got, ok := u.Slot(netip.AddrFrom16(a.As16())); !ok || got != slot {
					t.Fatalf("%v mapped into IPv6 is slot %d, %v", a, got, ok)
				}
			}
		}
	})
}

func TestAddressesWithoutSlot(t *testing.T) {
	for _, c := range []struct {
		universe, addr string
		contains       bool
	}{
		{"10.32.0.0/12", "10.31.255.255", false},
		{"10.32.0.0/12", "10.48.0.0", false},
		{"10.32.0.0/12", "fd00::1", false},
		{"fd00::/64", "10.32.0.1", false},
		{"fd00::/64", "fd00::8000:0", true}, // behind the last slot
		{"fd00::/64", "fd00:0:0:1::", false},
		{"fd00::/48", "fd00:0:0:1::5", true},
		{"10.32.0.0/12,fd00::/120", "10.32.1.0", true},
		{"fd00::/64", "fd00::5%eth0", true}, // zones do not matter
	} {
		u, a := mustUniverse(t, c.universe), netip.MustParseAddr(c.addr)
		_, ok := u.Slot(a)
		if want := a.Zone() != ""; ok != want || u.Contains(a) != c.contains {
			t.Errorf("%s in %s: slot %v, contained %v", c.addr, c.universe, ok, u.Contains(a))
		}
	}
	if _, ok := (Universe{}).Slot(netip.MustParseAddr("10.0.0.1")); ok || (Universe{}).Size() != 0 {
		t.Error("the zero universe has slots")
	}
}

// The identity is what nodes agree on: these values must never change.
func TestUniverseID(t *testing.T) {
	names, err := SeedNames([]string{"a", "b", "c"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		universe string
		seed     Seed
		id       string
	}{
		{"10.32.0.0/12", Seed{Owners: []ring.Owner{1}}, "eb60f5d1f0dff173e174d811a693eb68"},
		{"10.32.0.0/12,fd00::/64", Seed{Owners: []ring.Owner{1}}, "50eb74ec53847a93e634d8037e1b072d"},
		{"10.32.0.0/12", names, "157f78b3aa7e00ba65401dd4d864ca9d"},
	} {
		if id := mustUniverse(t, c.universe).ID(c.seed, Reserve{}).String(); id != c.id {
			t.Errorf("%s with %d seeds has the ID %s, want %s", c.universe, len(c.seed.Owners), id, c.id)
		}
	}
	a, b := mustUniverse(t, "10.32.0.0/12"), mustUniverse(t, "10.32.0.0/13")
	if a.ID(names, Reserve{}) == b.ID(names, Reserve{}) || a.ID(names, Reserve{}) == a.ID(Seed{Owners: names.Owners[:2]}, Reserve{}) {
		t.Error("different universes have one ID")
	}
}

func TestSeeds(t *testing.T) {
	a, err := SeedNames([]string{"a", "b", "c"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := SeedNames([]string{"c", "a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	if string(a.Encode()) != string(b.Encode()) {
		t.Error("the order of the names matters")
	}
	for _, o := range a.Owners {
		if o>>63 != 1 {
			t.Errorf("%x could be a node's", o)
		}
	}
	back, err := DecodeSeed(a.Encode())
	if err != nil || string(back.Encode()) != string(a.Encode()) {
		t.Errorf("not read back: %v, %v", back, err)
	}
	for want, names := range map[string][]string{
		"a seed of 0 names; give 1 to 1024":                                                    nil,
		"the seed names a twice; list every seeding node once":                                 {"a", "b", "a"},
		"the seed has an empty name; list the names of the seeding nodes, separated by commas": {"a", " "},
		"a seed of 1025 names; give 1 to 1024":                                                 strings.Split(strings.Repeat("x,", 1024)+"x", ","),
	} {
		if _, err := SeedNames(names); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "no owner": {1}, "later format": {2, 0, 0, 0, 0, 0, 0, 0, 1}, "cut": {1, 0, 0, 0, 0, 0, 0, 1},
		"nobody": {1, 0, 0, 0, 0, 0, 0, 0, 0}, "twice": {1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1},
		"too many": append([]byte{1}, make([]byte, 8*(MaxSeeds+1))...),
	} {
		if s, err := DecodeSeed(b); err == nil {
			t.Errorf("%s: %v", name, s)
		}
	}
}

func FuzzDecodeSeed(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeSeed(b); err == nil && string(s.Encode()) != string(b) {
			t.Fatalf("%v is not written back", s)
		}
	})
}

func FuzzParseUniverse(f *testing.F) {
	for _, s := range []string{"10.32.0.0/12", "fd00::/64", "10.0.0.0/8,fd00::/97", "::/0", "1.2.3.4/33"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUniverse(s)
		if err != nil {
			return
		}
		if n := u.Size(); n < 8 || n > MaxSlots || n&(n-1) != 0 {
			t.Fatalf("%v has %d slots", u, n)
		}
		if again, err := ParseUniverse(u.String()); err != nil || again != u {
			t.Fatalf("%v is not read back: %v", u, err)
		}
	})
}

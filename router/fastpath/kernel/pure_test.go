// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestNames(t *testing.T) {
	if got := MAC(0x1122334455667788).String(); got != "0e:44:55:66:77:88" {
		t.Error(got)
	}
	if got := hop6(0x1122334455667788); got != netip.MustParseAddr("fe80::1122:3344:5566:7788") {
		t.Error(got)
	}
	for id, want := range map[uint64]string{
		0x1122334455667788: "245.102.119.136", 0: "240.0.0.0", 0x0fffffff: "255.255.255.255", 0xf0000001: "240.0.0.1",
	} {
		if got := hop4(id, 0); got != netip.MustParseAddr(want) {
			t.Errorf("%x: %v", id, got)
		}
	}
	if got := hop4(0x0fffffff, 1); got != netip.MustParseAddr("240.0.0.0") {
		t.Error(got)
	}
}

// Every peer has a next hop of its own that is no broadcast, and keeps it whoever comes and goes.
func TestAssignHops(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.OneOf(rapid.Uint64(), rapid.Map(rapid.Uint64Range(0, 5), func(n uint64) uint64 { return n<<hopBits | hopMask }), rapid.Uint64Range(hopMask-3, hopMask+3))
		have := map[uint64]netip.Addr{}
		for range 4 {
			ids := rapid.SliceOfNDistinct(id, 0, 12, rapid.ID[uint64]).Draw(t, "ids")
			got := assignHops(ids, have)
			used := map[netip.Addr]uint64{}
			for _, id := range ids {
				a := got[id]
				other, twice := used[a]
				if !netip.MustParsePrefix("240.0.0.0/4").Contains(a) || a == netip.MustParseAddr("255.255.255.255") || twice {
					t.Fatalf("%x has %v, %x has it: %v", id, a, other, twice)
				}
				used[a] = id
				if old, ok := have[id]; ok && old != a {
					t.Fatalf("%x had %v and has %v", id, old, a)
				}
			}
			if len(got) != len(ids) {
				t.Fatalf("%d hops for %d peers", len(got), len(ids))
			}
			have = got
		}
	})
}

func TestHalves(t *testing.T) {
	universe := []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd77::/64"), netip.MustParsePrefix("192.0.2.1/32")}
	for p, want := range map[string][]string{
		"10.32.0.0/12": {"10.32.0.0/13", "10.40.0.0/13"}, "fd77::/64": {"fd77::/65", "fd77::8000:0:0:0/65"}, "10.32.0.0/13": {"10.32.0.0/13"}, "192.0.2.1/32": {"192.0.2.1/32"},
	} {
		var got []string
		for _, x := range halves(netip.MustParsePrefix(p), universe) {
			got = append(got, x.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q", p, got)
		}
	}
}

// What the kernel is asked to make is read back as the same.
func TestMessages(t *testing.T) {
	name := func(int) string { return "eth0" }
	for key, r := range map[routeKey]route{
		{table: 254, dst: netip.MustParsePrefix("10.34.0.0/16")}:                      {device: "eth0", via: under4(2), src: over4(1)},
		{table: 8701, dst: netip.MustParsePrefix("10.34.0.0/16")}:                     {device: "eth0", via: under6(2)},
		{table: 8702, dst: netip.MustParsePrefix("fd77::/112"), metric: 1024}:         {device: "eth0", via: under6(2), src: over6(1)},
		{table: 8702, dst: netip.MustParsePrefix("10.32.0.0/12"), metric: lastResort}: {unreachable: true},
	} {
		head, attrs := routeMessage(key, r, 7)
		b := head.Serialize()
		for _, a := range attrs {
			b = append(b, a.Serialize()...)
		}
		if gotKey, got, ours := parseRoute(b, name); !ours || gotKey != key || got != r {
			t.Errorf("%+v %+v: read as %+v %+v %v", key, r, gotKey, got, ours)
		}
	}
	for _, r := range []rule{{priority: 8701, table: 8701, mark: MarkDirect}, {v6: true, priority: 8702, table: 8702, mark: MarkVXLAN}} {
		head, attrs := ruleMessage(r)
		b := head.Serialize()
		for _, a := range attrs {
			b = append(b, a.Serialize()...)
		}
		if got, ours := parseRule(b); !ours || got != r {
			t.Errorf("%+v: read as %+v %v", r, got, ours)
		}
	}
}

func fuzzView() *view {
	return &view{
		port: 7, want: newObjects(), links: map[int]link{3: {index: 3, name: Device4, up: true}, 4: {index: 4, name: "eth0"}}, names: map[string]bool{"eth0": true},
		hops: map[hopKey]bool{{4, under4(2)}: true}, sources: map[netip.Addr]bool{over4(1): true},
	}
}

// Whatever is read from the kernel, nothing breaks: none of the decoders, and not what looks through notifications.
func FuzzNotifications(f *testing.F) {
	seed := func(kind uint16, body ...byte) {
		b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		f.Add(append(append(b, make([]byte, 10)...), body...))
	}
	key := routeKey{table: 8701, dst: netip.MustParsePrefix("10.34.0.0/16")}
	head, attrs := routeMessage(key, route{via: under6(2)}, 3)
	body := head.Serialize()
	for _, a := range attrs {
		body = append(body, a.Serialize()...)
	}
	for _, kind := range []uint16{unix.RTM_NEWROUTE, unix.RTM_DELRULE, unix.RTM_NEWNEIGH, unix.RTM_NEWLINK, unix.RTM_DELADDR} {
		seed(kind, body...)
		seed(kind, make([]byte, 16)...)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		w := &watcher{macs: map[hopKey]mac{}}
		w.concerns(fuzzView(), b)
		w.concerns(nil, b)
		parseLink(b)
		parseAddr(b)
		parseEntry(b)
		parseRule(b)
		parseHop(b)
		parseRoute(b, func(int) string { return "" })
	})
}

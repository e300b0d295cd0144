// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/weftnet/weft/integration/lab"
)

// TestReserve founds a mesh with a part of the range that is kept for static use, lets a node join and fills the rest up. Nobody
// gets an address of the reserve unasked, and each node gets one by name, wherever the ring has it.
func TestReserve(t *testing.T) {
	l := lab.New(t)
	s := l.Switch("lan")
	a, b := l.Host("a", s), l.Host("b", s)
	a.Launch("--range", "10.99.0.0/27", "--reserve", "10.99.0.16/28", "--reserve", "10.99.0.0/29")
	if err := a.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	b.Join(a.Token(), []*lab.Host{a}) // without the flag
	if err := b.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	const reserve = "10.99.0.0/29,10.99.0.16/28"
	for _, h := range l.Hosts() {
		if sp := ask[space](t, h, "ipam"); sp.Reserve != reserve || sp.Reserved != 22 || sp.Size != 30 {
			t.Errorf("%s: %+v", h.Name(), sp)
		}
	}
	// Eight addresses are left, two of them the hosts'.
	common := netip.MustParsePrefix("10.99.0.8/29")
	var all []netip.Addr
	for i := range 7 {
		h := l.Hosts()[i%2]
		w := h.Workload(fmt.Sprint("w", i))
		if i == 6 {
			refused(t, h.Weft("attach", "--netns", w.Path()), "no address left in 10.99.0.0/27: 8 of 8 in use", "22 in reserve, to be had by name only")
			break
		}
		w.Attach()
		all = append(all, w.Addrs()...)
	}
	for _, addr := range all {
		if !common.Contains(addr) {
			t.Errorf("%v was given out unasked", addr)
		}
	}
	for i, addr := range []string{"10.99.0.1", "10.99.0.30", "10.99.0.17", "10.99.0.18"} {
		w := l.Hosts()[i%2].Workload(fmt.Sprint("static", i))
		w.Attach("--ip", addr)
		if got := w.Addrs(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr(addr)}) {
			t.Errorf("asked for %s, got %v", addr, got)
		}
		all = append(all, w.Addrs()...)
	}
	distinct(t, all)
	b.Terminate()
	refusedLaunch(t, b.RunLaunch("--reserve", "10.99.0.16/28"), "--reserve 10.99.0.16/28 differs from this node's mesh's, which has "+reserve)
	b.Launch("--reserve", reserve)
	if err := b.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
}

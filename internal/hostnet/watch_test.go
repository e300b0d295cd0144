// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What can change where others reach the host is told soon, and once for a burst; what cannot is not.
func TestWatch(t *testing.T) {
	ns := newNamespace(t)
	c := connect(t, ns)
	up(t, c, "lo")
	l := device(t, c, "wan", 1500, "192.0.2.1/24")
	told := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		close(ready)
		ended <- ns.watch(ctx, func() { told <- struct{}{} })
	}()
	<-ready
	// The socket is there once a first change is told.
	first := time.After(patience)
	for heard := false; !heard; {
		addAddr(t, c, "wan", "198.51.100.77/32")
		must(t, c.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("198.51.100.77").To4(), Mask: net.CIDRMask(32, 32)}}))
		select {
		case <-told:
			heard = true
		case <-first:
			t.Fatal("nothing is told")
		case <-time.After(watchSettle + 50*time.Millisecond):
		}
	}
	quiet := func() {
		t.Helper()
		for {
			select {
			case <-told:
			case <-time.After(3 * watchSettle):
				return
			}
		}
	}
	expect := func(what string) {
		t.Helper()
		select {
		case <-told:
		case <-time.After(patience):
			t.Fatalf("%s: not told", what)
		}
		quiet()
	}
	quiet()
	addAddr(t, c, "wan", "192.0.2.2/24")
	expect("an address more")
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("192.0.2.254")}
	must(t, c.RouteAdd(route))
	expect("a default route")
	must(t, c.LinkSetDown(l))
	expect("an interface that is down")
	must(t, c.LinkSetUp(l))
	expect("an interface that is up")

	// A host on which workloads come and go has routes that do.
	for i := range 20 {
		dst := &net.IPNet{IP: net.IPv4(10, 32, 0, byte(i)).To4(), Mask: net.CIDRMask(32, 32)}
		must(t, c.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: unix.RT_SCOPE_LINK, Protocol: RouteProtocol}))
		v := netlink.NewVeth(netlink.NewLinkAttrs())
		v.Name, v.PeerName = HostIf(fmt.Sprint(i)), HostIf(fmt.Sprint("peer ", i))
		must(t, c.LinkAdd(v))
		must(t, c.LinkSetUp(v))
		must(t, c.LinkDel(v))
	}
	select {
	case <-told:
		t.Error("the route or the interface of a workload is told")
	case <-time.After(5 * watchSettle):
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestConcernsExit(t *testing.T) {
	message := func(kind uint16, body ...byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, make([]byte, 10)...)
		b = append(b, body...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	link := func(name string) []byte {
		b := make([]byte, 16)
		b = binary.NativeEndian.AppendUint16(b, 5) // some other attribute first
		b = append(binary.NativeEndian.AppendUint16(b, unix.IFLA_MTU), 1, 0, 0, 0)
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(name)+1))
		b = binary.NativeEndian.AppendUint16(b, unix.IFLA_IFNAME)
		return append(append(b, name...), 0)
	}
	global, local := []byte{2, 24, 0, 0, 1, 0, 0, 0}, []byte{10, 64, 0, unix.RT_SCOPE_LINK, 1, 0, 0, 0}
	deflt, host := make([]byte, 12), append([]byte{2, 32}, make([]byte, 11)...)
	for name, x := range map[string]struct {
		b    []byte
		want bool
	}{
		"nothing":                {nil, false},
		"an interface":           {message(unix.RTM_NEWLINK), true},
		"eth0":                   {message(unix.RTM_NEWLINK, link("eth0")...), true},
		"the TUN device":         {message(unix.RTM_DELLINK, link(DefaultDevice)...), true},
		"a workload's interface": {message(unix.RTM_NEWLINK, link(HostIf("x"))...), false},
		"one without a name":     {message(unix.RTM_NEWLINK, make([]byte, 24)...), true},
		"a name cut short":       {message(unix.RTM_NEWLINK, link(HostIf("x"))[:30]...), true},
		"an address":             {message(unix.RTM_NEWADDR, global...), true},
		"a link-local address":   {message(unix.RTM_DELADDR, local...), false},
		"a default route":        {message(unix.RTM_DELROUTE, deflt...), true},
		"a workload's route":     {message(unix.RTM_NEWROUTE, host...), false},
		"another kind":           {message(unix.RTM_NEWNEIGH, global...), false},
		"the second":             {append(message(unix.RTM_NEWROUTE, host...), message(unix.RTM_NEWADDR, global...)...), true},
		"neither of two":         {append(message(unix.RTM_NEWROUTE, host...), message(unix.RTM_NEWADDR, local...)...), false},
		"a header that is short": {make([]byte, 7), true},
		"one that is cut off":    {message(unix.RTM_NEWNEIGH, global...)[:20], true},
		"one of no length":       {make([]byte, 32), true},
		"an address cut short":   {message(unix.RTM_NEWADDR, 2, 24), true},
	} {
		if got := concernsExit(x.b); got != x.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzConcernsExit(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add([]byte{20, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4})
	f.Fuzz(func(_ *testing.T, b []byte) { concernsExit(b) })
}

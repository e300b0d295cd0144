// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// plug makes an interface of another plugin in a namespace, as those do that route: the host has the gateway's address on its end, and a route
// to the workload's.
func (h *testHost) plug(t *testing.T, w Workload, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(w.ns(t))
	must(t, h.conn.LinkAdd(v))
	inner := connect(t, w.ns(t))
	up(t, inner, "lo")
	outer := up(t, h.conn, name)
	eth0 := up(t, inner, "eth0")
	for i, a := range w.Addrs {
		gateway := desired().Addrs[i]
		must(t, h.conn.AddrAdd(outer, address(gateway)))
		must(t, inner.AddrAdd(eth0, address(a)))
		r := netlink.Route{Dst: hostPrefix(a), LinkIndex: outer.Attrs().Index, Scope: netlink.SCOPE_LINK}
		if a.Is6() {
			r.Scope = netlink.SCOPE_UNIVERSE
		}
		must(t, h.conn.RouteAdd(&r))
		must(t, inner.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
	}
	inner.settled(w.Addrs[1], patience)
}

func TestAddressesOnlyPass(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("kernel-paths-%t", plain), func(t *testing.T) {
			h := newHost(t)
			d := desired()
			if plain {
				d.Plain = Plaintext{VXLANPort: 4789, Devices: []string{"weft-1"}}
			}
			h.apply(t, d)
			native, w := h.attach(t, 1), workload(2, newNamespace(t))
			w.AddressesOnly = true
			d.Workloads = []Workload{native, w}
			got, err := h.Attach(w)
			must(t, err)
			want := Attached{MTU: 1420, Addrs: w.Addrs, Routes: []Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: host4}, {Dst: netip.MustParsePrefix("::/0"), Gateway: host6},
			}}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			h.plug(t, w, "veth7")
			right := ruleset(t, h.ns)
			pass := func() {
				t.Helper()
				must(t, h.Check(w))
				for i, a := range w.Addrs {
					outside := netip.MustParseAddr([]string{"192.0.2.2", "2001:db8::2"}[i])
					reaches(t, h.ns, w.ns(t), a)
					reaches(t, w.ns(t), h.ns, d.Addrs[i])
					if from := reaches(t, native.ns(t), w.ns(t), a); from != native.Addrs[i] {
						t.Errorf("it sees %v, want %v", from, native.Addrs[i])
					}
					if from := reaches(t, w.ns(t), native.ns(t), native.Addrs[i]); from != a {
						t.Errorf("the other one sees %v, want %v", from, a)
					}
					if from := reaches(t, w.ns(t), h.outside, outside); !from.IsValid() || from == a {
						t.Errorf("the outside sees %v", from)
					}
				}
			}
			pass()
			h.apply(t, d)
			differ(t, "the rules", right, ruleset(t, h.ns))
			pass()

			// Only its own addresses, and only as long as it has them.
			for i, gateway := range d.Addrs {
				sender := func(from netip.Addr, payload string) func(uint16) error {
					return func(port uint16) error {
						return send(t, w.ns(t), from, netip.AddrPortFrom(gateway, port), payload)
					}
				}
				for _, forged := range []netip.Addr{native.Addrs[i], netip.MustParseAddr([]string{"10.40.0.9", "fd77::9:9"}[i])} {
					onlySecond(t, sender(forged, "bad"), sender(w.Addrs[i], "good"), h.ns, gateway)
				}
			}
			must(t, h.Detach(w))
			must(t, h.Detach(w))
			var diff *DifferenceError
			if err := h.Check(w); !errors.As(err, &diff) || err.Error() != "packets of 10.32.1.2 are not let through" {
				t.Errorf("got %v", err)
			}
			for i, gateway := range d.Addrs {
				before := dropped(t, h.ns, "forged: source is in the overlay")
				onlySecond(t,
					func(port uint16) error {
						return send(t, w.ns(t), w.Addrs[i], netip.AddrPortFrom(gateway, port), "bad")
					},
					func(port uint16) error {
						return send(t, native.ns(t), native.Addrs[i], netip.AddrPortFrom(gateway, port), "good")
					}, h.ns, gateway)
				if n := dropped(t, h.ns, "forged: source is in the overlay") - before; n != 1 {
					t.Errorf("%d packets dropped, want 1", n)
				}
				leaks := dropped(t, h.ns, "never in plaintext")
				if err := send(t, native.ns(t), native.Addrs[i], netip.AddrPortFrom(w.Addrs[i], 9), "bad"); err != nil && !errors.Is(err, unix.EPERM) {
					t.Fatal(err)
				}
				if n := dropped(t, h.ns, "never in plaintext") - leaks; n != 1 {
					t.Errorf("%d packets dropped on their way to it, want 1", n)
				}
			}
		})
	}
}

// From another device than the one its route leads to, such an address is forged.
func TestAddressesOnlyForgedFromOutside(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w, native := workload(2, newNamespace(t)), h.attach(t, 1)
	w.AddressesOnly = true
	_, err := h.Attach(w)
	must(t, err)
	c := connect(t, h.outside)
	eth0 := up(t, c, "eth0").Attrs().Index
	for _, plugged := range []bool{false, true} {
		if plugged {
			h.plug(t, w, "veth7")
		}
		for i, p := range desired().Universe {
			gw := netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1"}[i])
			must(t, c.RouteReplace(&netlink.Route{Dst: ipNet(p), LinkIndex: eth0, Gw: gw.AsSlice()}))
			actual := netip.MustParseAddr([]string{"192.0.2.2", "2001:db8::2"}[i])
			sender := func(from netip.Addr, payload string) func(uint16) error {
				return func(port uint16) error {
					return send(t, h.outside, from, netip.AddrPortFrom(native.Addrs[i], port), payload)
				}
			}
			before := dropped(t, h.ns, "source is not this workload's")
			onlySecond(t, sender(w.Addrs[i], "bad"), sender(actual, "good"), native.ns(t), native.Addrs[i])
			if n := dropped(t, h.ns, "source is not this workload's") - before; n != 1 {
				t.Errorf("%d packets dropped, want 1", n)
			}
		}
	}
}

// Somebody removes an address from the set, and the table: the next change puts it right.
func TestAddressesOnlyInADamagedTable(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	first, second := workload(1, newNamespace(t)), workload(2, newNamespace(t))
	first.AddressesOnly, second.AddressesOnly = true, true
	_, err := h.Attach(first)
	must(t, err)
	_, err = removeTable(h.ns)
	must(t, err)
	_, err = h.Attach(second)
	must(t, err)
	want := ruleset(t, h.ns)
	h.apply(t, desired(first, second))
	differ(t, "the rules", want, ruleset(t, h.ns))
	_, err = removeTable(h.ns)
	must(t, err)
	must(t, h.Detach(first))
	h.apply(t, desired(second))
	h.plug(t, second, "veth7")
	must(t, h.Check(second))
	for _, v6 := range []bool{false, true} {
		list, err := readSet(h.ns, givenSet(v6).name)
		must(t, err)
		if len(list) != 1 {
			t.Errorf("the set has %v", list)
		}
	}
}

// CHECK asks the kernel, and not what was told to it.
func TestCheckOfAddressesOnly(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := workload(1, newNamespace(t))
	w.AddressesOnly = true
	_, err := h.Attach(w)
	must(t, err)
	check := func(want string) {
		t.Helper()
		before := snapshot(t, h.ns)
		var d *DifferenceError
		if err := h.Check(w); (err == nil) != (want == "") || want != "" && (!errors.As(err, &d) || err.Error() != want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		differ(t, "a look changes the host", before, snapshot(t, h.ns))
	}
	check("the host has no route to 10.32.1.1 by an interface of another plugin")
	h.plug(t, w, "veth7")
	check("")
	for i, a := range w.Addrs {
		must(t, h.change(contents{givenSet(a.Is6()).name: {{key: string(a.AsSlice())}: true}}, nil))
		check([]string{"packets of 10.32.1.1 are not let through", "packets of fd77::1:1 are not let through"}[i])
		must(t, h.change(nil, contents{givenSet(a.Is6()).name: {{key: string(a.AsSlice())}: true}}))
		check("")

		list, err := h.conn.routes(family(a))
		must(t, err)
		for _, r := range list {
			if r.Dst != nil && r.Dst.String() == hostPrefix(a).String() {
				must(t, h.conn.RouteDel(&r))
			}
		}
		check([]string{"the host has no route to 10.32.1.1 by an interface of another plugin", "the host has no route to fd77::1:1 by an interface of another plugin"}[i])
		r := netlink.Route{Dst: hostPrefix(a), LinkIndex: up(t, h.conn, "veth7").Attrs().Index, Scope: netlink.SCOPE_LINK}
		if a.Is6() {
			r.Scope = netlink.SCOPE_UNIVERSE
		}
		must(t, h.conn.RouteAdd(&r))
		check("")
	}
	_, err = removeTable(h.ns)
	must(t, err)
	check("packets of 10.32.1.1 are not let through")
}

// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outsideMAC returns the hardware address of the outside, as the host sees it.
func (h *testHost) outsideMAC(t testing.TB) net.HardwareAddr {
	t.Helper()
	l, err := connect(t, h.outside).link("eth0")
	must(t, err)
	return l.Attrs().HardwareAddr
}

// neighbourPeer makes the outside a peer that is reached without a tunnel, and returns what it may.
func (h *testHost) neighbourPeer(t testing.TB) Plaintext {
	t.Helper()
	c := connect(t, h.outside)
	eth0 := up(t, c, "eth0").Attrs().Index
	hop4, hop6 := net.ParseIP("192.0.2.1"), net.ParseIP("2001:db8::1")
	// Nobody asks for a neighbour from an address of another device.
	own := up(t, h.conn, "eth0")
	for i, a := range []netip.Addr{peer4, peer6} {
		must(t, h.conn.NeighSet(neighbour(own.Attrs().Index, a, h.outsideMAC(t))))
		must(t, c.NeighSet(neighbour(eth0, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}[i], own.Attrs().HardwareAddr)))
	}
	p := Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices}
	for i, prefix := range []netip.Prefix{has4, has6} {
		remote := []netip.Addr{remote4, remote6}[i]
		must(t, c.AddrAdd(up(t, c, "lo"), address(remote)))
		c.settled(remote, patience)
		must(t, c.RouteAdd(&netlink.Route{Dst: ipNet(desired().Universe[i]), LinkIndex: eth0, Gw: [2]net.IP{hop4, hop6}[i], Src: remote.AsSlice()}))
		p.Out = append(p.Out, Out{"eth0", prefix})
		p.In = append(p.In, In{"eth0", h.outsideMAC(t), prefix})
	}
	return p
}

// direct routes the peer's prefixes to it, or no longer.
func (h *testHost) direct(t testing.TB, on bool) {
	t.Helper()
	eth0 := up(t, h.conn, "eth0").Attrs().Index
	for i, prefix := range []netip.Prefix{has4, has6} {
		r := &netlink.Route{Dst: ipNet(prefix), LinkIndex: eth0, Gw: []netip.Addr{peer4, peer6}[i].AsSlice(), Src: desired().Addrs[i].AsSlice(), Protocol: 88}
		if on {
			must(t, h.conn.RouteAdd(r))
		} else {
			must(t, h.conn.RouteDel(r))
		}
	}
}

// Without a tunnel a source of the overlay comes from the neighbour that has it, by its link, or not at all.
func TestForgedSourcesOfNeighbours(t *testing.T) {
	h := newHost(t)
	d := desired()
	right := h.neighbourPeer(t)
	d.Plain = right
	h.apply(t, d)
	w := h.attach(t, 1)
	for i, victim := range w.Addrs {
		mine, theirs := []netip.Addr{remote4, remote6}[i], []netip.Addr{remoteO4, remoteO6}[i]
		sender := func(from netip.Addr, payload string) func(uint16) error {
			return func(port uint16) error {
				return send(t, h.outside, from, netip.AddrPortFrom(victim, port), payload)
			}
		}
		strangeMAC, strangeLink := right, right
		strangeMAC.In, strangeLink.In = slices.Clone(right.In), slices.Clone(right.In)
		for n := range right.In {
			strangeMAC.In[n].MAC = net.HardwareAddr{2, 0, 0, 0, 0, 99}
			strangeLink.In[n].Device = "eth1"
		}
		for _, x := range []struct {
			name string
			may  Plaintext
			from netip.Addr
		}{
			{"another peer's source", right, theirs},
			{"the host's source", right, d.Addrs[i]},
			{"the workload's source", right, victim},
			{"from another hardware address", strangeMAC, mine},
			{"by another link", strangeLink, mine},
			{"no longer", Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices}, mine},
			{"without kernel paths", Plaintext{}, mine},
		} {
			before := dropped(t, h.ns, "forged: source is in the overlay")
			c := listen(t, w.ns(t), victim)
			must(t, h.SetPlain(x.may))
			if x.may.VXLANPort == 0 {
				before = 0 // another table
			}
			must(t, sender(x.from, "bad: "+x.name)(port(c)))
			if n := dropped(t, h.ns, "forged: source is in the overlay") - before; n != 1 {
				t.Errorf("%v, %s: %d packets dropped, want 1", victim, x.name, n)
			}
			must(t, h.SetPlain(right))
			must(t, sender(mine, "good")(port(c)))
			if got, from := receive(t, c); got != "good" || from != mine {
				t.Errorf("%q from %v has arrived", got, from)
			}
		}
	}
}

// To the universe a packet leaves by a kernel path that is listed, and by no other, whatever the routes say; and what left is counted.
func TestOnlyListedPathsCarryPlaintext(t *testing.T) {
	h := newHost(t)
	h.tunnels(t)
	d := desired()
	d.Plain = h.neighbourPeer(t)
	h.apply(t, d)
	w := h.attach(t, 1)
	h.direct(t, true)
	// Routes that nobody has consented to: to another peer by the link, and to both by a tunnel.
	eth0, vx4 := up(t, h.conn, "eth0").Attrs().Index, up(t, h.conn, "weft-vx4").Attrs().Index
	c := connect(t, h.outside)
	for i, remote := range []netip.Addr{remoteO4, remoteO6} {
		must(t, c.AddrAdd(up(t, c, "lo"), address(remote)))
		c.settled(remote, patience)
		must(t, h.conn.RouteAdd(&netlink.Route{Dst: hostPrefix(remote), LinkIndex: eth0, Gw: []netip.Addr{peer4, peer6}[i].AsSlice(), Protocol: 88}))
	}
	for _, src := range []namespace{h.ns, w.ns(t)} {
		for i, remote := range []netip.Addr{remoteO4, remoteO6} {
			good := []netip.Addr{remote4, remote6}[i]
			before := dropped(t, h.ns, "never in plaintext")
			onlySecond(t, func(port uint16) error {
				return send(t, src, netip.Addr{}, netip.AddrPortFrom(remote, port), "leak")
			}, func(port uint16) error {
				return send(t, src, netip.Addr{}, netip.AddrPortFrom(good, port), "good")
			}, h.outside, remote)
			if n := dropped(t, h.ns, "never in plaintext") - before; n != 1 {
				t.Errorf("to %v: %d packets dropped, want 1", remote, n)
			}
		}
	}
	got, err := h.Traffic()
	must(t, err)
	for _, p := range []netip.Prefix{has4, has6} {
		if got[p] != 2 {
			t.Errorf("to %v: %d packets counted, want 2", p, got[p])
		}
	}
	// By a tunnel that is not listed, or for something that is not the overlay.
	h.direct(t, false)
	for _, prefix := range []string{has4.String(), "203.0.113.0/24"} {
		must(t, h.conn.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(prefix)), LinkIndex: vx4, Scope: unix.RT_SCOPE_LINK, Protocol: 88}))
	}
	for to, comment := range map[string]string{remote4.String(): "never in plaintext", "203.0.113.7": "not for the overlay"} {
		a := netip.MustParseAddr(to)
		must(t, h.conn.NeighSet(neighbour(vx4, a, net.HardwareAddr{2, 0, 0, 0, 0, 1})))
		before := dropped(t, h.ns, comment)
		const packets = 20 // the kernel sends some of its own
		for range packets {
			if err := send(t, h.ns, netip.Addr{}, netip.AddrPortFrom(a, 9), "leak"); err != nil && !errors.Is(err, unix.EPERM) {
				t.Fatal(err)
			}
		}
		if n := dropped(t, h.ns, comment) - before; n < packets {
			t.Errorf("to %v: %d packets dropped as %q, want %d", a, n, comment, packets)
		}
	}
}

// A peer's packets reach this host and its workloads, and go no further; replies to what was sent into the overlay by this host do.
func TestPeersGoNoFurther(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Plain = h.neighbourPeer(t)
	h.apply(t, d)
	w := h.attach(t, 1)
	h.direct(t, true)
	// Another network behind the host, whose members may use the overlay as this host does.
	lan := newNamespace(t)
	v := netlink.NewVeth(netlink.NewLinkAttrs())
	v.Name, v.PeerName, v.PeerNamespace = "lan0", "lan0", netlink.NsFd(lan)
	must(t, h.conn.LinkAdd(v))
	addAddr(t, h.conn, "lan0", "198.51.100.1/24", "2001:db8:1::1/64")
	c := connect(t, lan)
	l := addAddr(t, c, "lan0", "198.51.100.2/24", "2001:db8:1::2/64")
	for _, gw := range []string{"198.51.100.1", "2001:db8:1::1"} {
		must(t, c.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)}))
	}
	must(t, connect(t, h.outside).RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("198.51.100.0/24")), LinkIndex: up(t, connect(t, h.outside), "eth0").Attrs().Index, Gw: net.ParseIP("192.0.2.1")}))
	must(t, connect(t, h.outside).RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("2001:db8:1::/64")), LinkIndex: up(t, connect(t, h.outside), "eth0").Attrs().Index, Gw: net.ParseIP("2001:db8::1")}))
	for i, peer := range []netip.Addr{remote4, remote6} {
		inLAN := []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:1::2")}[i]
		if from := reaches(t, lan, h.outside, peer); from != d.Addrs[i] {
			t.Errorf("the peer sees %v, want %v", from, d.Addrs[i])
		}
		if from := reaches(t, h.ns, h.outside, peer); from != d.Addrs[i] {
			t.Errorf("the peer sees %v of the host, want %v", from, d.Addrs[i])
		}
		if from := reaches(t, w.ns(t), h.outside, peer); from != w.Addrs[i] {
			t.Errorf("the peer sees %v, want %v", from, w.Addrs[i])
		}
		before := dropped(t, h.ns, "not for the outside")
		onlySecond(t, func(port uint16) error {
			return send(t, h.outside, peer, netip.AddrPortFrom(inLAN, port), "bad")
		}, func(port uint16) error {
			return send(t, h.outside, netip.Addr{}, netip.AddrPortFrom(inLAN, port), "good")
		}, lan, inLAN)
		if n := dropped(t, h.ns, "not for the outside") - before; n != 1 {
			t.Errorf("to %v: %d packets dropped, want 1", inLAN, n)
		}
	}
}

// A connection into the overlay keeps its address and port when the path to the peer changes.
func TestConnectionsSurviveChangeOfPath(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Plain = h.neighbourPeer(t)
	h.apply(t, d)
	for i, peer := range []netip.Addr{remote4, remote6} {
		server := listen(t, h.outside, peer)
		// From an address of the host that is none of the overlay.
		var client *net.UDPConn
		in(t, h.ns, func() (err error) {
			client, err = net.DialUDP(network(peer), net.UDPAddrFromAddrPort(netip.AddrPortFrom([]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}[i], 0)),
				net.UDPAddrFromAddrPort(netip.AddrPortFrom(peer, port(server))))
			return err
		})
		t.Cleanup(func() { must(t, client.Close()) })
		_, err := client.Write([]byte("by the router"))
		must(t, err)
		b := make([]byte, 2048)
		n := read(t, h.tun, b)
		for b[0]>>4 == 4 && b[9] != unix.IPPROTO_UDP || b[0]>>4 == 6 && b[6] != unix.IPPROTO_UDP || b[0]>>4 == 4 != peer.Is4() {
			n = read(t, h.tun, b)
		}
		head := 20 + 20*i
		sport := uint16(b[head])<<8 | uint16(b[head+1])
		src, _ := netip.AddrFromSlice(b[[]int{12, 8}[i]:][:[]int{4, 16}[i]])
		if src != d.Addrs[i] {
			t.Fatalf("the overlay sees %v of %d bytes, want %v", src, n, d.Addrs[i])
		}
		// The peer answers by the kernel path already.
		reply := func(payload string) {
			t.Helper()
			_, err := server.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(src, sport))
			must(t, err)
			must(t, client.SetReadDeadline(noLater()))
			n, err := client.Read(b)
			if err != nil || string(b[:n]) != payload {
				t.Errorf("to %v: %q, %v", peer, b[:n], err)
			}
		}
		reply("first")
		h.direct(t, true)
		for range 2 {
			_, err = client.Write([]byte("by the kernel"))
			must(t, err)
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil || string(b[:n]) != "by the kernel" || from != netip.AddrPortFrom(src, sport) {
				t.Errorf("to %v: %q from %v, %v; the router saw %v", peer, b[:n], from, err, netip.AddrPortFrom(src, sport))
			}
			reply("second")
		}
		h.direct(t, false)
	}
}

// What a workload, or anybody whose address is translated, sends to where tunnels end does not leave; what the host sends does, and is
// not tracked.
func TestNoTunnelsOfOthers(t *testing.T) {
	h := newHost(t)
	d := desired()
	p := plain()
	for i := range p.Tunnels {
		p.Tunnels[i].Port = 7000
	}
	d.Plain = p
	h.apply(t, d)
	w := h.attach(t, 1)
	// A container of somebody else, masqueraded by its engine, and one that gets there by a port of another service.
	lan := newNamespace(t)
	v := netlink.NewVeth(netlink.NewLinkAttrs())
	v.Name, v.PeerName, v.PeerNamespace = "lan0", "lan0", netlink.NsFd(lan)
	must(t, h.conn.LinkAdd(v))
	addAddr(t, h.conn, "lan0", "198.51.100.1/24", "2001:db8:1::1/64")
	c := connect(t, lan)
	l := addAddr(t, c, "lan0", "198.51.100.2/24", "2001:db8:1::2/64")
	for _, gw := range []string{"198.51.100.1", "2001:db8:1::1"} {
		must(t, c.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)}))
	}
	others := h.connection(t)
	table := others.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyINet})
	nat := others.AddChain(&nftables.Chain{Table: table, Name: "nat", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	others.AddRule(&nftables.Rule{Table: table, Chain: nat, Exprs: append(name(expr.MetaKeyIIFNAME, expr.CmpOpEq, "lan0"), &expr.Masq{})})
	must(t, others.Flush())

	// A node has tunnels at all of its addresses, also at those that nobody here knows of.
	out := connect(t, h.outside)
	addAddr(t, out, "eth0", "192.0.2.4/24", "2001:db8::4/64")
	stranger4, stranger6 := netip.MustParseAddr("192.0.2.4"), netip.MustParseAddr("2001:db8::4")
	out.settled(stranger6, patience)
	forgers := []struct {
		src     namespace
		comment string
	}{{w.ns(t), "workloads have no tunnels"}, {lan, "tunnel of somebody else"}}
	open := func(to netip.Addr, port uint16) (end *net.UDPConn) {
		t.Helper()
		in(t, h.outside, func() (err error) {
			end, err = net.ListenUDP(network(to), &net.UDPAddr{IP: to.AsSlice(), Port: int(port)})
			return err
		})
		t.Cleanup(func() { must(t, end.Close()) })
		must(t, end.SetDeadline(noLater()))
		return end
	}
	for _, at := range []struct {
		to   netip.Addr
		port uint16
		peer bool
	}{
		{peer4, 7000, true},
		{peer6, 7000, true},
		{peer4, vxlanPort, false},
		{peer6, vxlanPort, false},
		{stranger4, 7000, false},
		{stranger6, 7000, false},
		{stranger4, vxlanPort, false},
		{stranger6, vxlanPort, false},
	} {
		to := netip.AddrPortFrom(at.to, at.port)
		end := open(at.to, at.port)
		for _, x := range forgers {
			before := dropped(t, h.ns, x.comment)
			if err := send(t, x.src, netip.Addr{}, to, "bad"); err != nil {
				t.Fatal(err)
			}
			if n := dropped(t, h.ns, x.comment) - before; n != 1 {
				t.Errorf("to %v: %d packets dropped as %q, want 1", to, n, x.comment)
			}
			tracked := dropped(t, h.ns, "tunnels are not tracked")
			must(t, send(t, h.ns, netip.Addr{}, to, "good"))
			if got, _ := receive(t, end); got != "good" {
				t.Errorf("%q has arrived", got)
			}
			if n := dropped(t, h.ns, "tunnels are not tracked") - tracked; n != 1 && at.peer {
				t.Errorf("%d packets were not tracked, want 1", n)
			}
			// To other ports they may, and on the overlay to all.
			overlay := []netip.Addr{remote4, remote6}[map[bool]int{true: 1}[at.to.Is6()]]
			for _, other := range []netip.AddrPort{netip.AddrPortFrom(at.to, port(listen(t, h.outside, at.to))), netip.AddrPortFrom(overlay, at.port)} {
				before := dropped(t, h.ns, x.comment)
				must(t, send(t, x.src, netip.Addr{}, other, "fine"))
				if n := dropped(t, h.ns, x.comment) - before; n != 0 {
					t.Errorf("to %v: %d packets dropped", other, n)
				}
			}
		}
	}

	// When kernel paths have ended, peers may take tunnels of this host yet. All else is as without them.
	must(t, h.SetPlain(Plaintext{VXLANPort: vxlanPort}))
	for _, to := range []netip.Addr{peer4, stranger6} {
		for _, x := range forgers {
			before := dropped(t, h.ns, x.comment)
			must(t, send(t, x.src, netip.Addr{}, netip.AddrPortFrom(to, vxlanPort), "bad"))
			if n := dropped(t, h.ns, x.comment) - before; n != 1 {
				t.Errorf("to %v, without kernel paths: %d packets dropped as %q, want 1", to, n, x.comment)
			}
			reaches(t, x.src, h.outside, to)
		}
		reaches(t, h.ns, h.outside, to)
	}
	other := h.attach(t, 2)
	for i, a := range other.Addrs {
		if from := reaches(t, w.ns(t), other.ns(t), a); from != w.Addrs[i] {
			t.Errorf("%v is seen as %v", w.Addrs[i], from)
		}
	}

	// Without the rule they would arrive: the test is worth something.
	must(t, h.SetPlain(Plaintext{}))
	must(t, connect(t, h.outside).AddrAdd(up(t, out, "eth0"), address(netip.MustParseAddr("192.0.2.5"))))
	last := netip.MustParseAddr("192.0.2.5")
	end := open(last, vxlanPort)
	must(t, send(t, w.ns(t), netip.Addr{}, netip.AddrPortFrom(last, vxlanPort), "there"))
	if got, from := receive(t, end); got != "there" || from != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%q from %v", got, from)
	}
}

// A daemon that starts, changes what other peers may, and makes the table again: no packet of a peer by its kernel path is lost.
func TestNoPacketIsLostMeanwhile(t *testing.T) {
	h := newHost(t)
	d := desired()
	right := h.neighbourPeer(t)
	d.Plain = right
	h.apply(t, d)
	w := h.attach(t, 1)
	d.Workloads = []Workload{w}
	h.direct(t, true)
	type way struct {
		to      *net.UDPConn
		src     namespace
		from    netip.Addr
		dst     netip.AddrPort
		sent    int
		arrived chan int
	}
	var ways []*way
	for i, remote := range []netip.Addr{remote4, remote6} {
		there, here := listen(t, h.outside, remote), listen(t, w.ns(t), w.Addrs[i])
		ways = append(ways,
			&way{to: there, src: w.ns(t), dst: netip.AddrPortFrom(remote, port(there))},
			&way{to: here, src: h.outside, from: remote, dst: netip.AddrPortFrom(w.Addrs[i], port(here))})
	}
	done, sending := make(chan struct{}), sync.WaitGroup{}
	for _, x := range ways {
		x.arrived = make(chan int, 1)
		raw, err := x.to.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) { must(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)) }))
		must(t, x.to.SetDeadline(time.Time{})) // the changes may take any time
		go func() {
			n, b := 0, make([]byte, 16)
			for {
				k, _, err := x.to.ReadFromUDPAddrPort(b)
				if err != nil || string(b[:k]) == "end" {
					x.arrived <- n
					return
				}
				n++
			}
		}()
		sending.Go(func() {
			for {
				select {
				case <-done:
					time.Sleep(100 * time.Millisecond) // another processor may be slower
					if err := send(t, x.src, x.from, x.dst, "end"); err != nil {
						t.Error(err)
					}
					return
				default:
				}
				if err := send(t, x.src, x.from, x.dst, "x"); err != nil {
					t.Error(err)
					return
				}
				x.sent++
			}
		})
	}
	two := right
	two.Tunnels = plain().Tunnels
	two.Out = append(slices.Clone(right.Out), Out{"eth0", others4})
	for range 10 {
		h.Host = newAt(h.log, h.ns) // as after a crash
		d.Plain = Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices, Keep: true}
		h.apply(t, d)
		must(t, h.SetPlain(two))
		h.apply(t, d)
		must(t, h.SetPlain(right))
		d.Masquerade = !d.Masquerade // another table
		h.apply(t, d)
	}
	close(done)
	sending.Wait()
	for _, x := range ways {
		must(t, x.to.SetDeadline(time.Now().Add(patience))) // for "end"
		if n := <-x.arrived; n != x.sent || n < 100 {
			t.Errorf("to %v: %d packets arrived of %d", x.dst, n, x.sent)
		} else {
			t.Logf("to %v: %d packets", x.dst, n)
		}
	}
}

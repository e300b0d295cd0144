// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/fastpath"
)

// connected makes the paths of all hosts to all others.
func connected(t testing.TB, hosts []*host, under func(int) netip.Addr, use fastpath.Kind) {
	t.Helper()
	for _, h := range hosts {
		must(t, h.Apply(h.toAll(hosts, under, use)))
	}
}

// toAll is what h wants to reach all others by one kind.
func (h *host) toAll(hosts []*host, under func(int) netip.Addr, use fastpath.Kind) Desired {
	var peers []Peer
	for _, other := range hosts {
		if other.n != h.n {
			peers = append(peers, peer(other.n, under(other.n), use))
		}
	}
	return h.desired(peers...)
}

// exchange sends a packet from one overlay address to another, of that size as a whole, and back, with a mark.
func exchange(t testing.TB, a, b *host, v6 bool, size, mark int) error {
	t.Helper()
	return exchangeBy(t, a, b, v6, size, mark, "")
}

// exchangeBy is exchange by a device, if it is one of IPv4, as probes by VXLAN go.
func exchangeBy(t testing.TB, a, b *host, v6 bool, size, mark int, device string) error {
	t.Helper()
	from, to, header := over4(a.n), over4(b.n), 28
	level, option := unix.SOL_IP, unix.IP_MTU_DISCOVER
	if v6 {
		from, to, header = over6(a.n), over6(b.n), 48
		level, option = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER
	}
	server, client := listen(t, b.ns, to, 0), listen(t, a.ns, from, 0)
	defer func() { _, _ = server.Close(), client.Close() }()
	raw, err := client.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		must(t, unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO))
		must(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark))
	}))
	deadline := time.Now().Add(patience)
	if mark != 0 {
		deadline = time.Now().Add(time.Second)
	}
	must(t, server.SetDeadline(deadline))
	must(t, client.SetDeadline(deadline))
	out := make([]byte, size-header)
	addr := netip.AddrPortFrom(to, server.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	var control []byte
	if device != "" && !v6 {
		control = unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(a.link(t, device).Attrs().Index), Spec_dst: from.As4()})
	}
	if _, _, err := client.WriteMsgUDPAddrPort(out, control, addr); err != nil {
		return err
	}
	buf := make([]byte, 65536)
	n, back, err := server.ReadFromUDPAddrPort(buf)
	if err != nil {
		return fmt.Errorf("there: %w", err)
	}
	if n != len(out) || back.Addr().Unmap() != from {
		return fmt.Errorf("%d bytes from %v", n, back)
	}
	if _, err := server.WriteToUDPAddrPort(out, back); err != nil {
		return err
	}
	if _, _, err := client.ReadFromUDPAddrPort(buf); err != nil {
		return fmt.Errorf("back: %w", err)
	}
	return nil
}

// Packets of both families go by VXLAN over each family, and directly, at the full size of each path and not one byte more.
func TestPathsCarry(t *testing.T) {
	for _, x := range []struct {
		name   string
		under  func(int) netip.Addr
		use    fastpath.Kind
		device string
		mtu    int
	}{
		{"vxlan over IPv4", under4, fastpath.VXLAN, Device4, 1450},
		{"vxlan over IPv6", under6, fastpath.VXLAN, Device6, 1430},
		{"direct", under4, fastpath.Direct, "eth0", 1500},
	} {
		t.Run(x.name, func(t *testing.T) {
			hosts := newHosts(t, 2)
			connected(t, hosts, x.under, x.use)
			for _, v6 := range []bool{false, true} {
				before := hosts[0].sent(t, x.device)
				if err := exchange(t, hosts[0], hosts[1], v6, x.mtu, 0); err != nil {
					t.Fatalf("IPv6 %v: %v", v6, err)
				}
				if hosts[0].sent(t, x.device) == before {
					t.Errorf("IPv6 %v: it did not go by %s", v6, x.device)
				}
				if err := exchange(t, hosts[0], hosts[1], v6, x.mtu+1, 0); err == nil {
					t.Errorf("IPv6 %v: a packet of %d bytes went by a path of %d", v6, x.mtu+1, x.mtu)
				}
			}
		})
	}
}

// Marked packets go by the way of their mark, whatever the path in use is, and nowhere else if there is none.
func TestMarks(t *testing.T) {
	hosts := newHosts(t, 2)
	h := hosts[0]
	ways := []struct {
		name   string
		under  func(int) netip.Addr
		mark   int
		device string
	}{
		{"vxlan over IPv4", under4, MarkVXLAN, Device4}, {"vxlan over IPv6", under6, MarkVXLAN, Device6}, {"direct", under4, MarkDirect, "eth0"},
	}
	for _, use := range fastpath.Kinds() {
		for _, x := range ways {
			for _, v6 := range []bool{false, true} {
				for _, h := range hosts { // the way back of udp is the router's matter: here it is direct
					d := h.toAll(hosts, x.under, fastpath.Direct)
					if h == hosts[0] {
						d.Peers[0].Path = use
					}
					must(t, h.Apply(d))
				}
				tunnel := h.sent(t, Device4) + h.sent(t, Device6)
				before := h.sent(t, x.device)
				by := x.device
				if x.mark == MarkDirect {
					by = ""
				}
				if err := exchangeBy(t, h, hosts[1], v6, 1000, x.mark, by); err != nil {
					t.Errorf("%s while %v is in use, IPv6 %v: %v", x.name, use, v6, err)
				}
				if h.sent(t, x.device) == before || x.mark == MarkDirect && h.sent(t, Device4)+h.sent(t, Device6) != tunnel {
					t.Errorf("%s while %v is in use, IPv6 %v: it went elsewhere", x.name, use, v6)
				}
			}
		}
	}
	// Without a way there is an error at once, though the main table has one.
	d := h.toAll(hosts, under4, fastpath.Direct)
	d.Peers[0].VXLAN = netip.AddrPort{}
	d.Peers = append(d.Peers, peer(3, under4(3), fastpath.UDP)) // somebody else has one
	must(t, h.Apply(d))
	for _, v6 := range []bool{false, true} {
		if err := exchange(t, h, hosts[1], v6, 1000, 0); err != nil {
			t.Error(err)
		}
		if !v6 { // one of IPv4 waits for a neighbour that does not answer
			if err := exchangeBy(t, h, hosts[1], v6, 1000, MarkVXLAN, Device4); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("by vxlan, which the peer has not: %v", err)
			}
			continue
		}
		if err := exchange(t, h, hosts[1], v6, 1000, MarkVXLAN); !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("IPv6 %v, by vxlan, which the peer has not: %v", v6, err)
		}
	}
}

// IPv4 goes to a hop of IPv6 on a network where the peer has no other.
func TestDirectByIPv6(t *testing.T) {
	hosts := newHosts(t, 2)
	for _, h := range hosts {
		d := h.toAll(hosts, under4, fastpath.Direct)
		d.Peers[0].Hop4 = d.Peers[0].Hop6
		must(t, h.Apply(d))
		m := newMonitor(t, h.ns)
		h.reconciled(t)
		m.quiet(t, "Reconcile")
	}
	if err := exchange(t, hosts[0], hosts[1], false, 1500, 0); err != nil {
		t.Error(err)
	}
	if got := snapshot(t, hosts[0].ns); !slices.ContainsFunc(got, func(l string) bool {
		return strings.Contains(l, "route 10.34.0.0/16") && strings.Contains(l, "2001:db8::2")
	}) {
		t.Errorf("%q", got)
	}
}

// A peer that has the whole universe is reached although the way to the router has the same prefix.
func TestWholeUniverse(t *testing.T) {
	hosts := newHosts(t, 2)
	connected(t, hosts, under4, fastpath.VXLAN)
	d := hosts[0].toAll(hosts, under4, fastpath.VXLAN)
	d.Peers[0].Prefixes = d.Universe
	must(t, hosts[0].Apply(d))
	for _, v6 := range []bool{false, true} {
		if err := exchange(t, hosts[0], hosts[1], v6, 1000, 0); err != nil {
			t.Error(err)
		}
	}
	hosts[0].reconciled(t)
	found, err := hosts[0].newKernel(t).Found(d)
	if err != nil || found[idOf(2)] != fastpath.VXLAN {
		t.Error(found, err)
	}
	for i := range d.Peers {
		d.Peers[i].Path = fastpath.Direct
	}
	must(t, hosts[0].Apply(d))
	if found, err = hosts[0].newKernel(t).Found(d); err != nil || found[idOf(2)] != fastpath.Direct {
		t.Error(found, err)
	}
}

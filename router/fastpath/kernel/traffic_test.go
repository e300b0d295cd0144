// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"
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
	addr := netip.AddrPortFrom(to, uint16(server.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port()))
	if _, err := client.WriteToUDPAddrPort(out, addr); err != nil {
		return err
	}
	in := make([]byte, 65536)
	n, back, err := server.ReadFromUDPAddrPort(in)
	if err != nil {
		return fmt.Errorf("there: %w", err)
	}
	if n != len(out) || back.Addr().Unmap() != from {
		return fmt.Errorf("%d bytes from %v", n, back)
	}
	if _, err := server.WriteToUDPAddrPort(out, back); err != nil {
		return err
	}
	if _, _, err := client.ReadFromUDPAddrPort(in); err != nil {
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

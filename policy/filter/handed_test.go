// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// A virtual service hands datagrams on as IPVS does, which this kernel may not have: it takes what arrives for an address of the node, and sends it with the
// source that it came with to the endpoint, so that it passes the hooks of input, output and postrouting, and never that of forwarding.
type virtual struct {
	at     netip.AddrPort // of the service
	behind netip.AddrPort
}

// transparent opens a socket of UDP that may have addresses of others.
func (s *space) transparent(a netip.Addr, port uint16) (fd int, err error) {
	domain, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if a.Is6() {
		domain, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	err = s.do(func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	for _, o := range [][2]int{{level, option}, {unix.SOL_SOCKET, unix.SO_REUSEADDR}} {
		err = errors.Join(err, unix.SetsockoptInt(fd, o[0], o[1], 1))
	}
	if err = errors.Join(err, unix.Bind(fd, sockaddr(a, port))); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// serve hands one datagram on, if one comes.
func (v virtual) serve(node *space, listener int, limit time.Duration) error {
	if err := ready(listener, unix.POLLIN, limit); err != nil {
		return fmt.Errorf("nothing arrives at the service: %w", err)
	}
	b := make([]byte, 64)
	n, from, err := unix.Recvfrom(listener, b, 0)
	if err != nil {
		return err
	}
	var client netip.AddrPort
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		client = netip.AddrPortFrom(netip.AddrFrom4(from.Addr), uint16(from.Port))
	case *unix.SockaddrInet6:
		client = netip.AddrPortFrom(netip.AddrFrom16(from.Addr), uint16(from.Port))
	}
	fd, err := node.transparent(client.Addr(), client.Port())
	if err != nil {
		return fmt.Errorf("as the client: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, b[:n], 0, sockaddr(v.behind.Addr(), v.behind.Port())); err != nil && !errors.Is(err, unix.EPERM) { // what the output drops
		return fmt.Errorf("handing on: %w", err)
	}
	return nil
}

// What is handed on at the node, as by IPVS, is judged at both ends as what is forwarded: from endpoints and from outside, to endpoints of the same node and
// of others, whether or not their sources are hidden afterwards. What the node sends itself is not.
func TestHandedOn(t *testing.T) {
	t.Parallel()
	for _, masquerade := range []bool{false, true} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprint("masquerade ", masquerade, " v6 ", v6), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				f := newFilter(t, w.node)
				if masquerade {
					w.node.nft(t, "add table inet other")
					w.node.nft(t, "add chain inet other hide { type nat hook postrouting priority 100; }")
					w.node.nft(t, "add rule inet other hide udp dport 80-89 masquerade")
				}
				pod, inside, outside := podAddr(0, v6), podAddr(2, v6), clientAddr(v6)
				vip := pick(v6, "10.9.1.1", "fd09:1::1")
				const in, out = 1, 2
				s := compile.NewState()
				s.Tables[in] = &compile.Table{ID: in, Default: by(false, "in"), Cells: map[compile.Cell]compile.Verdict{
					{Identity: 5, Protocol: policy.UDP, First: 80, Last: 80}:             by(true, "from the pod"),
					{Identity: 6, Protocol: policy.UDP, First: 81, Last: 81}:             by(true, "from outside"),
					{Identity: compile.World, Protocol: policy.UDP, First: 83, Last: 83}: by(true, "from all"),
				}}
				s.Tables[out] = &compile.Table{ID: out, Default: by(false, "out"), Cells: map[compile.Cell]compile.Verdict{
					{Identity: 6, Protocol: policy.UDP, First: 80, Last: 80}:             by(true, "to outside"),
					{Identity: 7, Protocol: policy.UDP, First: 80, Last: 80}:             by(true, "inside"),
					{Identity: compile.World, Protocol: policy.UDP, First: 83, Last: 83}: by(true, "to all"),
					{Identity: compile.OwnNode}:                                          by(true, "node"),
				}}
				s.Identities[pod], s.Identities[outside], s.Identities[inside] = 5, 6, 7
				s.Identities[vip], s.Identities[nodeAddr(v6)] = compile.OwnNode, compile.OwnNode
				s.Sides[compile.Side{Addr: pod, Direction: policy.Egress}] = out
				s.Sides[compile.Side{Addr: inside, Direction: policy.Ingress}] = in
				must(t, f.Replace(s))

				// Neighbours are found first, by what nobody judges: otherwise a datagram may be lost.
				for _, a := range []netip.Addr{pod, inside, outside} {
					if o := w.node.udp(pick(a.Is6(), "0.0.0.0", "::"), a, 9, patience); o != refused {
						t.Fatalf("the node does not reach %v: %s", a, o)
					}
				}
				for _, from := range []netip.Addr{pod, outside, podAddr(1, v6)} {
					for _, to := range []netip.Addr{inside, outside, podAddr(3, v6)} {
						if from == to {
							continue
						}
						for _, port := range []uint16{80, 81, 82, 83} {
							c := policy.Connection{Src: from, Dst: to, Protocol: policy.UDP, Port: port}
							egress, ingress := s.Verdict(c)
							if got, want := w.handOn(t, vip, c), egress.Allow && ingress.Allow; got != want {
								t.Errorf("%+v is handed on: %v, the state says %v", c, got, want)
							}
						}
					}
				}
			})
		}
	}
}

// handOn says whether a datagram comes to the end of its connection through a service of the node.
func (w *world) handOn(t *testing.T, vip netip.Addr, c policy.Connection) bool {
	t.Helper()
	v := virtual{netip.AddrPortFrom(vip, 1000+c.Port), netip.AddrPortFrom(c.Dst, c.Port)}
	target, err := w.of(c.Dst).socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, c.Dst, c.Port)
	must(t, err)
	defer func() { _ = unix.Close(target) }()
	listener, err := w.node.socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, v.at.Addr(), v.at.Port())
	must(t, err)
	defer func() { _ = unix.Close(listener) }()
	source, err := w.of(c.Src).socket(unix.SOCK_DGRAM, c.Src, 0)
	must(t, err)
	defer func() { _ = unix.Close(source) }()
	var served sync.WaitGroup
	served.Go(func() {
		if err := v.serve(w.node, listener, patience); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	})
	must(t, unix.Sendto(source, []byte("!"), 0, sockaddr(v.at.Addr(), v.at.Port())))
	served.Wait()
	// On one machine it is there when it is sent; the wait is for what a busy machine defers.
	return ready(target, unix.POLLIN, never/3) == nil
}

// A proxy of the node that has clients' addresses has its answers to them let through, whatever else they are denied.
func TestProxyAnswersAsTheServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	s := isolated(0)
	must(t, f.Replace(s))
	w.node.nft(t, "add table ip other")
	w.node.nft(t, "add chain ip other take { type filter hook prerouting priority -150; }")
	w.node.nft(t, "add rule ip other take ip saddr 10.9.0.10 udp dport 5000 tproxy to :5000 meta mark set 1")
	// What has the mark is the node's, whatever its address.
	rule := netlink.NewRule()
	rule.Mark, rule.Table, rule.Priority = 1, 100, 100
	must(t, w.node.nl.RuleAdd(rule))
	lo, err := w.node.nl.LinkByName("lo")
	must(t, err)
	_, all, err := net.ParseCIDR("0.0.0.0/0")
	must(t, err)
	must(t, w.node.nl.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all, Table: 100, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST}))
	server := clientAddr(false)
	listener, err := w.node.transparent(netip.MustParseAddr("0.0.0.0"), 5000)
	must(t, err)
	defer func() { _ = unix.Close(listener) }()
	client, err := w.pods[0].socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, podAddr(0, false), 6000)
	must(t, err)
	defer func() { _ = unix.Close(client) }()
	must(t, unix.Sendto(client, []byte("?"), 0, sockaddr(server, 5000)))
	must(t, ready(listener, unix.POLLIN, patience))
	answer, err := w.node.transparent(server, 5000)
	must(t, err)
	defer func() { _ = unix.Close(answer) }()
	must(t, unix.Sendto(answer, []byte("!"), 0, sockaddr(podAddr(0, false), 6000)))
	if err := ready(client, unix.POLLIN, patience); err != nil {
		t.Error("the answer of a proxy does not come:", err)
	}
	// What the client has not asked for is denied.
	other, err := w.node.transparent(server, 5001)
	must(t, err)
	defer func() { _ = unix.Close(other) }()
	_, _, err = unix.Recvfrom(client, make([]byte, 8), 0)
	must(t, err)
	if err := unix.Sendto(other, []byte("!"), 0, sockaddr(podAddr(0, false), 6000)); !errors.Is(err, unix.EPERM) {
		t.Errorf("sending as somebody else: %v, want %v", err, unix.EPERM)
	}
}

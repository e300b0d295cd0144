// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	vxlanPort = 6784
	vxlanVNI  = 6783
)

// A peer, at the outside, has two prefixes; another one has others.
var (
	peer4, peer6       = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	other4, other6     = netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::3")
	has4, has6         = netip.MustParsePrefix("10.40.0.0/16"), netip.MustParsePrefix("fd77::4:0/112")
	others4, others6   = netip.MustParsePrefix("10.41.128.0/17"), netip.MustParsePrefix("fd77::5:0/112")
	remote4, remote6   = netip.MustParseAddr("10.40.0.5"), netip.MustParseAddr("fd77::4:5")
	remoteO4, remoteO6 = netip.MustParseAddr("10.41.128.5"), netip.MustParseAddr("fd77::5:5")
	vxlanDevices       = []string{"weft-vx4", "weft-vx6"}
)

// plain is what the two peers may send and be sent by VXLAN.
func plain() Plaintext {
	p := Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices}
	for _, x := range []struct {
		remotes  []netip.Addr
		prefixes []netip.Prefix
	}{{[]netip.Addr{peer4, peer6}, []netip.Prefix{has4, has6}}, {[]netip.Addr{other4, other6}, []netip.Prefix{others4, others6}}} {
		for _, prefix := range x.prefixes {
			for _, d := range vxlanDevices {
				p.Out = append(p.Out, Out{d, prefix})
			}
			for _, r := range x.remotes {
				p.Tunnels = append(p.Tunnels, Tunnel{Remote: r, Prefix: prefix})
			}
		}
	}
	return p
}

// tunnels makes the VXLAN devices of a host, as they are for kernel paths, and the routes of the first peer.
func (h *testHost) tunnels(t testing.TB) (macs [2]net.HardwareAddr) {
	t.Helper()
	for i, d := range vxlanDevices {
		v := &netlink.Vxlan{LinkAttrs: netlink.NewLinkAttrs(), VxlanId: vxlanVNI, Port: vxlanPort, UDP6ZeroCSumRx: true}
		v.Name, v.SrcAddr = d, net.ParseIP([]string{"192.0.2.1", "2001:db8::1"}[i])
		must(t, h.conn.LinkAdd(v))
		setSysctl(t, h.ns, confKey("ipv4", d, "rp_filter"), "2")
		// Without an IPv4 address of its own the kernel drops what comes by it from where another route leads to, the loose filter or not.
		l := addAddr(t, h.conn, d, "10.32.0.1/32")
		macs[i] = l.Attrs().HardwareAddr
	}
	return macs
}

// newTunnelHost makes a host with its tunnels and what the two peers may send by them.
func newTunnelHost(t *testing.T) (h *testHost, macs [2]net.HardwareAddr, d Desired) {
	t.Helper()
	h = newHost(t)
	macs = h.tunnels(t)
	d = desired()
	d.Plain = plain()
	h.apply(t, d)
	return h, macs, d
}

// ip builds a packet around what is above it.
func ip(src, dst netip.Addr, proto byte, above []byte) []byte {
	if src.Is6() {
		b := make([]byte, 40, 40+len(above))
		b[0], b[6], b[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(above)))
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
		return append(b, above...)
	}
	b := make([]byte, 20, 20+len(above))
	b[0], b[8], b[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(above)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, above...)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i, x := range b {
		sum += uint32(x) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// udp builds a datagram with its checksum.
func udp(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(b, payload...)
	pseudo := slices.Concat(src.Addr().AsSlice(), dst.Addr().AsSlice(), []byte{0, unix.IPPROTO_UDP, 0, 0}, b)
	binary.BigEndian.PutUint16(pseudo[len(pseudo)-len(b)-2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], checksum(pseudo))
	return b
}

// encapsulate builds what VXLAN has as payload of UDP.
func encapsulate(vni uint32, to net.HardwareAddr, ethertype uint16, inner []byte) []byte {
	b := []byte{8, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, vni<<8)
	b = append(b, to...)
	b = append(b, 2, 0, 0, 0, 0, 7)
	b = binary.BigEndian.AppendUint16(b, ethertype)
	return append(b, inner...)
}

func ethertype(a netip.Addr) uint16 {
	if a.Is6() {
		return 0x86dd
	}
	return 0x0800
}

// sendRaw sends whole packets from a namespace.
func sendRaw(t testing.TB, n namespace, to netip.Addr, packets ...[]byte) error {
	t.Helper()
	return n.run(func() error {
		domain := unix.AF_INET
		if to.Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, sockaddr(netip.AddrPortFrom(to, 0))); err != nil {
				return fmt.Errorf("sending to %v: %w", to, err)
			}
		}
		return nil
	})
}

// A tunnelled packet arrives if its outer source is a peer's and its inner source is that peer's, and otherwise not, whatever else it is.
func TestForgedTunnels(t *testing.T) {
	h, macs, d := newTunnelHost(t)
	w := h.attach(t, 1)
	// All underlay addresses of the test are at the outside.
	c := connect(t, h.outside)
	addAddr(t, c, "eth0", "192.0.2.3/24", "192.0.2.4/24", "2001:db8::3/64", "2001:db8::4/64")
	stranger := map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.4"), true: netip.MustParseAddr("2001:db8::4")}
	member := map[bool]netip.Addr{false: peer4, true: peer6}

	for _, outer6 := range []bool{false, true} {
		host, mac := netip.MustParseAddr("192.0.2.1"), macs[0]
		if outer6 {
			host, mac = netip.MustParseAddr("2001:db8::1"), macs[1]
		}
		for i, victim := range w.Addrs {
			mine, theirs := []netip.Addr{remote4, remote6}[i], []netip.Addr{remoteO4, remoteO6}[i]
			local := []netip.Addr{netip.MustParseAddr("10.32.1.2"), netip.MustParseAddr("fd77::1:2")}[i]
			outside := []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:9::1")}[i]
			type forged struct {
				name  string
				outer netip.Addr
				inner netip.Addr
				vni   uint32
				kind  uint16
				cut   int // bytes of the payload of UDP; 0: all
			}
			for _, x := range []forged{
				{name: "of a stranger", outer: stranger[outer6], inner: mine},
				{name: "of another peer's source", outer: member[outer6], inner: theirs},
				{name: "of this host's source", outer: member[outer6], inner: d.Addrs[i]},
				{name: "of a local workload's source", outer: member[outer6], inner: local},
				{name: "of a source outside", outer: member[outer6], inner: outside},
				{name: "of another VNI", outer: stranger[outer6], inner: mine, vni: 5},
				{name: "with another ethertype", outer: member[outer6], inner: mine, kind: 0x8100},
				{name: "of the other family's ethertype", outer: member[outer6], inner: theirs, kind: ethertype(mine) ^ 0x0800 ^ 0x86dd},
				{name: "cut in VXLAN", outer: member[outer6], inner: mine, cut: 7},
				{name: "cut in ethernet", outer: member[outer6], inner: mine, cut: 20},
				{name: "cut in the source", outer: member[outer6], inner: mine, cut: 22 + 15},
			} {
				t.Run(fmt.Sprintf("by %v %v %s", host, victim, x.name), func(t *testing.T) {
					packet := func(from, to netip.AddrPort, src netip.Addr, vni uint32, kind uint16, payload string, cut int) []byte {
						inner := ip(src, to.Addr(), unix.IPPROTO_UDP, udp(netip.AddrPortFrom(src, 7), to, []byte(payload)))
						b := encapsulate(vni, mac, kind, inner)
						if cut > 0 {
							b = b[:cut]
						}
						outer := netip.AddrPortFrom(host, vxlanPort)
						return ip(from.Addr(), host, unix.IPPROTO_UDP, udp(from, outer, b))
					}
					before := dropped(t, h.ns, notOfPeer)
					if x.vni == 0 {
						x.vni = vxlanVNI
					}
					if x.kind == 0 {
						x.kind = ethertype(victim)
					}
					onlySecond(t, func(port uint16) error {
						return sendRaw(t, h.outside, host, packet(netip.AddrPortFrom(x.outer, 40000), netip.AddrPortFrom(victim, port), x.inner, x.vni, x.kind, "bad", x.cut))
					}, func(port uint16) error {
						return sendRaw(t, h.outside, host, packet(netip.AddrPortFrom(member[outer6], 40000), netip.AddrPortFrom(victim, port), mine, vxlanVNI, ethertype(victim), "good", 0))
					}, w.ns(t), victim)
					if n := dropped(t, h.ns, notOfPeer) - before; n != 1 {
						t.Errorf("%d packets dropped, want 1", n)
					}
				})
			}
		}
	}
}

// Fragments are put together before their sources are looked at.
func TestForgedFragments(t *testing.T) {
	h, macs, _ := newTunnelHost(t)
	w := h.attach(t, 1)
	id := uint32(time.Now().UnixNano())
	for k, from := range []netip.Addr{peer4, peer6} {
		host := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}[k]
		for i, victim := range w.Addrs {
			mine, theirs := []netip.Addr{remote4, remote6}[i], []netip.Addr{remoteO4, remoteO6}[i]
			for _, split := range []int{0, 8, 24, 32, 40, 48, 56} {
				if split == 0 && !from.Is6() {
					continue // needs an extension header
				}
				t.Run(fmt.Sprintf("%v %v at %d", from, victim, split), func(t *testing.T) {
					send := func(src netip.Addr, payload string) func(uint16) error {
						return func(port uint16) error {
							to := netip.AddrPortFrom(victim, port)
							inner := ip(src, victim, unix.IPPROTO_UDP, udp(netip.AddrPortFrom(src, 7), to, []byte(payload)))
							whole := udp(netip.AddrPortFrom(from, 40000), netip.AddrPortFrom(host, vxlanPort), encapsulate(vxlanVNI, macs[k], ethertype(victim), inner))
							id++
							return sendRaw(t, h.outside, host, fragments(from, host, id, whole, split)...)
						}
					}
					if split == 0 { // kernels since 5.10 drop these themselves, so none of them would arrive
						if err := send(theirs, "bad")(9); err != nil {
							t.Fatal(err)
						}
						return
					}
					before := dropped(t, h.ns, notOfPeer)
					onlySecond(t, send(theirs, "bad"), send(mine, "good"), w.ns(t), victim)
					if n := dropped(t, h.ns, notOfPeer) - before; n != 1 {
						t.Errorf("%d packets dropped, want 1", n)
					}
				})
			}
		}
	}
}

// Nobody sends tunnels by a port of this host from which rules of others lead to that of tunnels, as a service whose end is the host does.
func TestForgedByTranslation(t *testing.T) {
	const open = 5000
	h, macs, _ := newTunnelHost(t)
	w := h.attach(t, 1)
	others := h.connection(t)
	table := others.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyINet})
	nat := others.AddChain(&nftables.Chain{Table: table, Name: "nat", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	others.AddRule(&nftables.Rule{Table: table, Chain: nat, Exprs: append(udpTo(open),
		&expr.Immediate{Register: register, Data: binary.BigEndian.AppendUint16(nil, vxlanPort)}, &expr.Redir{RegisterProtoMin: register})})
	must(t, others.Flush())
	for k, host := range []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
		for i, victim := range w.Addrs {
			mine, theirs := []netip.Addr{remote4, remote6}[i], []netip.Addr{remoteO4, remoteO6}[i]
			send := func(src netip.Addr, by uint16, payload string) func(uint16) error {
				return func(port uint16) error {
					from := []netip.Addr{peer4, peer6}[k]
					inner := ip(src, victim, unix.IPPROTO_UDP, udp(netip.AddrPortFrom(src, 7), netip.AddrPortFrom(victim, port), []byte(payload)))
					outer := udp(netip.AddrPortFrom(from, 40000+uint16(i)), netip.AddrPortFrom(host, by), encapsulate(vxlanVNI, macs[k], ethertype(victim), inner))
					return sendRaw(t, h.outside, host, ip(from, host, unix.IPPROTO_UDP, outer))
				}
			}
			before := dropped(t, h.ns, notOfPeer)
			onlySecond(t, send(theirs, open, "bad"), send(mine, vxlanPort, "good"), w.ns(t), victim)
			if n := dropped(t, h.ns, notOfPeer) - before; n != 1 {
				t.Errorf("to %v by %v: %d packets dropped, want 1", victim, host, n)
			}
		}
	}
}

// fragments are two packets that make up one of UDP, the first of which has so many bytes of it.
func fragments(src, dst netip.Addr, id uint32, whole []byte, first int) [][]byte {
	if src.Is4() {
		var out [][]byte
		for i, part := range [][]byte{whole[:first], whole[first:]} {
			b := ip(src, dst, unix.IPPROTO_UDP, part)
			binary.BigEndian.PutUint16(b[4:], uint16(id))
			binary.BigEndian.PutUint16(b[6:], uint16([]int{1 << 13, first / 8}[i]))
			binary.BigEndian.PutUint16(b[10:], 0)
			binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
			out = append(out, b)
		}
		return out
	}
	next := byte(unix.IPPROTO_UDP)
	if first == 0 { // destination options with padding, before UDP
		next, first = unix.IPPROTO_DSTOPTS, 8
		whole = append([]byte{unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0}, whole...)
	}
	var out [][]byte
	for i, part := range [][]byte{whole[:first], whole[first:]} {
		head := []byte{next, 0, 0, 0}
		binary.BigEndian.PutUint16(head[2:], uint16([]int{1, first}[i]))
		head = binary.BigEndian.AppendUint32(head, id)
		out = append(out, ip(src, dst, unix.IPPROTO_FRAGMENT, append(head, part...)))
	}
	return out
}

// noLater is the deadline of what must arrive.
func noLater() time.Time { return time.Now().Add(patience) }

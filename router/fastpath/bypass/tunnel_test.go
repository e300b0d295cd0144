// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// testOuter is what a flow of the tests has learned of its tunnel: the ethernet header, IPv4 from 192.0.2.1 to 192.0.2.2, UDP, VXLAN, and the inner ethernet header.
func testOuter(f form) []byte {
	b := slices.Concat(
		[]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0},
		[]byte{0x45, 0, 0xff, 0xff, 0xff, 0xff, 0x40, 0, 64, 17, 0xff, 0xff, 192, 0, 2, 1, 192, 0, 2, 2},
		[]byte{0xca, 0xfe, 0x1a, 0x80, 0xff, 0xff, 0, 0},
		[]byte{8, 0, 0, 0, 0, 0, 7, 0},
		testHeader, binary.BigEndian.AppendUint16(nil, f.ethertype))
	return b
}

const testOuterDevice = 77

// tunnelled lets the flow of a sample have a tunnel.
func (b *Bypass) tunnelled(t *testing.T, s sample, change func(flow []byte)) {
	t.Helper()
	b.flow(t, s, func(v []byte) {
		copy(v[flowOuterTime:], v[flowTime:flowTime+8])
		binary.NativeEndian.PutUint32(v[flowOuterDevice:], testOuterDevice)
		class := uint32(s.packet()[15])
		if s.form.v6 {
			class = binary.NativeEndian.Uint32(s.packet()[14:])
		}
		binary.NativeEndian.PutUint32(v[flowOuterClass:], class)
		binary.NativeEndian.PutUint32(v[flowOuterID:], 0x1fffe)
		copy(v[flowOuter:], testOuter(s.form))
		change(v)
	})
}

// forwarded is a packet as a router hands it on.
func (s sample) forwarded(p []byte) []byte {
	p = slices.Concat(testHeader, p[12:])
	p[s.form.ttl]--
	if !s.form.v6 {
		binary.BigEndian.PutUint16(p[24:], 0)
		binary.BigEndian.PutUint16(p[24:], checksum(p[14:34]))
	}
	return p
}

// The entry puts ahead of a packet what the exit has learned, with lengths, identification and checksum of its own; what is inside is as a router hands it on.
func TestEntryEncapsulates(t *testing.T) {
	b := loadTest(t)
	for _, s := range samples() {
		b.tunnelled(t, s, func([]byte) {})
		for i := range 600 {
			s.payload = i % 100
			p := s.packet()
			want := slices.Concat(testOuter(s.form)[:50], s.forwarded(p))
			binary.BigEndian.PutUint16(want[outerLen:], uint16(len(want)-14))
			binary.BigEndian.PutUint16(want[outerUDPLen:], uint16(len(want)-34))
			binary.BigEndian.PutUint16(want[outerID:], uint16(0x1fffe+i))
			binary.BigEndian.PutUint16(want[outerSum:], 0)
			binary.BigEndian.PutUint16(want[outerSum:], checksum(want[14:34]))
			if i%97 == 0 { // flows count for a second
				b.tunnelled(t, s, func(v []byte) { binary.NativeEndian.PutUint32(v[flowOuterID:], uint32(0x1fffe+i)) })
			}
			if result, got := try(t, b.in.fd, p, 0); result != resultRedirect || !bytes.Equal(got, want) {
				t.Fatalf("%s, protocol %d: %d\n% x, want\n% x", s.form.name, s.proto, result, got, want)
			}
		}
	}
}

// Where what was learned does not hold for a packet, it leaves by the device of the tunnel, as it would without.
func TestEntryDoesWithoutTunnel(t *testing.T) {
	b := loadTest(t)
	for _, s := range samples() {
		for name, change := range map[string]func(v []byte){
			"older":         func(v []byte) { v[flowOuterTime+3]-- },
			"never":         func(v []byte) { clear(v[flowOuterTime : flowOuterTime+8]) },
			"another class": func(v []byte) { v[flowOuterClass] ^= 3 },
		} {
			b.tunnelled(t, s, change)
			if result, got := try(t, b.in.fd, s.packet(), 0); result != resultRedirect || !bytes.Equal(got, s.forwarded(s.packet())) {
				t.Errorf("%s, protocol %d, %s: %d\n% x", s.form.name, s.proto, name, result, got)
			}
		}
	}
}

// sent is how many packets have left by the device of the place's tunnel.
func (p *place) sent(t *testing.T) uint64 {
	t.Helper()
	l, err := p.handle.LinkByIndex(p.vxlan.Attrs().Index)
	must(t, err)
	return l.Attrs().Statistics.TxPackets
}

// offloads switches what a device does with large packets on or off.
func offloads(t *testing.T, n namespace, device string, on bool) {
	t.Helper()
	var value uint32
	if on {
		value = 1
	}
	in(t, n, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, command := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_STXCSUM} {
			setting := [2]uint32{command, value} // struct ethtool_value
			request := struct {
				name [unix.IFNAMSIZ]byte
				data unsafe.Pointer
				_    [16]byte
			}{data: unsafe.Pointer(&setting)}
			copy(request.name[:], device)
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); e != 0 {
				return e
			}
		}
		return nil
	})
}

// Most packets of a stream pass the device of the tunnel by, and every byte arrives, whoever cuts large packets.
func TestStreamPassesTheTunnelBy(t *testing.T) {
	ps := newPlaces(t)
	for _, on := range []bool{true, false} {
		for _, p := range ps {
			offloads(t, p.ns, "eth0", on)
		}
		for _, a := range []netip.Addr{v4(2, 2), v6(2, 2)} {
			var sent, around [2]uint64
			for i, p := range ps {
				sent[i], around[i] = p.sent(t), p.count(t)
			}
			stream(t, ps[0], ps[1], a, 64<<20)
			for i, p := range ps {
				if n, m := p.sent(t)-sent[i], p.count(t)-around[i]; m < 200 || n > m/2 {
					t.Errorf("to %v, from %d, offloads %v: %d packets by the device, %d around the stack", a, i, on, n, m)
				}
			}
		}
	}
}

// capture returns a function that returns the packets to an address of the overlay that have come to a place in a tunnel since it was called last, as they are on the link.
func (p *place) capture(t *testing.T, to netip.Addr) (packets func() [][]byte) {
	t.Helper()
	var fd int
	in(t, p.ns, func() (err error) {
		l, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) // if not, fewer are seen
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: l.Index})
	})
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func() (list [][]byte) {
		b := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if errors.Is(err, unix.EAGAIN) {
				return list
			}
			must(t, err)
			dst := grow + forms()[0].dst
			if to.Is6() {
				dst = grow + forms()[1].dst
			}
			if n > dst+16 && b[outerProto] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(b[outerUDP+2:]) == 6784 && bytes.HasPrefix(b[dst:], to.AsSlice()) {
				list = append(list, bytes.Clone(b[:n]))
			}
		}
	}
}

// Packets that pass the device of the tunnel by are on the link as those that do not, but for the identification and the checksum of UDP, which is zero.
func TestPacketsInTunnelsAreAlike(t *testing.T) {
	ps := newPlaces(t)
	for _, a := range []netip.Addr{v4(2, 2), v6(2, 2)} {
		d := newDatagrams(t, ps[0], ps[1], a)
		d.warm(t, ps)
		packets := ps[1].capture(t, a)
		before, all := ps[0].sent(t), 0
		var list [][]byte
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); all++ {
			if !d.passWithin(t, 100, patience) {
				t.Fatal("a datagram is lost")
			}
			if all%1000 == 0 { // before the socket is full
				list = append(list, packets()...)
			}
		}
		if n := ps[0].sent(t) - before; n == 0 || n > uint64(all)/2 {
			t.Errorf("%d of %d packets left by the device", n, all)
		}
		list = append(list, packets()...)
		var slow, fast []byte
		for _, p := range list {
			if int(binary.BigEndian.Uint16(p[outerLen:])) != len(p)-14 || int(binary.BigEndian.Uint16(p[outerUDPLen:])) != len(p)-34 || checksum(p[14:34]) != 0 {
				t.Fatalf("an outer header is wrong: % x", p[:outerSize])
			}
			one := &slow
			if binary.BigEndian.Uint16(p[outerUDPSum:]) == 0 {
				one = &fast
			}
			for _, at := range []int{outerID, outerSum, outerUDPSum} {
				clear(p[at : at+2])
			}
			if a.Is4() {
				clear(p[outerSize+4 : outerSize+6]) // inner identification and checksum
				clear(p[outerSize+10 : outerSize+12])
			}
			if *one == nil {
				*one = p
			}
			if !bytes.Equal(p, *one) {
				t.Fatalf("% x\n% x", p, *one)
			}
		}
		if len(list) < all/2 || slow == nil || !bytes.Equal(slow, fast) {
			t.Errorf("of %d packets %d were seen\n% x\n% x", all, len(list), slow, fast)
		}
	}
}

// Whoever forbids a tunnel is obeyed within a second, at once if what was decided is to be forgotten.
func TestForbiddenTunnel(t *testing.T) {
	ps := newPlaces(t)
	c, err := nftables.New(nftables.WithNetNSFd(int(ps[0].ns)))
	must(t, err)
	for _, hook := range []*nftables.ChainHook{nftables.ChainHookOutput, nftables.ChainHookPostrouting} {
		for _, forget := range []bool{false, true} {
			d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
			d.warm(t, ps)
			table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "strict"})
			chain := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x1a, 0x80}},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
			must(t, c.Flush())
			if forget {
				ps[0].Forget()
			}
			since := time.Now()
			for d.pass(t, 100) {
				if took := time.Since(since); forget || took > 1500*time.Millisecond {
					t.Fatalf("forget %v: datagrams arrive %v after they are forbidden", forget, took)
				}
				time.Sleep(time.Millisecond)
			}
			c.DelTable(table)
			must(t, c.Flush())
			eventually(t, "datagrams arrive again", func() bool { return d.pass(t, 100) })
		}
	}
}

// When the tunnel takes another way than it did, packets follow within a second, and pass its device by again.
func TestTunnelMoves(t *testing.T) {
	ps := newPlaces(t)
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
	l, err := ps[1].handle.LinkByName("eth0")
	must(t, err)
	must(t, ps[1].handle.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 0x99}))
	near, err := ps[0].handle.LinkByName("eth0")
	must(t, err)
	must(t, ps[0].handle.NeighSet(&netlink.Neigh{
		LinkIndex: near.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(192, 0, 2, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x99},
	}))
	since := time.Now()
	for !d.pass(t, 100) {
		if took := time.Since(since); took > 2*time.Second {
			t.Fatalf("nothing arrives %v after the other host has another address", took)
		}
	}
	eventually(t, "packets pass the device by", func() bool {
		before, around := ps[0].sent(t), ps[0].count(t)
		for range 50 {
			if !d.passWithin(t, 100, patience) {
				t.Fatal("a datagram is lost")
			}
		}
		return ps[0].sent(t)-before < 10 && ps[0].count(t)-around > 40
	})
}

// Who sends through a host something that looks like a tunnel with a flow's packet in it, and guesses the number of that, does not lead the flow elsewhere.
func TestForgedTunnels(t *testing.T) {
	ps := newPlaces(t)
	ps[1].end() // only the first is tried
	p := ps[0]
	container := newNamespace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan0"
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(container)
	must(t, p.handle.LinkAdd(v))
	p.up(t, p.handle, "lan0", netip.MustParseAddr("198.51.100.1"))
	outside := handle(t, container)
	p.up(t, outside, "eth0", netip.MustParseAddr("198.51.100.2"))
	must(t, outside.RouteAdd(&netlink.Route{Gw: net.IPv4(198, 51, 100, 1)}))
	defer pinned(t)()

	const size = 100
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	eventually(t, "datagrams go around the stack", func() bool {
		n := p.count(t)
		return d.pass(t, size) && p.count(t) > n
	})
	from, to := d.from.LocalAddr().(*net.UDPAddr).AddrPort(), d.from.RemoteAddr().(*net.UDPAddr).AddrPort()
	f := forms()[0]
	s := sample{form: f, src: from.Addr().Unmap(), dst: to.Addr().Unmap(), proto: unix.IPPROTO_UDP, payload: size}
	inner := s.packet()
	binary.BigEndian.PutUint16(inner[f.l4:], from.Port())
	binary.BigEndian.PutUint16(inner[f.l4+2:], to.Port())
	key := f.key(inner, uint32(p.veth.Attrs().Index))
	learned := func() []byte {
		v := make([]byte, flowSize)
		must(t, element(unix.BPF_MAP_LOOKUP_ELEM, p.tables.flows[f.index], key, v))
		return slices.Concat(v[flowOuterTime:flowOuterTime+8], v[flowOuter:flowOuter+outerSize])
	}
	n, err := possible()
	must(t, err)
	notes := make([]byte, n*noteSize)
	eventually(t, "the last note is that of the flow", func() bool {
		time.Sleep(fresh * time.Nanosecond)
		if !d.pass(t, size) {
			return false
		}
		must(t, element(unix.BPF_MAP_LOOKUP_ELEM, p.tables.notes, make([]byte, 4), notes))
		return bytes.Equal(notes[noteKey:noteKey+f.keySize], key) && notes[noteLen] == byte(len(inner))
	})
	forge := func(source namespace) {
		copy(notes[noteTunnel:noteTunnel+4], notes[noteNumber:]) // as if it had not left the host yet
		must(t, element(unix.BPF_MAP_UPDATE_ELEM, p.tables.notes, make([]byte, 4), notes))
		in(t, source, func() error {
			c, err := net.Dial("udp", "192.0.2.2:6784")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(slices.Concat([]byte{8, 0, 0, 0, 0, 0, 7, 0}, inner))
			return err
		})
		time.Sleep(10 * time.Millisecond)
	}
	number(t, container, binary.NativeEndian.Uint32(notes[noteNumber:]))
	before := learned()
	for range 20 { // on this processor or another one
		forge(container)
	}
	if now := learned(); !bytes.Equal(now, before) {
		t.Errorf("the flow is led elsewhere\n% x, was\n% x", now, before)
	}
	// From the host itself it would be believed: the test is worth something.
	number(t, p.ns, binary.NativeEndian.Uint32(notes[noteNumber:]))
	link, err := p.handle.LinkByName("eth0")
	must(t, err)
	must(t, detachLink(p.held()[link.Attrs().Index].out)) // it comes again, behind the other
	p.raise()
	eventually(t, "the exit is there again", func() (there bool) {
		in(t, p.ns, func() error {
			ids, err := attached(link.Attrs().Index, hookOut)
			there = slices.Contains(ids, p.out.id)
			return err
		})
		return there
	})
	eventually(t, "what the host itself sends is believed", func() bool {
		forge(p.ns)
		return !bytes.Equal(learned(), before)
	})
}

// Datagrams that one call sends together are cut as they should be, in the tunnel, whoever cuts them.
func TestTogetherInTunnel(t *testing.T) {
	ps := newPlaces(t)
	for _, on := range []bool{true, false} {
		for _, p := range ps {
			offloads(t, p.ns, "eth0", on)
		}
		for _, a := range []netip.Addr{v4(2, 2), v6(2, 2)} {
			d := newDatagrams(t, ps[0], ps[1], a)
			d.warm(t, ps)
			raw, err := d.from.SyscallConn()
			must(t, err)
			const size, many = 900, 20
			must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) }))
			must(t, err)
			b, got := make([]byte, 1<<16), make([]byte, 1<<16)
			for i := range b {
				b[i] = byte(i / size)
			}
			eventually(t, "large ones go around the stack", func() bool { // the first is larger than all before
				sent, around := ps[0].sent(t), ps[0].count(t)
				_, err := d.from.Write(b[:size*many])
				must(t, err)
				must(t, d.to.SetReadDeadline(time.Now().Add(patience)))
				for i := range many {
					n, err := d.to.Read(got)
					must(t, err)
					if n != size || got[0] != byte(i) || got[size-1] != byte(i) {
						t.Fatalf("datagram %d has %d bytes, of datagram %d", i, n, got[0])
					}
				}
				return ps[0].sent(t) == sent && ps[0].count(t) > around
			})
		}
	}
}

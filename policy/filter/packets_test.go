// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// sum is the checksum of the Internet (RFC 1071).
func sum(parts ...[]byte) uint16 {
	var n uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			word := uint32(b[i]) << 8
			if i+1 < len(b) {
				word |= uint32(b[i+1])
			}
			n += word
		}
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}

// datagram is one of UDP.
func datagram(src, dst netip.Addr, sport, dport uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	b = append(append(b, 0, 0), data...)
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_UDP, 0, 0)
	binary.BigEndian.PutUint16(pseudo[len(pseudo)-2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], sum(pseudo, b))
	return b
}

// A piece is what of a packet is in a fragment.
type piece struct {
	first, last int // bytes of the payload; last is beyond it
	more        bool
}

const fragmentID = 4711

// frame is an IP packet, or a fragment of one. Of IPv6, headers come before the payload: each with its own kind in front of its bytes.
func frame(src, dst netip.Addr, kind byte, payload []byte, of *piece, headers ...[]byte) []byte {
	if src.Is4() {
		b := make([]byte, 20, 20+len(payload))
		b[0], b[8], b[9] = 0x45, 64, kind
		if of != nil {
			binary.BigEndian.PutUint16(b[4:], fragmentID)
			offset := uint16(of.first / 8)
			if of.more {
				offset |= 1 << 13
			}
			binary.BigEndian.PutUint16(b[6:], offset)
			payload = payload[of.first:of.last]
		}
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
		binary.BigEndian.PutUint16(b[10:], sum(b))
		return append(b, payload...)
	}
	var rest []byte
	next := kind
	if of != nil {
		payload = payload[of.first:of.last]
		h := binary.BigEndian.AppendUint16([]byte{next, 0}, uint16(of.first))
		if of.more {
			h[3] |= 1
		}
		rest, next = binary.BigEndian.AppendUint32(h, fragmentID), unix.IPPROTO_FRAGMENT
	}
	for i := len(headers) - 1; i >= 0; i-- {
		h := append([]byte{next}, headers[i][1:]...)
		rest, next = append(h, rest...), headers[i][0]
	}
	b := make([]byte, 40, 40+len(rest)+len(payload))
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)+len(payload)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(append(b, rest...), payload...)
}

// throw sends packets as they are.
func (s *space) throw(t testing.TB, dst netip.Addr, frames ...[]byte) {
	t.Helper()
	domain := unix.AF_INET
	if dst.Is6() {
		domain = unix.AF_INET6
	}
	var fd int
	must(t, s.do(func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}))
	defer func() { _ = unix.Close(fd) }()
	for _, b := range frames {
		must(t, unix.Sendto(fd, b, 0, sockaddr(dst, 0)))
	}
}

// listen returns a socket that gets all IP packets of a namespace's interface.
func (s *space) listen(t testing.TB) int {
	t.Helper()
	var fd int
	must(t, s.do(func() (err error) {
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
		return err
	}))
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// noticed says whether a packet from an address to another one has come in, within a time.
func noticed(fd int, src, dst netip.Addr, limit time.Duration) bool {
	b := make([]byte, 2048)
	for end := time.Now().Add(limit); ; {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			if ready(fd, unix.POLLIN, time.Until(end)) != nil {
				return false
			}
			continue
		}
		var a, z netip.Addr
		switch {
		case n >= 20 && b[0]>>4 == 4:
			a, z = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		case n >= 40 && b[0]>>4 == 6:
			a, z = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Pkttype != unix.PACKET_OUTGOING && a == src && z == dst {
			return true
		}
	}
}

// openAt is isolated(0) for UDP and SCTP at a port, from a pod that is isolated itself and may use that port.
func openAt(port uint16) *compile.State {
	s := compile.NewState()
	t := &compile.Table{ID: 1, Default: by(false, "isolate"), Cells: map[compile.Cell]compile.Verdict{}}
	for _, p := range []policy.Protocol{policy.UDP, policy.SCTP} {
		t.Cells[compile.Cell{Identity: compile.World, Protocol: p, First: port, Last: port}] = by(true, "open")
	}
	s.Tables[1] = t
	for _, v6 := range []bool{false, true} {
		for _, i := range []int{0, 2} {
			for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
				s.Sides[compile.Side{Addr: podAddr(i, v6), Direction: d}] = 1
			}
		}
	}
	return s
}

// meet has the node and its neighbours find each other, so that nothing is lost afterwards.
func (w *world) meet(t testing.TB, v6 bool) {
	t.Helper()
	for _, a := range []netip.Addr{podAddr(0, v6), podAddr(2, v6), clientAddr(v6)} {
		if o := w.node.udp(pick(v6, "0.0.0.0", "::"), a, 9, patience); o != refused {
			t.Fatalf("the node does not reach %v: %s", a, o)
		}
	}
}

const openPort, closedPort = 80, 81

// A datagram is judged as what it is in however many fragments and behind whatever headers it comes.
func TestFragmentsAndHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	must(t, f.Replace(openAt(openPort)))
	data := make([]byte, 2000)
	options := []byte{0, 0, 1, 4, 0, 0, 0, 0}
	header := func(kind byte) []byte { return append([]byte{kind}, options[1:]...) }
	for _, v6 := range []bool{false, true} {
		w.meet(t, v6)
		src, dst := podAddr(2, v6), podAddr(0, v6)
		listener := w.pods[0].listen(t)
		for _, port := range []uint16{openPort, closedPort} {
			target, err := w.pods[0].socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, dst, port)
			must(t, err)
			whole := datagram(src, dst, 5000, port, data[:100])
			long := datagram(src, dst, 5000, port, data)
			part := func(first, last int, headers ...[]byte) []byte {
				return frame(src, dst, unix.IPPROTO_UDP, long, &piece{first, last, last < len(long)}, headers...)
			}
			first, later, last := part(0, 800), part(800, 1600), part(1600, len(long))
			type try struct {
				name   string
				frames [][]byte
				rest   [][]byte // without which nothing comes
			}
			tries := []try{
				{"whole", [][]byte{frame(src, dst, unix.IPPROTO_UDP, whole, nil)}, nil},
				{"fragments", [][]byte{first, later, last}, nil},
				{"the last one first", [][]byte{last, later, first}, nil},
				{"nothing but ports in the first one", [][]byte{part(0, 8), part(8, 808), part(808, 1608), part(1608, len(long))}, nil},
				{"the first one alone", [][]byte{first}, [][]byte{later, last}},
				{"later ones alone", [][]byte{later, last}, [][]byte{first}},
			}
			if v6 {
				tries = append(tries,
					try{"options", [][]byte{frame(src, dst, unix.IPPROTO_UDP, whole, nil, header(unix.IPPROTO_HOPOPTS), header(unix.IPPROTO_DSTOPTS))}, nil},
					try{"options before fragments", [][]byte{part(0, 800, header(unix.IPPROTO_HOPOPTS)), part(800, 1600, header(unix.IPPROTO_HOPOPTS)), part(1600, len(long), header(unix.IPPROTO_HOPOPTS))}, nil},
					try{"a single fragment", [][]byte{frame(src, dst, unix.IPPROTO_UDP, whole, &piece{0, len(whole), false}, header(unix.IPPROTO_DSTOPTS))}, nil},
				)
			}
			for _, x := range tries {
				name := fmt.Sprintf("%v port %d: %s", dst, port, x.name)
				w.pods[1].throw(t, dst, x.frames...)
				if x.rest != nil {
					if noticed(listener, src, dst, never) {
						t.Error(name, "comes through")
					}
					w.pods[1].throw(t, dst, x.rest...)
				}
				if port == closedPort {
					if noticed(listener, src, dst, never) {
						t.Error(name, "comes through")
					}
					continue
				}
				if err := ready(target, unix.POLLIN, patience); err != nil {
					t.Error(name, "does not come:", err)
				}
				_, _, _ = unix.Recvfrom(target, make([]byte, 4096), 0)
				for noticed(listener, src, dst, never/10) { // what is left
				}
			}
			must(t, unix.Close(target))
		}
	}
}

// SCTP is judged by its ports. The kernel needs not have it itself.
func TestSCTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	must(t, f.Replace(openAt(openPort)))
	for _, v6 := range []bool{false, true} {
		w.meet(t, v6)
		src, dst := podAddr(2, v6), podAddr(0, v6)
		listener := w.pods[0].listen(t)
		for _, port := range []uint16{openPort, closedPort} {
			b := binary.BigEndian.AppendUint16(nil, 5000)
			b = binary.BigEndian.AppendUint16(b, port)
			b = append(b, make([]byte, 8)...) // tag, checksum
			b = append(b, 1, 0, 0, 20)        // INIT
			b = binary.BigEndian.AppendUint32(b, 42)
			b = binary.BigEndian.AppendUint32(b, 65536)
			b = append(b, 0, 1, 0, 1, 0, 0, 0, 7) // streams, first number
			binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
			w.pods[1].throw(t, dst, frame(src, dst, unix.IPPROTO_SCTP, b, nil))
			limit := patience
			if port == closedPort {
				limit = never
			}
			if got := noticed(listener, src, dst, limit); got != (port == openPort) {
				t.Errorf("INIT to %v port %d comes through: %v", dst, port, got)
			}
		}
	}
}

// What went wrong with an allowed flow is told to its source, whatever that is isolated from; what belongs to no flow is not.
func TestErrorsOfAllowedFlows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	must(t, f.Replace(openAt(openPort)))
	for _, v6 := range []bool{false, true} {
		w.meet(t, v6)
		src, dst := podAddr(2, v6), clientAddr(v6)
		if got := w.pods[1].udp(src, dst, openPort, patience); got != refused {
			t.Errorf("%v: an allowed flow to a closed port is %s", src, got)
		}
		if got := w.pods[1].udp(src, dst, closedPort, never); got != lost {
			t.Errorf("%v: a forbidden flow is %s", src, got)
		}
		// An error about a flow that there is not.
		listener := w.pods[1].listen(t)
		cause := frame(src, dst, unix.IPPROTO_UDP, datagram(src, dst, 7, openPort, []byte("?")), nil)
		kind, b := byte(unix.IPPROTO_ICMP), append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, cause...)
		var pseudo []byte
		if v6 {
			kind, b[0], b[1] = unix.IPPROTO_ICMPV6, 1, 4
			pseudo = append(append(dst.AsSlice(), src.AsSlice()...), 0, 0, 0, byte(len(b)), 0, 0, 0, kind)
		}
		binary.BigEndian.PutUint16(b[2:], sum(pseudo, b))
		w.client.throw(t, src, frame(dst, src, kind, b, nil))
		if noticed(listener, dst, src, never) {
			t.Errorf("%v: an error about no flow comes through", src)
		}
		// The same about one that there is.
		fd, err := w.pods[1].socket(unix.SOCK_DGRAM, src, 7)
		must(t, err)
		target, err := w.client.socket(unix.SOCK_DGRAM, dst, openPort)
		must(t, err)
		must(t, unix.Sendto(fd, []byte("?"), 0, sockaddr(dst, openPort)))
		must(t, ready(target, unix.POLLIN, patience))
		w.client.throw(t, src, frame(dst, src, kind, b, nil))
		if !noticed(listener, dst, src, patience) {
			t.Errorf("%v: an error about an allowed flow does not come", src)
		}
		must(t, unix.Close(fd))
		must(t, unix.Close(target))
	}
}

// An endpoint reaches itself through a Service whatever it is isolated from, unless it is to be judged as it sees itself.
func TestHairpin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	w.node.nft(t, "add table inet other")
	w.node.nft(t, "add chain inet other in { type nat hook prerouting priority -100; }")
	w.node.nft(t, "add chain inet other out { type nat hook postrouting priority 100; }")
	for _, v6 := range []bool{false, true} {
		kind := pick(v6, "10.96.0.1", "fd96::1")
		ip := "ip"
		if v6 {
			ip = "ip6"
		}
		own := podAddr(0, v6)
		w.node.nft(t, fmt.Sprintf("add rule inet other in %s daddr %v dnat %s to %v", ip, kind, ip, own))
		w.node.nft(t, fmt.Sprintf("add rule inet other out %s saddr %v %s daddr %v masquerade", ip, own, ip, own))
	}
	s := openAt(openPort)
	for _, judged := range []bool{false, true} {
		if judged {
			for _, v6 := range []bool{false, true} {
				s.Selves[podAddr(0, v6)] = 5
			}
		}
		must(t, f.Replace(s))
		for _, v6 := range []bool{false, true} {
			w.meet(t, v6)
			for _, port := range []uint16{openPort, closedPort} {
				want, limit := refused, patience
				if judged && port == closedPort {
					want, limit = lost, never
				}
				if got := w.pods[0].udp(podAddr(0, v6), pick(v6, "10.96.0.1", "fd96::1"), port, limit); got != want {
					t.Errorf("%v to itself, judged %v, port %d: %s, want %s", podAddr(0, v6), judged, port, got, want)
				}
			}
			if got := w.pods[1].udp(podAddr(2, v6), pick(v6, "10.96.0.1", "fd96::1"), closedPort, never); got != lost {
				t.Errorf("another one by the same way: %s", got)
			}
		}
	}
}

// A large table that others empty or change is put right.
func TestRepairsALargeTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	must(t, f.Replace(crowded(0, openPort)))
	run(t, f)
	time.Sleep(100 * time.Millisecond) // it listens
	for _, script := range []string{"flush table inet weft-policy", "flush ruleset", "flush map inet weft-policy cells", "flush map inet weft-policy egress4; flush map inet weft-policy ingress4"} {
		w.node.nft(t, script)
		within(t, 6*patience, "repair after "+script, func() bool { // thousands of elements are read, with the race detector
			f.mu.Lock()
			have, err := f.conn.look(Table, small)
			right := err == nil && !f.dirty && !f.distrust && len(f.damage(have, small)) == 0
			f.mu.Unlock()
			return right && w.client.tcp(clientAddr(false), podAddr(0, false), openPort, never) == refused
		})
		if got := w.client.tcp(clientAddr(false), podAddr(0, false), closedPort, never); got != lost {
			t.Errorf("after %s: %s", script, got)
		}
	}
}

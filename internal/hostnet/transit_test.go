// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// datagram builds a UDP packet without checksums of its payload, which IPv4 allows and forwarding does not look at.
func datagram(src, dst netip.Addr, hops byte) []byte {
	const payload = 8 + 4
	if src.Is6() {
		b := make([]byte, 40+payload)
		b[0], b[5], b[6], b[7] = 0x60, payload, 17, hops
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
		b[40+5] = payload
		return b
	}
	b := make([]byte, 20+payload)
	b[0], b[3], b[8], b[9] = 0x45, 20+payload, hops, 17
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	b[20+5] = payload
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	return b
}

// What the router writes to the device for somebody beyond it comes back, with its source and one hop less, and nobody is
// told of a shorter way: the packets of WireGuard clients go so.
func TestTransitThroughTheDevice(t *testing.T) {
	h := newHost(t)
	for _, conf := range []string{"all", DefaultDevice} { // many hosts have switched them off, and namespaces inherit that
		setSysctl(t, h.ns, confKey("ipv4", conf, "send_redirects"), "1")
	}
	h.apply(t, desired())
	w := h.attach(t, 1)
	for _, c := range []struct{ client, remote string }{{"10.32.5.5", "10.40.0.9"}, {"fd77::5:5", "fd77::9:9"}} {
		client, remote := netip.MustParseAddr(c.client), netip.MustParseAddr(c.remote)
		for _, way := range [][2]netip.Addr{{client, remote}, {remote, client}} {
			const packets = 5
			for range packets {
				_, err := h.tun.Write(datagram(way[0], way[1], 64))
				must(t, err)
			}
			want := datagram(way[0], way[1], 63)
			for got, b := 0, make([]byte, 2048); got < packets; {
				must(t, h.tun.SetReadDeadline(time.Now().Add(patience)))
				n, err := h.tun.Read(b)
				must(t, err)
				switch {
				case string(b[:n]) == string(want):
					got++
				case b[0]>>4 == 4 && b[9] == 1 || b[0]>>4 == 6 && b[6] == 58 && b[40] == 137:
					t.Errorf("from %v to %v: %x was sent", way[0], way[1], b[:n])
				}
			}
		}
	}
	if n := dropped(t, h.ns, "no shorter way"); n == 0 {
		t.Error("the kernel sends no redirects: the rule is not needed, or does not match")
	}
	// To a workload it goes by its interface.
	for i, from := range []string{"10.32.5.5", "fd77::5:5"} {
		to := w.Addrs[i]
		c := listen(t, w.ns(t), to)
		p := datagram(netip.MustParseAddr(from), to, 64)
		binary.BigEndian.PutUint16(p[len(p)-12+2:], port(c))
		if to.Is6() { // UDP over IPv6 has to have a checksum
			sum := uint32(17 + 12)
			for j := 8; j < len(p); j += 2 {
				sum += uint32(binary.BigEndian.Uint16(p[j:]))
			}
			sum = sum&0xffff + sum>>16
			binary.BigEndian.PutUint16(p[46:], ^uint16(sum+sum>>16))
		}
		_, err := h.tun.Write(p)
		must(t, err)
		if got, seen := receive(t, c); len(got) != 4 || seen != netip.MustParseAddr(from) {
			t.Errorf("%q from %v", got, seen)
		}
	}
}

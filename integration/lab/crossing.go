// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An Openness is how much of an overlay's packet can be read by those between hosts.
type Openness int

// The kinds.
const (
	Elsewhere Openness = iota // nothing to do with the overlay, or not to be told
	Sealed                    // to or from the port of the mesh
	Tunnelled                 // by VXLAN, to be read by everybody
	Bare                      // an address of the overlay stands in the outermost header, in ARP or neighbour discovery
)

// String returns the name.
func (o Openness) String() string {
	names := []string{"elsewhere", "sealed", "tunnelled", "bare"}
	if o < 0 || int(o) >= len(names) {
		return fmt.Sprintf("openness(%d)", int(o))
	}
	return names[o]
}

// A Crossing is a frame between hosts, as somebody on their network reads it.
type Crossing struct {
	Frame
	Openness Openness
	From, To net.HardwareAddr
	Outer    [2]netip.Addr // source and destination of the outermost IP header, invalid if there is none
	Inner    [2]netip.Addr // of the packet of the overlay, where they can be read
}

// Crossings reads the frames that a device with an Ethernet header has seen after a moment and before another one; zero: from the first, to the last one
// so far. The overlay has these addresses, and its mesh this port; VXLAN has the next one.
func (c *Capture) Crossings(from, until time.Time, overlay []netip.Prefix, port uint16) []Crossing {
	r := reader{overlay: overlay, port: port}
	frames := c.Frames() // in the order of time
	first := sort.Search(len(frames), func(i int) bool { return !frames[i].At.Before(from) })
	var out []Crossing
	for _, f := range frames[first:] {
		if !until.IsZero() && !f.At.Before(until) {
			break
		}
		out = append(out, r.frame(f))
	}
	return out
}

// reader reads frames. What is too short, or unknown, is elsewhere.
type reader struct {
	overlay []netip.Prefix
	port    uint16
}

const ethernetHeader = 14

func (r reader) frame(f Frame) Crossing {
	c := Crossing{Frame: f}
	b := f.Data
	if len(b) < ethernetHeader {
		return c
	}
	c.To, c.From = b[:6], b[6:12]
	payload := b[ethernetHeader:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_ARP:
		const sender, target, size = 14, 24, 28
		if len(payload) >= size {
			c.bare(r, netip.AddrFrom4([4]byte(payload[sender:])), netip.AddrFrom4([4]byte(payload[target:])))
		}
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
		source, destination, proto, rest := header(payload)
		c.Outer = [2]netip.Addr{source, destination}
		if !c.bare(r, source, destination) {
			c.above(r, proto, rest)
		}
	}
	return c
}

// bare notes addresses that stand in the open, if one is of the overlay.
func (c *Crossing) bare(r reader, source, destination netip.Addr) bool {
	if !r.overlays(source) && !r.overlays(destination) {
		return false
	}
	c.Openness, c.Inner = Bare, [2]netip.Addr{source, destination}
	return true
}

func (r reader) overlays(a netip.Addr) bool {
	return slices.ContainsFunc(r.overlay, func(p netip.Prefix) bool { return p.Contains(a) })
}

// above reads what an IP header of the underlay carries.
func (c *Crossing) above(r reader, proto byte, b []byte) {
	const udpHeader, vxlanHeader = 8, 8
	switch proto {
	case unix.IPPROTO_UDP, unix.IPPROTO_TCP:
		if len(b) < udpHeader {
			return
		}
		from, to := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		switch {
		case proto == unix.IPPROTO_UDP && to == r.port+1:
			c.Openness = Tunnelled
			if inner := b[udpHeader:]; len(inner) >= vxlanHeader+ethernetHeader {
				source, destination, _, _ := header(inner[vxlanHeader+ethernetHeader:])
				c.Inner = [2]netip.Addr{source, destination}
			}
		case from == r.port || to == r.port:
			c.Openness = Sealed
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		c.icmp(r, proto == unix.IPPROTO_ICMPV6, b)
	}
}

// icmp looks into messages that name or quote what may be the overlay's.
func (c *Crossing) icmp(r reader, v6 bool, b []byte) {
	const icmpHeader, neighbour = 8, 8 + 16
	if len(b) < icmpHeader {
		return
	}
	kind := b[0]
	quotes := kind == 3 || kind == 11 || kind == 12 // destination unreachable, time exceeded, parameter problem
	if v6 {
		quotes = kind < 128
		if (kind == 135 || kind == 136) && len(b) >= neighbour { // solicitation, advertisement
			c.bare(r, c.Outer[0], netip.AddrFrom16([16]byte(b[icmpHeader:])))
			return
		}
	}
	if quotes {
		source, destination, proto, rest := header(b[icmpHeader:])
		if !c.bare(r, source, destination) {
			quoted := Crossing{}
			quoted.above(r, proto, rest)
			if quoted.Openness == Tunnelled {
				c.Openness, c.Inner = Tunnelled, quoted.Inner
			}
		}
	}
}

// header reads an IP header; the addresses are invalid if it is none. Of fragments but the first nothing above is told.
func header(b []byte) (source, destination netip.Addr, proto byte, above []byte) {
	const v4Header, v6Header, fragmentHeader = 20, 40, 8
	switch {
	case len(b) >= v4Header && b[0]>>4 == 4:
		source, destination, proto = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9]
		if length := int(b[0]&15) * 4; len(b) >= length && binary.BigEndian.Uint16(b[6:])&0x1fff == 0 {
			above = b[length:]
		}
	case len(b) >= v6Header && b[0]>>4 == 6:
		source, destination, proto = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6]
		above = b[v6Header:]
		if proto != unix.IPPROTO_FRAGMENT {
			break
		}
		if len(above) < fragmentHeader || binary.BigEndian.Uint16(above[2:])&^7 != 0 {
			return source, destination, proto, nil
		}
		proto, above = above[0], above[fragmentHeader:]
	}
	return source, destination, proto, above
}

// Overlay returns the prefixes of a universe as --range takes it.
func Overlay(ranges string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range strings.Split(ranges, ",") {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

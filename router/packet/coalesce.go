// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
)

const (
	// maxFrame is the largest IP packet that a superpacket can be.
	maxFrame = 65535
	// maxJoinedHeader is the largest header of a packet that can be joined: IPv6 and TCP with all options.
	maxJoinedHeader = ipv6HeaderLen + 60
	// maxDatagrams is how many UDP datagrams Linux takes as one (UDP_MAX_SEGMENTS of linux/udp.h before 6.9).
	maxDatagrams = 64
)

// CoalescerBuffer returns the length of buffer that a Coalescer for packets of at most n bytes needs.
func CoalescerBuffer(n int) int { return VNetHdrLen + maxFrame + n }

// A Coalescer is the reverse of a Splitter: it joins packets of one flow that follow each other into a superpacket
// for an offloading TUN device. What it joins, a Splitter and the kernel's segmentation cut into the very
// same packets again; all else it hands on as it is. Nothing is reordered.
//
// The payload is not copied: the next packet is written, by whoever decrypts it, directly behind the frame
// under construction, so that its headers fall on the end of that frame, which is kept aside meanwhile. The use is
//
//	b := c.Space()          // append a packet there, and parse it
//	if !c.Add(&p, open) {   // or c.Drop(), if it is not wanted
//		write(c.Take())
//		c.Add(&p, open)
//	}
//	if c.Done() { write(c.Take()) }
//
// and c.Take() once more at the end of a batch. The zero Coalescer needs Init.
type Coalescer struct {
	buf      []byte
	tcp, udp bool

	// The frame under construction is buf[VNetHdrLen:end]; there is none if end is 0.
	end     int
	frame   joinable              // what its first packet was
	count   int                   // packets in it
	flags   uint8                 // FIN and PSH of its last packet
	header  [maxJoinedHeader]byte // of its first packet, which the space may reach into
	seq     uint32                // that the next packet has to bear
	id      uint16
	rest    uint32 // what the IPv4 header adds up to without length, identification and checksum, as its words are in memory
	pending bool   // a packet is in the space

	// The packet that was put into the space is at buf[at:], but for its first bytes, which are
	// in saved after Take. Before, saved has what was there.
	at    int
	kept  int // how many bytes
	moved bool
	saved [maxJoinedHeader]byte
}

// joinable is what is known of a packet: how to join it, if that can be.
type joinable struct {
	ok        bool // the rest but for open and transport is set only then
	open      bool // the checksum is not there
	tcp, ip6  bool
	transport int
	headers   int
	payload   int
}

// Init gives the Coalescer its buffer, of CoalescerBuffer bytes, and tells what may be joined: TCP segments, UDP datagrams. What
// was under construction is forgotten.
func (c *Coalescer) Init(buf []byte, tcp, udp bool) {
	c.buf, c.tcp, c.udp = buf, tcp, udp
	c.end, c.pending = 0, false
}

// Space returns where the next packet is to be written: an empty slice, of enough capacity for it. It ends
// the validity of what Take has returned. Add or Drop has to follow.
func (c *Coalescer) Space() []byte {
	c.pending, c.moved = true, false
	c.at, c.kept = VNetHdrLen, 0
	if c.end > 0 {
		c.at = c.end
		if c.frame.ok {
			c.kept = c.frame.headers
			c.at -= c.kept
			copy(c.saved[:c.kept], c.buf[c.at:c.end])
		}
	}
	return c.buf[c.at:c.at:len(c.buf)]
}

// Drop takes the packet in the space back out.
func (c *Coalescer) Drop() {
	if c.pending && !c.moved {
		copy(c.buf[c.at:], c.saved[:c.kept])
	}
	c.pending = false
}

// Add adds the packet in the space to the frame under construction, or begins one with it. It reports false if there is a
// frame that it does not continue: then Take and Add again.
//
// p is the packet as parsed. open tells that it has no transport checksum, which Checksum must have
// allowed: Take sees to that the kernel adds it.
func (c *Coalescer) Add(p *Packet, open bool) bool {
	if c.moved { // away from under the frame that was taken
		copy(c.buf[VNetHdrLen:], c.saved[:min(c.kept, p.Len)])
		if p.Len > c.kept {
			copy(c.buf[VNetHdrLen+c.kept:], c.buf[c.at+c.kept:c.at+p.Len])
		}
		c.at, c.kept, c.moved = VNetHdrLen, 0, false
	}
	b := c.buf[c.at : c.at+p.Len]
	if c.end == 0 {
		c.begin(b, p, open)
		return true
	}
	if !c.frame.ok || c.frame.open != open || !c.continues(b, p) {
		return false
	}
	copy(c.buf[c.at:], c.saved[:c.kept])
	c.end = c.at + p.Len
	c.count++
	c.pending = false
	return true
}

// begin makes b, which is in its place, a frame.
func (c *Coalescer) begin(b []byte, p *Packet, open bool) {
	c.frame = c.judge(b, p, open)
	c.end = c.at + len(b)
	c.count, c.flags, c.pending = 1, 0, false
	if !c.frame.ok {
		return
	}
	copy(c.header[:], b[:c.frame.headers])
	c.id = binary.BigEndian.Uint16(b[4:]) + 1
	c.rest = 3*0xffff - varying(b) // the whole is 0xffff, or a multiple
	if c.frame.tcp {
		t := b[c.frame.transport:]
		c.seq = binary.BigEndian.Uint32(t[4:]) + uint32(c.frame.payload)
		c.frame.ok = t[13]&(tcpFIN|tcpPSH) == 0 // nothing comes after them
	}
}

// judge tells how a packet can be joined with others.
func (c *Coalescer) judge(b []byte, p *Packet, open bool) joinable {
	j := joinable{open: open, transport: p.HeaderLen, ip6: b[0]>>4 == 6}
	if !c.tcp && !c.udp {
		return j
	}
	field, ok := p.Checksum(b)
	if !ok {
		return j
	}
	t := b[p.HeaderLen:]
	j.tcp = p.Proto == protoTCP
	if j.tcp {
		length := int(t[12]>>4) * 4
		j.headers = p.HeaderLen + length
		// CWR is a bit of a counter where both ends use accurate ECN (RFC 9768 §3.2.2): cut again, a superpacket would have it on
		// its first segment alone.
		if !c.tcp || length < tcpHeaderLen || t[13]&(tcpSYN|tcpRST|tcpURG|tcpCWR) != 0 {
			return j
		}
	} else {
		j.headers = p.HeaderLen + udpHeaderLen
		if !c.udp || int(binary.BigEndian.Uint16(t[4:])) != len(t) {
			return j
		}
	}
	// Packets without payload say something by coming at all.
	if j.payload = len(b) - j.headers; j.payload <= 0 {
		return j
	}
	j.ok = (j.ip6 || intactIPv4(b)) && (open || intact(b, p, field))
	return j
}

// intactIPv4 tells whether the IPv4 header without options at the start of b bears the checksum that a splitter would give it.
func intactIPv4(b []byte) bool {
	return fold(sum(b[:ipv4HeaderLen], 0)) == 0xffff && binary.BigEndian.Uint16(b[10:]) != 0xffff
}

// varying adds up the words of an IPv4 header that differ among the packets of a flow.
func varying(b []byte) uint32 {
	return uint32(binary.NativeEndian.Uint16(b[2:])) + uint32(binary.NativeEndian.Uint16(b[4:])) + uint32(binary.NativeEndian.Uint16(b[10:]))
}

// intactNext is intactIPv4 for a header that is the first one's but for what varies.
func (c *Coalescer) intactNext(b []byte) bool {
	return fold(uint64(c.rest+varying(b))) == 0xffff && binary.BigEndian.Uint16(b[10:]) != 0xffff
}

// intact tells whether the packet bears the transport checksum that a splitter would give it. Of the two
// ways to write zero TCP uses the one and UDP the other.
func intact(b []byte, p *Packet, field int) bool {
	switch v := binary.BigEndian.Uint16(b[field:]); {
	case p.Proto == protoTCP && v == 0xffff, p.Proto == protoUDP && v == 0:
		return false
	}
	t := b[p.HeaderLen:]
	return fold(sum(t, p.pseudo(b, len(t)))) == 0xffff
}

// continues tells whether the packet b, which is in the space, is the next of the flow under construction, and
// if so counts its numbers in.
func (c *Coalescer) continues(b []byte, p *Packet) bool {
	f := &c.frame
	first := &c.header
	if len(b) <= f.headers || len(b)-f.headers > f.payload || p.HeaderLen != f.transport ||
		c.end-VNetHdrLen+len(b)-f.headers > maxFrame {
		return false
	}
	if f.ip6 {
		if !bytes.Equal(b[:4], first[:4]) || !bytes.Equal(b[6:ipv6HeaderLen], first[6:ipv6HeaderLen]) {
			return false
		}
	} else if !same2(b, first[:]) || binary.BigEndian.Uint16(b[4:]) != c.id || !same4(b[6:], first[6:]) || !same8(b[12:], first[12:]) || !c.intactNext(b) {
		return false
	}
	t, t0 := b[f.transport:f.headers], first[f.transport:f.headers]
	if f.tcp != (p.Proto == protoTCP) || !same4(t, t0) {
		return false
	}
	var flags uint8
	field := f.transport + udpChecksum
	if f.tcp {
		flags = t[13]
		field = f.transport + tcpChecksum
		if binary.BigEndian.Uint32(t[4:]) != c.seq || !same4(t[8:], t0[8:]) || t[12] != t0[12] || (flags^t0[13])&^(tcpFIN|tcpPSH) != 0 ||
			!same2(t[14:], t0[14:]) || !same2(t[18:], t0[18:]) {
			return false
		}
		for o := tcpHeaderLen; o < len(t); o += 4 {
			if !same4(t[o:], t0[o:]) {
				return false
			}
		}
	} else if c.count == maxDatagrams || int(binary.BigEndian.Uint16(t[4:])) != len(b)-f.transport {
		return false
	}
	if !f.open && !intact(b, p, field) {
		return false
	}
	payload := len(b) - f.headers
	c.id++
	c.seq += uint32(payload)
	c.flags = flags & (tcpFIN | tcpPSH)
	f.ok = payload == f.payload && c.flags == 0 // else it was the last
	return true
}

// Whether two slices begin with the same bytes. These are shorter than bytes.Equal, which is a call.
func same2(a, b []byte) bool { return binary.NativeEndian.Uint16(a) == binary.NativeEndian.Uint16(b) }

func same4(a, b []byte) bool { return binary.NativeEndian.Uint32(a) == binary.NativeEndian.Uint32(b) }

func same8(a, b []byte) bool { return binary.NativeEndian.Uint64(a) == binary.NativeEndian.Uint64(b) }

// Done tells that there is a frame that can grow no further.
func (c *Coalescer) Done() bool { return c.end > 0 && !c.frame.ok }

// Take ends the frame under construction and returns it with its offload header before it; nil if there is none. It is valid until the
// next call of Space, or of Add.
func (c *Coalescer) Take() []byte {
	if c.end == 0 {
		return nil
	}
	if c.pending && !c.moved {
		// What is in the space changes places with the end of the frame.
		for i := range c.saved[:c.kept] {
			c.saved[i], c.buf[c.at+i] = c.buf[c.at+i], c.saved[i]
		}
		c.moved = true
	}
	out := c.buf[:c.end:c.end]
	b := out[VNetHdrLen:]
	f := &c.frame
	var h VNetHdr
	if c.count > 1 {
		h.HdrLen, h.GSOSize = uint16(f.headers), uint16(f.payload)
		h.GSOType = c.finish(b)
	}
	if c.count > 1 || f.open {
		h.Flags = VNetNeedsCsum
		h.CsumStart = uint16(f.transport)
		h.CsumOffset = openChecksum(b, f.transport)
	}
	h.Encode(out)
	c.end = 0
	return out
}

// finish makes the first header that of the whole and returns the type of superpacket.
func (c *Coalescer) finish(b []byte) uint8 {
	f := &c.frame
	kind := uint8(VNetGSOUDPL4)
	t := b[f.transport:]
	if f.tcp {
		kind = VNetGSOTCPv4
		if f.ip6 {
			kind = VNetGSOTCPv6
		}
		t[13] |= c.flags
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	}
	if f.ip6 {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6HeaderLen))
	} else {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		checksumIPv4(b[:ipv4HeaderLen])
	}
	return kind
}

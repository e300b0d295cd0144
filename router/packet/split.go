// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// maxHeaderLen bounds the headers, IP to transport, of a superpacket: any IPv4
// and TCP options fit, and IPv6 extension headers far beyond what hosts send.
const maxHeaderLen = 2048

// The offset of the checksum in a TCP header, and in a UDP header.
const (
	tcpChecksum = 16
	udpChecksum = 6
)

// Flags of a TCP header (RFC 9293 §3.1, RFC 3168 §6.1).
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpURG = 0x20
	tcpCWR = 0x80
)

// A Splitter turns what an offloading TUN device delivers in one read into
// packets with complete checksums: it cuts a superpacket of TCP segments
// (TSO4, TSO6) or UDP datagrams (USO), or fills in a checksum left open, or
// has nothing to do.
//
// It works in place and copies no payload: the header of each segment is
// written over the end of the segment before. The zero Splitter has no
// segments; Init prepares it for a frame, as often as wanted.
type Splitter struct {
	// Set by Init.
	frame     []byte
	ip6       bool
	tcp       bool
	transport int // offset of the transport header
	headerLen int // offset of the payload
	size      int // payload of each segment; 0 if the frame is one packet
	id        uint16
	seq       uint32
	flags     uint8  // TCP flags of the whole
	pseudo    uint64 // sum of the pseudo header without its length
	open      bool   // checksums stay open
	header    [maxHeaderLen]byte

	// Moved by Next.
	at int // offset of the next payload; past the end when done
}

// Init takes frame, one packet as it follows the offload header h, without
// padding. The Splitter owns frame until the last segment has been consumed,
// and changes it.
//
// The checksum of an open packet that is no superpacket is completed here, so
// that its only segment is frame itself. Errors are ErrOffload for an offload
// that is unknown (UFO included: USO has replaced it) or does not fit the
// packet, ErrHeader for superpackets with headers of more than 2048 bytes,
// ErrShort for an empty frame, and those of Packet.Parse for superpackets;
// after an error there are no segments.
//
// Rules for superpackets are those of virtio 1.2 §5.1.6: VNetNeedsCsum is set,
// CsumStart is the end of the IP header, extension headers included, and the
// checksum field holds the sum of the pseudo header for the whole. HdrLen is
// not trusted.
func (s *Splitter) Init(frame []byte, h VNetHdr) error {
	s.frame, s.size, s.at, s.open = nil, 0, 0, false
	if len(frame) == 0 {
		return ErrShort
	}
	if h.GSOType == VNetGSONone {
		if h.Flags&VNetNeedsCsum != 0 {
			if err := complete(frame, h); err != nil {
				return err
			}
		}
		s.frame = frame
		return nil
	}
	if err := s.initGSO(frame, h); err != nil {
		s.frame = nil
		return err
	}
	return nil
}

// InitOpen is Init for packets whose checksums may stay open, if they are and Packet.Checksum allows that; see Open. p is
// frame as parsed.
func (s *Splitter) InitOpen(frame []byte, p *Packet, h VNetHdr) error {
	field, ok := p.Checksum(frame)
	if !ok || h.Flags&VNetNeedsCsum == 0 || int(h.CsumStart) != p.HeaderLen || int(h.CsumStart)+int(h.CsumOffset) != field {
		return s.Init(frame, h)
	}
	s.frame, s.size, s.at = frame, 0, 0
	if h.GSOType != VNetGSONone {
		if err := s.Init(frame, h); err != nil {
			return err
		}
	}
	s.open = true
	return nil
}

// Open tells whether the segments have no transport checksum: what stands there has no meaning.
func (s *Splitter) Open() bool { return s.open }

// complete fills in the checksum that h describes. Zero and all ones are the same
// number; TCP's, known by the place of the field, is written as it is in the
// segments of a superpacket and by CompleteChecksum, so that what is complete can
// be joined again. All others are written so that they do not seem absent.
func complete(frame []byte, h VNetHdr) error {
	start := int(h.CsumStart)
	field := start + int(h.CsumOffset)
	if field+2 > len(frame) {
		return ErrOffload
	}
	if acc := sum(frame[start:], 0); h.CsumOffset == tcpChecksum {
		putChecksum(frame[field:], acc)
	} else {
		putChecksumNonZero(frame[field:], acc)
	}
	return nil
}

func (s *Splitter) initGSO(frame []byte, h VNetHdr) error {
	var p Packet
	if err := p.Parse(frame); err != nil {
		return err
	}
	frame = frame[:p.Len]
	if h.Flags&VNetNeedsCsum == 0 || h.GSOSize == 0 || int(h.CsumStart) != p.HeaderLen || p.Fragment {
		return ErrOffload
	}
	s.ip6 = p.Src.Is6()
	s.transport = p.HeaderLen
	transport := frame[s.transport:]

	// field is the offset of the checksum within the transport header.
	var length, field int
	switch {
	case h.GSOType&^VNetGSOECN == VNetGSOTCPv4 && !s.ip6 && p.Proto == protoTCP,
		h.GSOType&^VNetGSOECN == VNetGSOTCPv6 && s.ip6 && p.Proto == protoTCP:
		if len(transport) < tcpHeaderLen {
			return ErrShort
		}
		s.tcp, field = true, 16
		length = int(transport[12]>>4) * 4
		if length < tcpHeaderLen {
			return ErrHeader
		}
		s.seq = binary.BigEndian.Uint32(transport[4:])
		s.flags = transport[13]
	case h.GSOType == VNetGSOUDPL4 && p.Proto == protoUDP:
		s.tcp, field = false, 6
		length = udpHeaderLen
	default:
		return ErrOffload
	}
	if length > len(transport) {
		return ErrShort
	}
	if int(h.CsumOffset) != field {
		return ErrOffload
	}
	s.headerLen = s.transport + length
	if s.headerLen > maxHeaderLen {
		return ErrHeader
	}

	// The pseudo header's sum is taken from the packet instead of being
	// computed from its addresses: with a routing header the destination in it
	// is not the one in the IP header (RFC 8200 §8.1).
	acc := uint64(binary.NativeEndian.Uint16(transport[field:]))
	s.pseudo = sumWord(^uint16(len(transport)), acc)
	if !s.ip6 {
		s.id = binary.BigEndian.Uint16(frame[4:])
	}
	transport[field], transport[field+1] = 0, 0
	copy(s.header[:], frame[:s.headerLen])
	s.frame = frame
	s.size = int(h.GSOSize)
	s.at = s.headerLen
	return nil
}

// Next returns the next segment, a whole IP packet, and true; or nil and false
// when there is none left. The segment lies within the frame and is the
// caller's, to read and to change, until the next call, which writes the next
// header over its end. Its capacity is what the frame has: behind it lies the payload of the next.
//
// All segments carry GSOSize bytes of payload but the last, which carries the
// rest. IPv4 identification and TCP sequence number count up, FIN and PSH stand
// on the last segment only, CWR on the first only, where congestion control
// looks for it (RFC 3168 §6.1.2).
func (s *Splitter) Next() (segment []byte, ok bool) {
	if s.size == 0 {
		segment, s.frame = s.frame, nil
		return segment, segment != nil
	}
	if s.frame == nil {
		return nil, false
	}
	first := s.at == s.headerLen
	end := min(s.at+s.size, len(s.frame))
	segment = s.frame[s.at-s.headerLen : end]
	last := end == len(s.frame)

	copy(segment, s.header[:s.headerLen])
	transport := segment[s.transport:]
	if s.ip6 {
		binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)-ipv6HeaderLen))
	} else {
		binary.BigEndian.PutUint16(segment[2:], uint16(len(segment)))
		binary.BigEndian.PutUint16(segment[4:], s.id)
		checksumIPv4(segment[:s.transport])
		s.id++
	}
	acc := sumWord(uint16(len(transport)), s.pseudo)
	if s.tcp {
		flags := s.flags
		if !first {
			flags &^= tcpCWR
		}
		if !last {
			flags &^= tcpFIN | tcpPSH
		}
		transport[13] = flags
		binary.BigEndian.PutUint32(transport[4:], s.seq)
		s.seq += uint32(s.size)
		if !s.open {
			putChecksum(transport[16:], sum(transport, acc))
		}
	} else if binary.BigEndian.PutUint16(transport[4:], uint16(len(transport))); !s.open {
		putChecksumNonZero(transport[6:], sum(transport, acc))
	}

	s.at = end
	if last {
		s.frame = nil
	}
	return segment, true
}

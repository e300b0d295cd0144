// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Traffic says which packets are meant. The zero value means all of both families, but not ARP.
type Traffic struct {
	Protocol byte   // above IP, for example unix.IPPROTO_UDP; 0: any
	Port     uint16 // source or destination of TCP or UDP, which Protocol says; 0: any
	OnlyV4   bool
	OnlyV6   bool
	To       netip.Prefix // of the destination, of the family that the two before leave; invalid: any
}

// TCP means TCP from or to the port.
func TCP(port uint16) Traffic { return Traffic{Protocol: unix.IPPROTO_TCP, Port: port} }

// UDP means UDP from or to the port.
func UDP(port uint16) Traffic { return Traffic{Protocol: unix.IPPROTO_UDP, Port: port} }

// BlockTo drops what goes to addresses of a prefix on its way from one link of the segment to another one. [Segment.Heal] ends it.
func (s *Segment) BlockTo(from, to *Link, p netip.Prefix) {
	s.lab.tb.Helper()
	s.Block(from, to, Traffic{To: p, OnlyV4: p.Addr().Is4(), OnlyV6: p.Addr().Is6()})
}

// block is traffic that a switch drops on the way from one port to another one, "" for any.
type block struct {
	from, to string
	what     Traffic
}

// Block drops traffic on its way from one link of the segment to another one, nil for any link: in this direction alone, so that one end
// hears the other and is not heard. [Segment.Heal] ends it.
func (s *Segment) Block(from, to *Link, what Traffic) {
	s.lab.tb.Helper()
	b := block{what: what}
	if from != nil {
		b.from = from.port
	}
	if to != nil {
		b.to = to.port
	}
	s.faults.block = append(s.faults.block, b)
	s.applyFaults()
}

// BlockAll drops traffic between all links of the segment.
func (s *Segment) BlockAll(what Traffic) {
	s.lab.tb.Helper()
	s.Block(nil, nil, what)
}

// destination matches packets to addresses of a prefix, which are of its family.
func destination(p netip.Prefix) []expr.Any {
	at, size := uint32(16), uint32(4)
	if p.Addr().Is6() {
		at, size = 24, 16
	}
	mask := net.CIDRMask(p.Bits(), int(size)*8)
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// matches returns the conditions, one of which is true of what is to be dropped. They are for a chain of a bridge.
func (b block) matches() [][]expr.Any {
	var out [][]expr.Any
	for _, ether := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		if ether == unix.ETH_P_IP && b.what.OnlyV6 || ether == unix.ETH_P_IPV6 && b.what.OnlyV4 {
			continue
		}
		var match []expr.Any
		if b.from != "" {
			match = append(match, device(expr.MetaKeyIIFNAME, b.from)...)
		}
		if b.to != "" {
			match = append(match, device(expr.MetaKeyOIFNAME, b.to)...)
		}
		match = append(match,
			&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, ether)})
		if b.what.To.IsValid() {
			match = append(match, destination(b.what.To)...)
		}
		if b.what.Protocol != 0 {
			match = append(match, protocol(b.what.Protocol)...)
		}
		if b.what.Port == 0 {
			out = append(out, match)
			continue
		}
		for _, offset := range []uint32{0, 2} { // source, destination
			out = append(out, append(match[:len(match):len(match)],
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, b.what.Port)}))
		}
	}
	return out
}

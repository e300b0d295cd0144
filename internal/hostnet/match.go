// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// register is the nftables register that all matches use; keys of several parts go on behind it, in registers of four bytes.
const register = 1

// word returns the register that begins n bytes behind the beginning of register, a multiple of 4, by the name that the kernel
// gives it: one of 16 bytes where such a one begins, one of 4 elsewhere.
func word(n uint32) uint32 {
	if n%16 == 0 {
		return register + n/16
	}
	return unix.NFT_REG32_00 + n/4
}

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}

func accept() expr.Any { return verdict(expr.VerdictAccept, "") }
func drop() expr.Any   { return verdict(expr.VerdictDrop, "") }

// name compares the name of a packet's device with one name.
func name(key expr.MetaKey, op expr.CmpOp, device string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: register},
		&expr.Cmp{Op: op, Register: register, Data: deviceName(device)},
	}
}

// deviceName is the name as nftables compares it.
func deviceName(device string) []byte {
	return append([]byte(device), make([]byte, unix.IFNAMSIZ-len(device))...)
}

// group compares the group of a packet's device.
func group(key expr.MetaKey, g uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.NativeEndian.AppendUint32(nil, g)},
	}
}

// prefixed compares the beginning of that name.
func prefixed(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: register}, &expr.Cmp{Op: op, Register: register, Data: []byte(ifPrefix)}}
}

// workloads matches packets whose device is a workload's. It matches the TUN device, too, which rules before it deal with.
func workloads(key expr.MetaKey) []expr.Any {
	return append(prefixed(key, expr.CmpOpEq), &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: []byte(linkPrefix)})
}

// mark matches packets with a mark.
func mark(m uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.NativeEndian.AppendUint32(nil, m)},
	}
}

// noWayBack matches packets whose source is not routed to the device that they came by.
func noWayBack() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: register, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: make([]byte, 4)},
	}
}

// toAnother matches packets whose destination is another host alone.
func toAnother() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: register, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_UNICAST)},
	}
}

// redirect matches messages that tell of a shorter way, among packets of the family (RFC 792, type 5; RFC 4861, type 137).
func redirect(v6 bool) []expr.Any {
	proto, kind := byte(unix.IPPROTO_ICMP), byte(5)
	if v6 {
		proto, kind = unix.IPPROTO_ICMPV6, 137
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{proto}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{kind}},
	}
}

// protocols matches packets of a family and of what is above it.
func protocols(v6 bool, proto byte) []expr.Any {
	return append(familyOf(v6),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{proto}})
}

func familyOf(v6 bool) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if v6 {
		proto = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{proto}},
	}
}

// untracked matches packets that connection tracking has been told to leave alone.
func untracked() []expr.Any {
	const untrackedBit = 1 << 6 // NF_CT_STATE_UNTRACKED_BIT
	bits := binary.NativeEndian.AppendUint32(nil, untrackedBit)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: register},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)},
	}
}

// udpTo matches UDP to a port, of both families.
func udpTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// field is where an address lies in the headers of the two families.
type field struct{ v4, v6 uint32 }

var (
	source      = field{12, 8}
	destination = field{16, 24}
)

// load puts an address of a packet of the family into a register.
func (f field) load(v6 bool, dest uint32) expr.Any {
	p := &expr.Payload{DestRegister: dest, Base: expr.PayloadBaseNetworkHeader, Offset: f.v4, Len: 4}
	if v6 {
		p.Offset, p.Len = f.v6, 16
	}
	return p
}

// match compares an address of a packet of the family of p with p.
func match(p netip.Prefix, f field, op expr.CmpOp) []expr.Any {
	size := addrSize(p.Addr().Is6())
	mask := net.CIDRMask(p.Bits(), int(8*size))
	return append(familyOf(p.Addr().Is6()),
		f.load(p.Addr().Is6(), register),
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: register, Data: p.Addr().AsSlice()},
	)
}

// addrSize is the length of an address in bytes.
func addrSize(v6 bool) uint32 {
	if v6 {
		return 16
	}
	return 4
}

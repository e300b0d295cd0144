// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// An expression is one step of a rule, encoded as the kernel takes it.
type expression struct {
	name string
	data []byte // attributes
}

// A register is a word of 4 bytes among the 16 that a rule may use. Keys of several parts lie in adjacent ones.
type register uint32

// The registers. What is looked up by is put together at regOther, and keys of cells from keyTable on.
//
// nft(8) ends with a failed assertion at any rule that looks up by a register which a map has written, of whatever table it is asked, and those who use
// its library with it: such an expression has no length for it. So maps write to registers that come after one with a constant, and one copy that begins
// at that constant brings the numbers to where they are looked up by, in registers of which nft knows that they had constants.
const (
	keyBefore   register = 0 // what lies before the key takes what lies before the numbers
	keyTable    register = 1
	keyIdentity register = 2
	regProtocol register = 3
	regPort     register = 4
	regOther    register = 5 // up to two addresses of IPv6
	regBefore   register = 12
	regTable    register = 13
	regIdentity register = 14
	regVerdict  register = 13 // once the table is in the key
)

// name is how the kernel calls a register: that of 16 bytes where such a one begins.
func (r register) name() uint32 {
	if r%4 == 0 {
		return unix.NFT_REG_1 + uint32(r)/4
	}
	return unix.NFT_REG32_00 + uint32(r)
}

func express(name string, fill func(b *buffer)) expression {
	var b buffer
	fill(&b)
	return expression{name, b}
}

// value is an attribute with a constant.
func (b *buffer) value(kind uint16, v []byte) {
	at := b.nest(kind)
	b.attr(unix.NFTA_DATA_VALUE, v)
	b.close(at)
}

// verdict is an attribute with a verdict.
func (b *buffer) verdict(kind uint16, code int32, chain string) {
	at := b.nest(kind)
	inner := b.nest(unix.NFTA_DATA_VERDICT)
	b.word(unix.NFTA_VERDICT_CODE, uint32(code))
	if chain != "" {
		b.text(unix.NFTA_VERDICT_CHAIN, chain)
	}
	b.close(inner)
	b.close(at)
}

func meta(key uint32, to register) expression {
	return express("meta", func(b *buffer) {
		b.word(unix.NFTA_META_DREG, to.name())
		b.word(unix.NFTA_META_KEY, key)
	})
}

func ctState(to register) expression {
	return express("ct", func(b *buffer) {
		b.word(unix.NFTA_CT_DREG, to.name())
		b.word(unix.NFTA_CT_KEY, unix.NFT_CT_STATE)
	})
}

func payload(base, offset, size uint32, to register) expression {
	return express("payload", func(b *buffer) {
		b.word(unix.NFTA_PAYLOAD_DREG, to.name())
		b.word(unix.NFTA_PAYLOAD_BASE, base)
		b.word(unix.NFTA_PAYLOAD_OFFSET, offset)
		b.word(unix.NFTA_PAYLOAD_LEN, size)
	})
}

// masked keeps of a register what mask has.
func masked(r register, mask []byte) expression { return copied(r, r, mask) }

// copied puts into a register what mask has of another one.
func copied(from, to register, mask []byte) expression {
	return express("bitwise", func(b *buffer) {
		b.word(unix.NFTA_BITWISE_SREG, from.name())
		b.word(unix.NFTA_BITWISE_DREG, to.name())
		b.word(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		b.value(unix.NFTA_BITWISE_MASK, mask)
		b.value(unix.NFTA_BITWISE_XOR, make([]byte, len(mask)))
	})
}

func compare(op uint32, r register, v []byte) expression {
	return express("cmp", func(b *buffer) {
		b.word(unix.NFTA_CMP_SREG, r.name())
		b.word(unix.NFTA_CMP_OP, op)
		b.value(unix.NFTA_CMP_DATA, v)
	})
}

func constant(r register, v []byte) expression {
	return express("immediate", func(b *buffer) {
		b.word(unix.NFTA_IMMEDIATE_DREG, r.name())
		b.value(unix.NFTA_IMMEDIATE_DATA, v)
	})
}

func verdict(code int32, chain string) expression {
	return express("immediate", func(b *buffer) {
		b.word(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		b.verdict(unix.NFTA_IMMEDIATE_DATA, code, chain)
	})
}

func jump(chain string) expression { return verdict(unix.NFT_JUMP, chain) }
func goTo(chain string) expression { return verdict(unix.NFT_GOTO, chain) }
func leave() expression            { return verdict(unix.NFT_RETURN, "") }
func accept() expression           { return verdict(1, "") } // NF_ACCEPT
func drop() expression             { return verdict(0, "") } // NF_DROP

// lookup goes on if what begins at the register is in the set.
func lookup(set string, from register) expression { return find(set, from, nil) }

// mapped goes on if what begins at a register is in the map, with what it is mapped to.
func mapped(set string, from, to register) expression {
	name := to.name()
	return find(set, from, &name)
}

// judged does what the map says.
func judged(set string, from register) expression {
	name := uint32(unix.NFT_REG_VERDICT)
	return find(set, from, &name)
}

func find(set string, from register, to *uint32) expression {
	return express("lookup", func(b *buffer) {
		b.text(unix.NFTA_LOOKUP_SET, set)
		b.word(unix.NFTA_LOOKUP_SREG, from.name())
		if to != nil {
			b.word(unix.NFTA_LOOKUP_DREG, *to)
		}
	})
}

func counter() expression {
	return express("counter", func(b *buffer) {
		b.attr(unix.NFTA_COUNTER_BYTES, make([]byte, 8))
		b.attr(unix.NFTA_COUNTER_PACKETS, make([]byte, 8))
	})
}

// limit goes on for so many packets a second, and burst beyond that.
func limit(rate uint64, burst uint32) expression {
	return express("limit", func(b *buffer) {
		b.attr(unix.NFTA_LIMIT_RATE, binary.BigEndian.AppendUint64(nil, rate))
		b.attr(unix.NFTA_LIMIT_UNIT, binary.BigEndian.AppendUint64(nil, 1))
		b.word(unix.NFTA_LIMIT_BURST, burst)
		b.word(unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS)
	})
}

// tell gives so many bytes of the packet to whoever listens to the group.
func tell(group uint16, bytes uint32, prefix string) expression {
	return express("log", func(b *buffer) {
		b.attr(unix.NFTA_LOG_GROUP, binary.BigEndian.AppendUint16(nil, group))
		b.text(unix.NFTA_LOG_PREFIX, prefix)
		b.word(unix.NFTA_LOG_SNAPLEN, bytes)
	})
}

// reset answers a TCP segment with a reset, and drops it.
func reset() expression {
	return express("reject", func(b *buffer) {
		b.word(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_TCP_RST)
	})
}

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

// A register is a word of 4 bytes among the 16 that a rule may use. Keys of several parts lie in adjacent ones; all begin at the first one.
type register uint32

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

// sourceType is what the host's routes say of the packet's source: RTN_*.
func sourceType() expression {
	return express("fib", func(b *buffer) {
		b.word(unix.NFTA_FIB_DREG, register(0).name())
		b.word(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE)
		b.word(unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_SADDR)
	})
}

// wayBack is the device by which the host reaches the packet's source through the one that it came by, 0 if it does not.
func wayBack() expression {
	return express("fib", func(b *buffer) {
		b.word(unix.NFTA_FIB_DREG, register(0).name())
		b.word(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_OIF)
		b.word(unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_IIF)
	})
}

// metaSet writes what is in the first register.
func metaSet(key uint32) expression {
	return express("meta", func(b *buffer) {
		b.word(unix.NFTA_META_SREG, register(0).name())
		b.word(unix.NFTA_META_KEY, key)
	})
}

// masked keeps what mask has.
func masked(mask []byte) expression { return combined(mask, make([]byte, len(mask))) }

// combined keeps what mask has, and then flips the bits of flip.
func combined(mask, flip []byte) expression {
	return express("bitwise", func(b *buffer) {
		b.word(unix.NFTA_BITWISE_SREG, register(0).name())
		b.word(unix.NFTA_BITWISE_DREG, register(0).name())
		b.word(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		b.value(unix.NFTA_BITWISE_MASK, mask)
		b.value(unix.NFTA_BITWISE_XOR, flip)
	})
}

// swapped has a number of the host in the order of the network, so that intervals of such are those of their bytes.
func swapped() expression {
	return express("byteorder", func(b *buffer) {
		b.word(unix.NFTA_BYTEORDER_SREG, register(0).name())
		b.word(unix.NFTA_BYTEORDER_DREG, register(0).name())
		b.word(unix.NFTA_BYTEORDER_OP, unix.NFT_BYTEORDER_HTON)
		b.word(unix.NFTA_BYTEORDER_LEN, 4)
		b.word(unix.NFTA_BYTEORDER_SIZE, 4)
	})
}

func compare(op uint32, v []byte) expression {
	return express("cmp", func(b *buffer) {
		b.word(unix.NFTA_CMP_SREG, register(0).name())
		b.word(unix.NFTA_CMP_OP, op)
		b.value(unix.NFTA_CMP_DATA, v)
	})
}

func constant(n uint32) expression {
	return express("immediate", func(b *buffer) {
		b.word(unix.NFTA_IMMEDIATE_DREG, register(0).name())
		b.value(unix.NFTA_IMMEDIATE_DATA, number(n))
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

// lookup goes on if the key is in the set.
func lookup(set string) expression { return find(set, nil) }

// mapped goes on if the key is in the map, with what it is mapped to.
func mapped(set string) expression {
	name := register(0).name()
	return find(set, &name)
}

// judged does what the map says.
func judged(set string) expression {
	name := uint32(unix.NFT_REG_VERDICT)
	return find(set, &name)
}

func find(set string, to *uint32) expression {
	return express("lookup", func(b *buffer) {
		b.text(unix.NFTA_LOOKUP_SET, set)
		b.word(unix.NFTA_LOOKUP_SREG, register(0).name())
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

// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"net/netip"
)

// What both programs do. In both r6 is the context, r8 the packet.

// families jumps to the part for the packet's family, or ends.
func families(a *assembler, list []form) {
	a.load(word32, r8, r6, ctxData)
	a.load(word32, r3, r6, ctxEnd)
	a.load(word32, r2, r6, ctxProtocol)
	for _, f := range list {
		a.jump(equal, r2, loaded16(f.ethertype), "family"+f.name)
	}
	a.label("next")
	a.math(mov, r0, resultNext)
	a.exit()
}

// only puts the address of the one value of a map into r0.
func only(a *assembler, table int) {
	a.storeImm(word32, r10, stackZero, 0)
	a.wide(r1, wideMap, table)
	a.mathReg(mov, r2, r10)
	a.math(add, r2, stackZero)
	a.call(callLookup)
	a.jump(equal, r0, 0, "next")
}

// parse ends unless the packet, from r8 to r3, is one that can be of a flow. It puts the key onto the stack, but for the device, and what else is
// compared, and the size of the transport header into r5.
func (f form) parse(a *assembler) {
	a.mathReg(mov, r2, r8)
	a.math(add, r2, int64(f.l4+8))
	a.jumpReg(above, r2, r3, "next")
	a.load(word8, r2, r8, ethernet)
	if f.v6 {
		a.math(rsh, r2, 4)
		a.jump(notEqual, r2, 6, "next")
	} else {
		a.jump(notEqual, r2, 0x45, "next") // no options
		a.load(word16, r2, r8, ethernet+6)
		a.jump(anyBit, r2, loaded16(0x3fff), "next") // no fragment
	}
	a.load(word8, r4, r8, f.proto)
	a.math(mov, r5, 8)
	for _, at := range []int{stackTCP, stackEnds} {
		a.math(mov, r2, 0)
		a.store(word64, r10, at, r2)
	}
	a.jump(equal, r4, 17, "transport"+f.name)
	a.jump(notEqual, r4, 6, "next")
	a.mathReg(mov, r2, r8)
	a.math(add, r2, int64(f.l4+20))
	a.jumpReg(above, r2, r3, "next")
	a.load(word8, r2, r8, f.l4+13)
	a.math(and, r2, 0x07) // FIN, SYN, RST
	a.store(word64, r10, stackEnds, r2)
	for o := 0; o < 8; o += 4 {
		a.load(word32, r2, r8, f.l4+4+o)
		a.store(word32, r10, stackTCP+o, r2)
	}
	a.load(word8, r5, r8, f.l4+12)
	a.math(rsh, r5, 4)
	a.math(lsh, r5, 2)
	a.label("transport" + f.name)
	for o := 0; o < 2*f.addr; o += 4 {
		a.load(word32, r2, r8, f.src+o)
		a.store(word32, r10, stackKey+o, r2)
	}
	a.load(word32, r2, r8, f.l4)
	a.store(word32, r10, stackKey+f.keyPorts, r2)
	a.store(word32, r10, stackKey+f.keyProto, r4)
}

// within ends unless an address of the key is in the universe.
func (f form) within(a *assembler, universe []netip.Prefix, at int) {
	for _, p := range universe {
		if p.Addr().Is6() != f.v6 {
			continue
		}
		b := p.Addr().AsSlice()
		for o := 0; o < f.addr && p.Bits() > 8*o; o += 4 {
			bits := min(32, p.Bits()-8*o)
			a.load(word32, r2, r10, stackKey+at+o)
			if bits < 32 {
				a.math32(and, r2, loaded32(binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-bits))))
			}
			a.jump32(notEqual, r2, loaded32(b[o:]), "next")
		}
		return
	}
}

// measure turns the size of the transport header in r5 into what a link carries of the packet at once.
func (f form) measure(a *assembler) {
	a.load(word32, r2, r6, ctxSegment)
	a.jump(equal, r2, 0, "whole"+f.name)
	a.mathReg(add, r5, r2)
	a.math(add, r5, int64(f.l4-ethernet))
	a.always("measured" + f.name)
	a.label("whole" + f.name)
	a.load(word32, r5, r6, ctxLen)
	a.math(sub, r5, ethernet)
	a.label("measured" + f.name)
}

// class loads what the packet asks for besides.
func (f form) class(a *assembler, dst reg) {
	if f.v6 {
		a.load(word32, dst, r8, ethernet)
	} else {
		a.load(word8, dst, r8, ethernet+1)
	}
}

// words calls each with the offsets of the key's words.
func (f form) words(each func(o int)) {
	for o := 0; o < f.keySize; o += 4 {
		each(o)
	}
}

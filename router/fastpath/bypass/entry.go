// SPDX-License-Identifier: Apache-2.0

package bypass

import "net/netip"

// entry is the program for packets that come in by a device.
func entry(t tables, universe []netip.Prefix) ([]byte, error) {
	a := newAssembler()
	a.mathReg(mov, r6, r1)
	a.math(mov, r2, 0)
	a.store(word32, r6, ctxIndex, r2)                      // whatever its sender has set
	for _, off := range []int{ctxType, ctxVLAN, ctxMark} { // for this host, and nothing special
		a.load(word32, r2, r6, off)
		a.jump(notEqual, r2, 0, "next")
	}
	a.wide(r2, wideValue, t.epoch)
	a.load(word32, r9, r2, 0)
	a.jump(equal, r9, 0, "next")
	list := carried(universe)
	families(a, list)
	for _, f := range list {
		a.label("family" + f.name)
		f.parse(a)
		f.within(a, universe, 0)
		f.within(a, universe, f.addr)
		f.measure(a)
		a.store(word64, r10, stackSize, r5)
		f.known(a, t)
		f.repeat(a)
		f.note(a, t)
	}
	send(a, t, "send", callRedirect)
	send(a, t, "straight", callPeer)
	a.label("drop")
	a.math(mov, r0, resultDrop)
	a.exit()
	return a.program()
}

// known finds the flow, for r7, or goes on to take a note.
func (f form) known(a *assembler, t tables) {
	unknown := "note" + f.name
	a.load(word32, r2, r6, ctxDevice)
	a.store(word32, r10, stackKey+f.keyDev, r2)
	a.wide(r1, wideMap, t.flows[f.index])
	a.mathReg(mov, r2, r10)
	a.math(add, r2, stackKey)
	a.call(callLookup)
	a.jump(equal, r0, 0, unknown)
	a.load(word64, r2, r10, stackEnds)
	a.jump(notEqual, r2, 0, "ends"+f.name)
	a.mathReg(mov, r7, r0)
	a.load(word32, r2, r7, flowEpoch)
	a.jumpReg(notEqual, r2, r9, unknown)
	a.load(word64, r3, r10, stackSize)
	a.load(word32, r2, r7, flowSegment)
	a.jumpReg(above, r3, r2, unknown)
	a.load(word32, r2, r8, 6)
	a.load(word32, r3, r7, flowMAC)
	a.jumpReg(notEqual, r2, r3, unknown)
	a.load(word16, r2, r8, 10)
	a.load(word16, r3, r7, flowMAC+4)
	a.jumpReg(notEqual, r2, r3, unknown)
	a.load(word8, r2, r8, f.ttl)
	a.jump(below, r2, 2, "next") // the stack answers
	a.call(callClock)
	a.load(word64, r2, r7, flowTime)
	a.mathReg(sub, r0, r2)
	a.jump(above, r0, fresh, unknown)
}

// repeat does with the packet what the stack did with the last one. What it writes, from the ethernet header to the TTL and its checksum, goes by a helper:
// the kernel would copy the head of what TCP may have to send again for a program that writes by itself.
func (f form) repeat(a *assembler) {
	end := f.ttl + 1
	a.load(word64, r2, r7, flowHeader)
	a.store(word64, r10, stackHead, r2)
	a.load(word32, r2, r7, flowHeader+8)
	a.store(word32, r10, stackHead+8, r2)
	for _, part := range []struct {
		at int
		s  size
	}{{12, word32}, {16, word32}, {20, f.before()}} {
		a.load(part.s, r2, r8, part.at)
		a.store(part.s, r10, stackHead+part.at, r2)
	}
	a.load(word8, r2, r8, f.ttl)
	a.math(sub, r2, 1)
	a.store(word8, r10, stackHead+f.ttl, r2)
	if !f.v6 {
		end = ethernet + 12
		a.load(word8, r2, r8, f.proto)
		a.store(word8, r10, stackHead+f.proto, r2)
		a.load(word16, r2, r8, ethernet+10) // RFC 1624
		a.math(add, r2, loaded16(0x0100))
		a.mathReg(mov, r3, r2)
		a.math(rsh, r3, 16)
		a.mathReg(add, r2, r3)
		a.jump(notEqual, r2, 0xffff, "summed")
		a.math(mov, r2, 0)
		a.label("summed")
		a.store(word16, r10, stackHead+ethernet+10, r2)
	}
	f.encapsulate(a)
	a.label("plain" + f.name)
	put(a, 0, stackHead, end, 0)
	a.jump(notEqual, r0, 0, "next")
	if f.v6 { // there is no checksum but that which a network card may have made of the whole packet
		a.mathReg(mov, r1, r6)
		a.math(mov, r2, ^loaded16(1))
		a.call(callChecksum)
	}
	a.load(word32, r9, r7, flowDevice)
	straight(a)
}

// straight goes on with "straight" if the packet can be taken past the queue of the device by which it leaves, and overtakes none of its flow there. It
// stays in the queue as long as they follow each other closely since the stack has let one pass.
func straight(a *assembler) {
	a.load(word32, r2, r7, flowStraight)
	a.jump(equal, r2, 0, "send")
	a.load(word64, r2, r7, flowQueued)
	a.jump(equal, r2, 0, "straight")
	a.call(callTime)
	a.load(word64, r2, r7, flowQueued)
	a.store(word64, r7, flowQueued, r0)
	a.jumpReg(above, r2, r0, "send") // by another processor, just now
	a.mathReg(sub, r0, r2)
	a.jump(below, r0, quiet, "send")
	a.storeImm(word64, r7, flowQueued, 0)
	a.always("straight")
}

// put writes bytes of the stack over those of the packet from at on; r0 is not 0 if that has failed.
func put(a *assembler, at, stack, size int, flags int64) {
	a.mathReg(mov, r1, r6)
	a.math(mov, r2, int64(at))
	a.mathReg(mov, r3, r10)
	a.math(add, r3, int64(stack))
	a.math(mov, r4, int64(size))
	a.math(mov, r5, flags)
	a.call(callStore)
}

// note takes a note of a packet that the stack is to decide about, unless a connection begins or ends with it: that ends the flow, for r0, so that the stack sees
// what follows.
func (f form) note(a *assembler, t tables) {
	a.label("ends" + f.name)
	a.storeImm(word32, r0, flowEpoch, 0)
	a.always("next")

	a.label("note" + f.name)
	a.load(word64, r2, r10, stackEnds)
	a.jump(notEqual, r2, 0, "next")
	only(a, t.notes)
	a.load(word32, r2, r0, noteNumber)
	a.math(add, r2, 1)
	a.math(and, r2, 0x7fff)
	a.math(or, r2, 0x8000) // never 0, which every packet has
	a.store(word32, r0, noteNumber, r2)
	a.store(word32, r6, ctxIndex, r2)
	a.store(word32, r0, noteEpoch, r9)
	a.load(word32, r2, r6, ctxLen)
	a.store(word32, r0, noteLen, r2)
	a.load(word64, r2, r10, stackSize)
	a.store(word32, r0, noteSegment, r2)
	a.load(word8, r2, r8, f.ttl)
	a.store(word32, r0, noteTTL, r2)
	f.class(a, r2)
	a.store(word32, r0, noteClass, r2)
	a.load(word32, r2, r8, 6)
	a.store(word32, r0, noteMAC, r2)
	a.load(word16, r2, r8, 10)
	a.store(word32, r0, noteMAC+4, r2)
	a.storeImm(word32, r0, noteFamily, int64(f.l4))
	f.words(func(o int) {
		a.load(word32, r2, r10, stackKey+o)
		a.store(word32, r0, noteKey+o, r2)
	})
	for o := 0; o < 8; o += 4 {
		a.load(word32, r2, r10, stackTCP+o)
		a.store(word32, r0, noteTCP+o, r2)
	}
	a.always("next")
}

// send counts the packet and hands it on, to the device in r9 or to its other end.
func send(a *assembler, t tables, label string, call int64) {
	a.label(label)
	only(a, t.counts)
	a.load(word64, r2, r0, 0)
	a.math(add, r2, 1)
	a.store(word64, r0, 0, r2)
	a.load(word32, r2, r7, flowPriority)
	a.store(word32, r6, ctxPriority, r2)
	a.mathReg(mov, r1, r9)
	a.math(mov, r2, 0)
	a.call(call)
	a.exit()
}

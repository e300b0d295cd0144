// SPDX-License-Identifier: Apache-2.0

package bypass

import "net/netip"

// way is what kind of device packets leave by.
type way int

const (
	outward   way = iota // they go their way
	intoVXLAN            // they go on in a tunnel, and may meet the program again
	inward               // at its other end is a workload, and nothing in between
)

// exit is the program for packets that leave by a device.
func exit(t tables, universe []netip.Prefix, w way) ([]byte, error) {
	a := newAssembler()
	a.mathReg(mov, r6, r1)
	a.load(word32, r9, r6, ctxIndex)
	a.jump(equal, r9, 0, "next") // it went around the stack, or came from this host or by a device that is not served
	a.math(mov, r2, 0)
	a.store(word32, r6, ctxIndex, r2)
	for _, off := range []int{ctxVLAN, ctxMark} {
		a.load(word32, r2, r6, off)
		a.jump(notEqual, r2, 0, "next")
	}
	only(a, t.notes)
	a.mathReg(mov, r7, r0)
	same := func(x, y reg, load func()) {
		load()
		a.jumpReg(notEqual, x, y, "next")
	}
	same(r2, r9, func() { a.load(word32, r2, r7, noteNumber) })
	if w != intoVXLAN {
		a.load(word32, r2, r7, noteTunnel)
		a.jumpReg(equal, r2, r9, "outer")
	}
	same(r2, r3, func() { a.load(word32, r2, r7, noteLen); a.load(word32, r3, r6, ctxLen) })
	list := carried(universe)
	families(a, list)
	for _, f := range list {
		a.label("family" + f.name)
		a.load(word32, r2, r7, noteFamily)
		a.jump(notEqual, r2, int64(f.l4), "next")
		f.parse(a)
		a.load(word32, r2, r6, ctxIngress)
		a.store(word32, r10, stackKey+f.keyDev, r2)
		f.noted(a)
		same(r2, r3, func() { a.load(word8, r2, r8, f.ttl); a.math(add, r2, 1); a.load(word32, r3, r7, noteTTL) })
		same(r2, r3, func() { f.class(a, r2); a.load(word32, r3, r7, noteClass) })
		f.learn(a, t, w)
	}
	if w != intoVXLAN {
		outer(a, t, list)
	}
	return a.program()
}

// noted ends unless the packet on the stack is that of the note in r7.
func (f form) noted(a *assembler) {
	same := func(stack, note int) {
		a.load(word32, r2, r10, stack)
		a.load(word32, r3, r7, note)
		a.jumpReg(notEqual, r2, r3, "next")
	}
	f.words(func(o int) { same(stackKey+o, noteKey+o) })
	for o := 0; o < 8; o += 4 {
		same(stackTCP+o, noteTCP+o)
	}
}

// learn fills the flow, if it was admitted, or counts what may be.
func (f form) learn(a *assembler, t tables, w way) {
	a.wide(r1, wideMap, t.flows[f.index])
	a.mathReg(mov, r2, r10)
	a.math(add, r2, stackKey)
	a.call(callLookup)
	a.load(word32, r9, r7, noteEpoch)
	a.jump(equal, r0, 0, "other"+f.name)
	a.load(word64, r2, r10, stackEnds)
	a.jump(notEqual, r2, 0, "ends"+f.name)
	a.load(word32, r2, r0, flowEpoch)
	a.jumpReg(notEqual, r2, r9, "other"+f.name)
	a.load(word64, r2, r0, flowTime)
	a.jump(equal, r2, 0, "first"+f.name)
	parts := f.parts()
	for _, p := range parts {
		a.load(p.s, r2, p.base, p.from)
		a.load(p.s, r3, r0, p.to)
		a.jumpReg(notEqual, r2, r3, "ends"+f.name) // it takes another way now
	}
	a.always("again" + f.name)
	a.label("first" + f.name)
	for _, p := range parts {
		a.load(p.s, r2, p.base, p.from)
		a.store(p.s, r0, p.to, r2)
	}
	a.label("again" + f.name)
	a.load(word32, r2, r7, noteSegment)
	a.store(word32, r0, flowSegment, r2)
	a.load(word32, r2, r6, ctxPriority)
	a.store(word32, r0, flowPriority, r2)
	a.mathReg(mov, r7, r0)
	if w == inward {
		a.call(callTime)
		a.store(word64, r7, flowQueued, r0)
		a.storeImm(word32, r7, flowStraight, 1)
	} else {
		a.storeImm(word32, r7, flowStraight, 0)
	}
	a.call(callClock)
	a.store(word64, r7, flowTime, r0)
	if w == intoVXLAN {
		goOn(a, t)
	}
	a.always("next")
	a.label("ends" + f.name)
	a.storeImm(word32, r0, flowEpoch, 0)
	a.always("next")
	f.count(a, t)
}

// A part is one of what does not change as long as a flow takes the same way.
type part struct {
	s        size
	base     reg
	from, to int
}

// parts are those of a flow: the header of the packet in r8, the device in the context, the sender in the note for r7.
func (f form) parts() []part {
	return []part{
		{word32, r8, 0, flowHeader},
		{word32, r8, 4, flowHeader + 4},
		{word32, r8, 8, flowHeader + 8},
		{word32, r6, ctxDevice, flowDevice},
		{word32, r7, noteMAC, flowMAC},
		{word16, r7, noteMAC + 4, flowMAC + 4},
	}
}

// count counts the packets of a flow that is not admitted, and asks for it if there are many.
func (f form) count(a *assembler, t tables) {
	update := func() {
		a.wide(r1, wideMap, t.candidates[f.index])
		a.mathReg(mov, r2, r10)
		a.math(add, r2, stackKey)
	}
	a.label("other" + f.name)
	a.load(word64, r2, r10, stackEnds)
	a.jump(notEqual, r2, 0, "next")
	a.load(word32, r7, r6, ctxDevice)
	update()
	a.call(callLookup)
	a.mathReg(mov, r8, r0)
	a.call(callClock)
	a.jump(equal, r8, 0, "new"+f.name)
	a.load(word32, r2, r8, candidateEpoch)
	a.jumpReg(notEqual, r2, r9, "anew"+f.name)
	a.load(word32, r2, r8, candidateDevice)
	a.jumpReg(notEqual, r2, r7, "anew"+f.name)
	a.mathReg(mov, r3, r0)
	a.load(word64, r2, r8, candidateBegan)
	a.mathReg(sub, r3, r2)
	a.jump(above, r3, fresh, "late"+f.name)
	a.load(word32, r2, r6, ctxLen)
	a.math(rsh, r2, weightShift)
	a.load(word32, r3, r8, candidateCount)
	a.mathReg(add, r2, r3)
	a.math(add, r2, 1)
	a.store(word32, r8, candidateCount, r2)
	a.jump(below, r2, big, "next")
	a.mathReg(mov, r3, r0)
	a.load(word64, r2, r8, candidateAsked)
	a.mathReg(sub, r3, r2)
	a.jump(below, r3, askAgain, "next")
	a.store(word64, r8, candidateAsked, r0)
	a.store(word32, r10, stackRequest+requestEpoch, r9)
	a.storeImm(word32, r10, stackRequest+requestFamily, int64(f.l4))
	a.wide(r1, wideMap, t.requests)
	a.mathReg(mov, r2, r10)
	a.math(add, r2, stackRequest)
	a.math(mov, r3, int64(requestKey+f.keySize))
	a.math(mov, r4, 0)
	a.call(callOutput)
	a.always("next")

	a.label("late" + f.name)
	a.store(word64, r8, candidateBegan, r0)
	a.storeImm(word32, r8, candidateCount, 1)
	a.always("next")

	a.label("anew" + f.name)
	a.store(word64, r8, candidateBegan, r0)
	a.storeImm(word64, r8, candidateAsked, 0)
	a.storeImm(word32, r8, candidateCount, 1)
	a.store(word32, r8, candidateEpoch, r9)
	a.store(word32, r8, candidateDevice, r7)
	a.always("next")

	a.label("new" + f.name)
	a.store(word64, r10, stackOther+candidateBegan, r0)
	a.storeImm(word64, r10, stackOther+candidateAsked, 0)
	a.storeImm(word32, r10, stackOther+candidateCount, 1)
	a.store(word32, r10, stackOther+candidateEpoch, r9)
	a.store(word32, r10, stackOther+candidateDevice, r7)
	a.storeImm(word32, r10, stackOther+candidateDevice+4, 0)
	update()
	a.mathReg(mov, r3, r10)
	a.math(add, r3, stackOther)
	a.math(mov, r4, 0)
	a.call(callUpdate)
	a.always("next")
}

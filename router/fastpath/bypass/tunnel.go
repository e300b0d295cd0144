// SPDX-License-Identifier: Apache-2.0

package bypass

// What goes on by VXLAN over IPv4 meets the stack twice: with its own header at the tunnel's device, and again with that of the tunnel on its way out of
// the host. The exit follows a packet through both. It leaves the number with it at the tunnel's device, and at the device by which it leaves the host it learns
// what the stack has put ahead of it; the entry puts the same ahead of the packets that follow.

const (
	// grow is by how much a packet is larger in its tunnel.
	grow = outerSize - ethernet
	// outerMost is the largest packet, with its ethernet header, whose length the outer header can tell.
	outerMost = 0xffff - grow + ethernet

	roomMAC   = 1 // BPF_ADJ_ROOM_MAC: behind the ethernet header
	recompute = 1 // BPF_F_RECOMPUTE_CSUM: of the whole packet, if a network card has made it
)

// encapsulate puts the packet into its tunnel, if the exit has seen the last one that the stack let pass leave the host in one, or goes on with "plain". What the
// packet is to begin with lies on the stack already, from stackHead on, but for the tunnel.
func (f form) encapsulate(a *assembler) {
	plain := "plain" + f.name
	a.load(word64, r2, r7, flowOuterTime)
	a.load(word64, r3, r7, flowTime)
	a.jumpReg(below, r2, r3, plain)
	f.class(a, r2)
	a.load(word32, r3, r7, flowOuterClass)
	a.jumpReg(notEqual, r2, r3, plain)
	a.load(word32, r4, r6, ctxLen)
	a.jump(above, r4, outerMost, plain)

	for o := 0; o < outerSize; o += 8 {
		a.load(word64, r2, r7, flowOuter+o)
		a.store(word64, r10, stackOuter+o, r2)
	}
	head := f.inner(a)
	length := func(at int, behind int64) {
		a.mathReg(mov, r2, r4)
		a.math(add, r2, grow-behind)
		a.swap16(r2)
		a.store(word16, r10, stackOuter+at, r2)
	}
	length(outerLen, outerIP)
	length(outerUDPLen, outerUDP)
	a.load(word32, r2, r7, flowOuterID)
	a.load(word32, r3, r6, ctxCut)
	a.jump(notEqual, r3, 0, "cut"+f.name)
	a.math(mov, r3, 1)
	a.label("cut" + f.name)
	a.mathReg(add, r3, r2)
	a.store(word32, r7, flowOuterID, r3)
	a.swap16(r2)
	a.store(word16, r10, stackOuter+outerID, r2)
	sum(a)

	a.mathReg(mov, r1, r6)
	a.math(mov, r2, grow)
	a.math(mov, r3, roomMAC)
	a.long(r4, tunnelRoom)
	a.math(mov, r5, 0)
	a.call(callRoom)
	a.jump(notEqual, r0, 0, "next")
	put(a, 0, stackOuter, ethernet, 0)
	a.jump(notEqual, r0, 0, "drop")
	put(a, ethernet, stackOuter+ethernet, head-ethernet, recompute)
	a.jump(notEqual, r0, 0, "drop")
	a.load(word32, r9, r7, flowOuterDevice)
	a.always("send")
}

// inner puts the beginning of the inner IP header behind the outer one, with the TTL that it is to have, and returns how long the whole is.
func (f form) inner(a *assembler) int {
	copied := func(s size, base reg, from, to int) {
		a.load(s, r2, base, from)
		a.store(s, r10, stackOuter+outerSize+to, r2)
	}
	copied(word32, r8, ethernet, 0)
	if f.v6 {
		copied(word16, r8, ethernet+4, 4)
		copied(word8, r8, f.proto, 6)
		copied(word8, r10, stackHead+f.ttl, 7)
		return outerSize + 8
	}
	copied(word32, r8, ethernet+4, 4)
	copied(word8, r10, stackHead+f.ttl, 8)
	copied(word8, r8, f.proto, 9)
	copied(word16, r10, stackHead+ethernet+10, 10)
	return outerSize + 12
}

// sum puts the checksum into the outer IP header on the stack.
func sum(a *assembler) {
	a.storeImm(word16, r10, stackOuter+outerSum, 0)
	a.math(mov, r2, 0)
	for o := outerIP; o < outerUDP; o += 2 {
		a.load(word16, r3, r10, stackOuter+o)
		a.mathReg(add, r2, r3)
	}
	for range 2 {
		a.mathReg(mov, r3, r2)
		a.math(rsh, r3, 16)
		a.math(and, r2, 0xffff)
		a.mathReg(add, r2, r3)
	}
	a.math(xor, r2, 0xffff)
	a.store(word16, r10, stackOuter+outerSum, r2)
}

// goOn leaves the number with a packet that goes on in a tunnel, whose flow is in r7.
func goOn(a *assembler, t tables) {
	only(a, t.notes)
	a.load(word32, r2, r0, noteNumber)
	a.store(word32, r0, noteTunnel, r2)
	a.store(word32, r6, ctxIndex, r2)
}

// outer learns what the packet of the note in r7 has been put into, at the device by which that leaves the host.
func outer(a *assembler, t tables, list []form) {
	is := func(s size, at int, want int64) {
		a.load(s, r2, r8, at)
		a.jump32(notEqual, r2, want, "next")
	}
	a.label("outer")
	a.storeImm(word32, r7, noteTunnel, 0)
	a.load(word32, r2, r6, ctxIngress)
	a.jump(notEqual, r2, 0, "next") // what leaves a tunnel's device has come by none, what somebody else sends through this host has
	a.load(word32, r2, r7, noteLen)
	a.math(add, r2, grow)
	a.load(word32, r3, r6, ctxLen)
	a.jumpReg(notEqual, r2, r3, "next")
	a.load(word32, r2, r6, ctxProtocol)
	a.jump(notEqual, r2, loaded16(0x0800), "next")
	a.load(word32, r8, r6, ctxData)
	a.load(word32, r3, r6, ctxEnd)
	a.mathReg(mov, r2, r8)
	a.math(add, r2, outerSize)
	a.jumpReg(above, r2, r3, "next")
	is(word8, outerIP, 0x45)
	is(word16, outerFlags, loaded16(0x4000)) // not to be cut, so that the identification is of no importance
	is(word8, outerProto, 17)
	is(word32, outerVXLAN, 8)
	a.math(add, r8, grow)
	for _, f := range list {
		f.name += "outer"
		a.load(word32, r2, r7, noteFamily)
		a.jump(notEqual, r2, int64(f.l4), "not"+f.name)
		f.parse(a)
		a.load(word32, r2, r7, noteKey+f.keyDev)
		a.store(word32, r10, stackKey+f.keyDev, r2)
		f.noted(a)
		f.learnOuter(a, t)
		a.label("not" + f.name)
	}
	a.always("next")
}

// learnOuter fills what the flow is to know of its tunnel, or looks whether it is the same as before.
func (f form) learnOuter(a *assembler, t tables) {
	a.wide(r1, wideMap, t.flows[f.index])
	a.mathReg(mov, r2, r10)
	a.math(add, r2, stackKey)
	a.call(callLookup)
	a.jump(equal, r0, 0, "next")
	a.load(word32, r2, r0, flowEpoch)
	a.load(word32, r3, r7, noteEpoch)
	a.jumpReg(notEqual, r2, r3, "next")
	a.math(sub, r8, grow)
	a.load(word64, r2, r0, flowOuterTime)
	a.jump(equal, r2, 0, "first"+f.name)
	for _, p := range outerParts() {
		a.load(p.s, r2, p.base, p.from)
		a.load(p.s, r3, r0, p.to)
		a.jumpReg(notEqual, r2, r3, "ends"+f.name) // another tunnel, or it takes another way
	}
	a.always("again" + f.name)
	a.label("first" + f.name)
	for o := 0; o < outerSize; o += 4 {
		a.load(word32, r2, r8, o)
		a.store(word32, r0, flowOuter+o, r2)
	}
	a.storeImm(word16, r0, flowOuter+outerUDPSum, 0)
	a.load(word32, r2, r6, ctxDevice)
	a.store(word32, r0, flowOuterDevice, r2)
	a.load(word16, r2, r8, outerID)
	a.swap16(r2)
	a.store(word32, r0, flowOuterID, r2)
	a.label("again" + f.name)
	a.load(word8, r2, r8, outerIP+1) // it follows the inner one
	a.store(word8, r0, flowOuter+outerIP+1, r2)
	a.load(word32, r2, r7, noteClass)
	a.store(word32, r0, flowOuterClass, r2)
	a.mathReg(mov, r7, r0)
	a.call(callClock)
	a.store(word64, r7, flowOuterTime, r0)
	a.always("next")
	a.label("ends" + f.name) // and is learned anew from the next one
	a.storeImm(word64, r0, flowOuterTime, 0)
	a.always("next")
}

// outerParts are what does not change as long as a flow takes the same tunnel the same way.
func outerParts() (list []part) {
	for _, at := range []int{0, 4, 8, outerIP + 12, outerIP + 16, outerUDP, outerVXLAN + 4, innerHeader, innerHeader + 4, innerHeader + 8} {
		list = append(list, part{word32, r8, at, flowOuter + at})
	}
	return append(list, part{word8, r8, outerTTL, flowOuter + outerTTL}, part{word32, r6, ctxDevice, flowOuterDevice})
}

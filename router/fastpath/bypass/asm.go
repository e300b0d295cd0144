// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"fmt"
	"math"
)

// reg is a register of the kernel's virtual machine: r0 holds results, r1 to r5 arguments, which calls destroy, r6 to r9 are kept, r10 is
// the end of the stack.
type reg uint8

const (
	r0 reg = iota
	r1
	r2
	r3
	r4
	r5
	r6
	r7
	r8
	r9
	r10
)

// size is that of a load or store, as the kernel encodes it.
type size uint8

const (
	word32 size = 0x00
	word16 size = 0x08
	word8  size = 0x10
	word64 size = 0x18
)

// op is an operation of arithmetic, or a comparison, as the kernel encodes it.
type op uint8

const (
	add op = 0x00
	sub op = 0x10
	or  op = 0x40
	and op = 0x50
	lsh op = 0x60
	rsh op = 0x70
	xor op = 0xa0
	mov op = 0xb0

	equal    op = 0x10
	above    op = 0x20 // unsigned
	anyBit   op = 0x40 // some bit of both
	notEqual op = 0x50
	below    op = 0xa0 // unsigned
)

// Classes of instructions (Linux, Documentation/bpf/standardization/instruction-set.rst), and what chooses a register as the second operand.
const (
	classLoad     = 0x61 // ldx, from memory
	classStoreImm = 0x62
	classStore    = 0x63
	classMath32   = 0x04
	classMath64   = 0x07
	classJump     = 0x05
	classJump32   = 0x06
	fromRegister  = 0x08

	opWide   = 0x18 // 64 bits of constant, two instructions long
	opSwap   = 0xdc // to big endian
	opCall   = 0x85
	opExit   = 0x95
	opAlways = 0x05

	wideMap   = 1 // the constant is a map, by its descriptor
	wideValue = 2 // or an address within the one value of a map
)

// assembler makes a program. Its methods append one instruction each; jumps lead forward or back to labels. The first mistake is the error of program.
type assembler struct {
	code   []byte
	labels map[string]int // in instructions
	jumps  map[int]string // where they lead, by where they are
	err    error
}

func newAssembler() *assembler {
	return &assembler{labels: map[string]int{}, jumps: map[int]string{}}
}

func (a *assembler) emit(code uint8, dst, src reg, off int, imm int64) {
	if off < math.MinInt16 || off > math.MaxInt16 || imm < math.MinInt32 || imm > math.MaxUint32 {
		a.fail("an operand is too large: %d, %d", off, imm)
	}
	a.code = append(a.code, code, uint8(src)<<4|uint8(dst))
	a.code = binary.LittleEndian.AppendUint16(a.code, uint16(off))
	a.code = binary.LittleEndian.AppendUint32(a.code, uint32(imm))
}

func (a *assembler) fail(format string, args ...any) {
	if a.err == nil {
		a.err = fmt.Errorf("instruction %d: %s", a.at(), fmt.Sprintf(format, args...))
	}
}

// at is the number of the next instruction.
func (a *assembler) at() int { return len(a.code) / 8 }

func (a *assembler) load(s size, dst, base reg, off int) {
	a.emit(classLoad|uint8(s), dst, base, off, 0)
}

func (a *assembler) store(s size, base reg, off int, src reg) {
	a.emit(classStore|uint8(s), base, src, off, 0)
}

func (a *assembler) storeImm(s size, base reg, off int, imm int64) {
	a.emit(classStoreImm|uint8(s), base, 0, off, imm)
}

// math has 64 bits, the constant is extended by its sign.
func (a *assembler) math(o op, dst reg, imm int64) { a.emit(classMath64|uint8(o), dst, 0, 0, imm) }

func (a *assembler) mathReg(o op, dst, src reg) {
	a.emit(classMath64|fromRegister|uint8(o), dst, src, 0, 0)
}

func (a *assembler) math32(o op, dst reg, imm int64) { a.emit(classMath32|uint8(o), dst, 0, 0, imm) }

// jump compares 64 bits, jump32 the lower 32.
func (a *assembler) jump(o op, x reg, imm int64, to string) {
	a.jumps[a.at()] = to
	a.emit(classJump|uint8(o), x, 0, 0, imm)
}

func (a *assembler) jumpReg(o op, x, y reg, to string) {
	a.jumps[a.at()] = to
	a.emit(classJump|fromRegister|uint8(o), x, y, 0, 0)
}

func (a *assembler) jump32(o op, x reg, imm int64, to string) {
	a.jumps[a.at()] = to
	a.emit(classJump32|uint8(o), x, 0, 0, imm)
}

func (a *assembler) always(to string) {
	a.jumps[a.at()] = to
	a.emit(opAlways, 0, 0, 0, 0)
}

// wide loads a map, or the address of the value of an array with one.
func (a *assembler) wide(dst reg, kind reg, fd int) {
	a.emit(opWide, dst, kind, 0, int64(fd))
	a.emit(0, 0, 0, 0, 0)
}

// long loads 64 bits.
func (a *assembler) long(dst reg, v uint64) {
	a.emit(opWide, dst, 0, 0, int64(uint32(v)))
	a.emit(0, 0, 0, 0, int64(v>>32))
}

// swap16 turns the lower 16 bits into the order in which packets have them, or back, and clears the others.
func (a *assembler) swap16(dst reg) { a.emit(opSwap, dst, 0, 0, 16) }

func (a *assembler) call(helper int64) { a.emit(opCall, 0, 0, 0, helper) }
func (a *assembler) exit()             { a.emit(opExit, 0, 0, 0, 0) }

func (a *assembler) label(name string) {
	if _, ok := a.labels[name]; ok {
		a.fail("there are two labels %s", name)
	}
	a.labels[name] = a.at()
}

// program returns the instructions.
func (a *assembler) program() ([]byte, error) {
	for from, name := range a.jumps {
		to, ok := a.labels[name]
		if !ok {
			a.fail("there is no label %s", name)
		}
		if d := to - from - 1; d < math.MinInt16 || d > math.MaxInt16 {
			a.fail("%s is too far away", name)
		} else {
			binary.LittleEndian.PutUint16(a.code[8*from+2:], uint16(d))
		}
	}
	return a.code, a.err
}

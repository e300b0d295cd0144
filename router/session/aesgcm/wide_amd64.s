// SPDX-License-Identifier: Apache-2.0

//go:build !purego

#include "textflag.h"

// The layout of wide, see wide_amd64.go.
#define powers 240 // H to the 16th, 15th ... first, each times x and reflected
#define sums   496 // of their halves

// bytes of 16 in reverse order
DATA reverse<>+0x00(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse<>+0x08(SB)/8, $0x0001020304050607
DATA reverse<>+0x10(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse<>+0x18(SB)/8, $0x0001020304050607
GLOBL reverse<>(SB), RODATA|NOPTR, $32

// the last four of 16 bytes in reverse order
DATA bigEndian<>+0x00(SB)/8, $0x0706050403020100
DATA bigEndian<>+0x08(SB)/8, $0x0c0d0e0f0b0a0908
DATA bigEndian<>+0x10(SB)/8, $0x0706050403020100
DATA bigEndian<>+0x18(SB)/8, $0x0c0d0e0f0b0a0908
GLOBL bigEndian<>(SB), RODATA|NOPTR, $32

// what makes of the counters 1 and 1 the counters 2 and 3
DATA first<>+0x00(SB)/8, $0
DATA first<>+0x08(SB)/8, $0x0000000100000000
DATA first<>+0x10(SB)/8, $0
DATA first<>+0x18(SB)/8, $0x0000000200000000
GLOBL first<>(SB), RODATA|NOPTR, $32

DATA two<>+0x00(SB)/8, $0
DATA two<>+0x08(SB)/8, $0x0000000200000000
DATA two<>+0x10(SB)/8, $0
DATA two<>+0x18(SB)/8, $0x0000000200000000
GLOBL two<>(SB), RODATA|NOPTR, $32

// x^128 + x^127 + x^126 + x^121 + 1, reflected: its upper half
DATA poly<>+0x00(SB)/8, $0xc200000000000000
DATA poly<>+0x08(SB)/8, $0
GLOBL poly<>(SB), RODATA|NOPTR, $16

// Registers in seal and open:
//   AX  the key            Y0-Y7   16 blocks of the key stream
//   DI  what is written    Y8      the next two counters, their last words little-endian
//   SI  what is read       Y9      round keys, and for a few instructions
//   CX  blocks to go       Y10-Y12 sums of products: of the lower halves, of the upper ones, of their sums
//   R8  what is hashed     Y13 Y14 for a few instructions
//   R9, R10 in the tail    Y15     the hash so far, reflected, in the lower half

// NEXT makes two counter blocks.
#define NEXT(y) \
	VPSHUFB bigEndian<>(SB), Y8, y \
	VPADDD  two<>(SB), Y8, Y8

#define XORALL(k) \
	VPXOR k, Y0, Y0 \
	VPXOR k, Y1, Y1 \
	VPXOR k, Y2, Y2 \
	VPXOR k, Y3, Y3 \
	VPXOR k, Y4, Y4 \
	VPXOR k, Y5, Y5 \
	VPXOR k, Y6, Y6 \
	VPXOR k, Y7, Y7

// COUNTERS makes 16 counter blocks, and WHITEN is round 0 of them.
#define COUNTERS \
	NEXT(Y0) \
	NEXT(Y1) \
	NEXT(Y2) \
	NEXT(Y3) \
	NEXT(Y4) \
	NEXT(Y5) \
	NEXT(Y6) \
	NEXT(Y7)

#define WHITEN \
	VBROADCASTI128 (AX), Y9 \
	XORALL(Y9)

// ROUND is one round of 16 blocks.
#define ROUND(n) \
	VBROADCASTI128 (n*16)(AX), Y9 \
	VAESENC Y9, Y0, Y0 \
	VAESENC Y9, Y1, Y1 \
	VAESENC Y9, Y2, Y2 \
	VAESENC Y9, Y3, Y3 \
	VAESENC Y9, Y4, Y4 \
	VAESENC Y9, Y5, Y5 \
	VAESENC Y9, Y6, Y6 \
	VAESENC Y9, Y7, Y7

#define LASTROUND \
	VBROADCASTI128 (14*16)(AX), Y9 \
	VAESENCLAST Y9, Y0, Y0 \
	VAESENCLAST Y9, Y1, Y1 \
	VAESENCLAST Y9, Y2, Y2 \
	VAESENCLAST Y9, Y3, Y3 \
	VAESENCLAST Y9, Y4, Y4 \
	VAESENCLAST Y9, Y5, Y5 \
	VAESENCLAST Y9, Y6, Y6 \
	VAESENCLAST Y9, Y7, Y7

// MULTIPLY adds the products of d and the powers at p to Y10-Y12, by three multiplications each (Karatsuba); q are the powers' sums.
// d, t and u are registers 13, 14 and 9, all X or all Y. d is gone.
#define MULTIPLY(p, q, d, t, u) \
	VPCLMULQDQ $0x00, p, d, t \
	VPXOR Y14, Y10, Y10 \
	VPCLMULQDQ $0x11, p, d, t \
	VPXOR Y14, Y11, Y11 \
	VPSHUFD $0x4e, d, u \
	VPXOR u, d, d \
	VPCLMULQDQ $0x00, q, d, t \
	VPXOR Y14, Y12, Y12

// HASHFIRST and HASH take the n-th two of 16 blocks at R8 into the sum of products. With all eight, and REDUCE, the hash is the next one.
#define HASHFIRST \
	VMOVDQU (R8), Y13 \
	VPSHUFB reverse<>(SB), Y13, Y13 \
	VPXOR Y15, Y13, Y13 \
	VPCLMULQDQ $0x00, powers(AX), Y13, Y10 \
	VPCLMULQDQ $0x11, powers(AX), Y13, Y11 \
	VPSHUFD $0x4e, Y13, Y9 \
	VPXOR Y9, Y13, Y13 \
	VPCLMULQDQ $0x00, sums(AX), Y13, Y12

#define HASH(n) \
	VMOVDQU (n*32)(R8), Y13 \
	VPSHUFB reverse<>(SB), Y13, Y13 \
	MULTIPLY((powers+n*32)(AX), (sums+n*32)(AX), Y13, Y14, Y9)

// REDUCE makes a hash of a sum of products.
#define REDUCE \
	VPXOR Y10, Y12, Y12 \
	VPXOR Y11, Y12, Y12 \
	VEXTRACTI128 $1, Y10, X13 \
	VPXOR X13, X10, X10 \
	VEXTRACTI128 $1, Y11, X13 \
	VPXOR X13, X11, X11 \
	VEXTRACTI128 $1, Y12, X13 \
	VPXOR X13, X12, X12 \
	VPSLLDQ $8, X12, X13 \
	VPXOR X13, X10, X10 \
	VPSRLDQ $8, X12, X13 \
	VPXOR X13, X11, X11 \
	VPCLMULQDQ $0x00, poly<>(SB), X10, X13 \
	VPSHUFD $0x4e, X10, X10 \
	VPXOR X13, X10, X10 \
	VPCLMULQDQ $0x00, poly<>(SB), X10, X13 \
	VPSHUFD $0x4e, X10, X10 \
	VPXOR X13, X10, X10 \
	VPXOR X10, X11, X15

// STREAM makes 16 blocks of the key stream; STREAMHASH hashes 16 blocks meanwhile.
#define STREAM \
	WHITEN \
	ROUND(1) \
	ROUND(2) \
	ROUND(3) \
	ROUND(4) \
	ROUND(5) \
	ROUND(6) \
	ROUND(7) \
	ROUND(8) \
	ROUND(9) \
	ROUND(10) \
	ROUND(11) \
	ROUND(12) \
	ROUND(13) \
	LASTROUND

#define STREAMHASH \
	WHITEN \
	ROUND(1) \
	HASHFIRST \
	ROUND(2) \
	HASH(1) \
	ROUND(3) \
	HASH(2) \
	ROUND(4) \
	HASH(3) \
	ROUND(5) \
	HASH(4) \
	ROUND(6) \
	HASH(5) \
	ROUND(7) \
	HASH(6) \
	ROUND(8) \
	HASH(7) \
	ROUND(9) \
	REDUCE \
	ROUND(10) \
	ROUND(11) \
	ROUND(12) \
	ROUND(13) \
	LASTROUND

// XORBLOCKS takes 16 blocks from SI to DI, and goes on behind them.
#define XORTWO(n, y) \
	VPXOR (n*32)(SI), y, y \
	VMOVDQU y, (n*32)(DI)

#define XORBLOCKS \
	XORTWO(0, Y0) \
	XORTWO(1, Y1) \
	XORTWO(2, Y2) \
	XORTWO(3, Y3) \
	XORTWO(4, Y4) \
	XORTWO(5, Y5) \
	XORTWO(6, Y6) \
	XORTWO(7, Y7) \
	ADDQ $256, SI \
	ADDQ $256, DI \
	SUBQ $16, CX

// BEGIN loads the arguments, the first two counters, and the hash of the additional data, one block. BX is the number of blocks.
#define BEGIN \
	MOVQ k+0(FP), AX \
	MOVQ dst+8(FP), DI \
	MOVQ src+16(FP), SI \
	MOVQ blocks+24(FP), CX \
	MOVQ CX, BX \
	MOVQ nonce+32(FP), DX \
	MOVQ (DX), R9 \
	MOVL 8(DX), R10 \
	VMOVQ R9, X8 \
	MOVQ $0x0000000100000000, R11 \
	ORQ R11, R10 \
	VPINSRQ $1, R10, X8, X8 \
	VPSHUFB bigEndian<>(SB), X8, X9 \
	VMOVDQU X9, one-16(SP) \
	VINSERTI128 $1, X8, Y8, Y8 \
	VPADDD first<>(SB), Y8, Y8 \
	MOVQ aad+40(FP), DX \
	VMOVDQU (DX), X13 \
	VPSHUFB reverse<>(SB), X13, X13 \
	VPCLMULQDQ $0x00, (powers+240)(AX), X13, X10 \
	VPCLMULQDQ $0x11, (powers+240)(AX), X13, X11 \
	VPSHUFD $0x4e, X13, X9 \
	VPXOR X9, X13, X13 \
	VPCLMULQDQ $0x00, (sums+240)(AX), X13, X12 \
	REDUCE

// LASTCOUNTERS is COUNTERS for the tail, of 15 blocks at most: the place of the 16th has counter 1, whose stream the tag is added to.
#define LASTCOUNTERS \
	COUNTERS \
	VINSERTI128 $1, one-16(SP), Y7, Y7

// KEEP puts the key stream on the stack.
#define KEEP \
	VMOVDQU Y0, stream-272(SP) \
	VMOVDQU Y1, stream-240(SP) \
	VMOVDQU Y2, stream-208(SP) \
	VMOVDQU Y3, stream-176(SP) \
	VMOVDQU Y4, stream-144(SP) \
	VMOVDQU Y5, stream-112(SP) \
	VMOVDQU Y6, stream-80(SP) \
	VMOVDQU Y7, stream-48(SP)

// FINISH makes the tag of the hash Y15, and forgets the stream.
#define FINISH \
	VPSHUFB reverse<>(SB), X15, X15 \
	VPXOR stream-32(SP), X15, X15 \
	MOVQ tag+48(FP), DX \
	VMOVDQU X15, (DX) \
	VPXOR Y0, Y0, Y0 \
	VMOVDQU Y0, stream-272(SP) \
	VMOVDQU Y0, stream-240(SP) \
	VMOVDQU Y0, stream-208(SP) \
	VMOVDQU Y0, stream-176(SP) \
	VMOVDQU Y0, stream-144(SP) \
	VMOVDQU Y0, stream-112(SP) \
	VMOVDQU Y0, stream-80(SP) \
	VMOVDQU Y0, stream-48(SP) \
	VZEROUPPER

// func seal(k *wide, dst, src *byte, blocks int, nonce, aad, tag *byte)
TEXT ·seal(SB), 0, $288-56
	BEGIN
	CMPQ CX, $16
	JB   few
	COUNTERS
	STREAM
	XORBLOCKS
	LEAQ -256(DI), R8

many:
	CMPQ CX, $16
	JB   rest
	COUNTERS
	STREAMHASH
	XORBLOCKS
	LEAQ -256(DI), R8
	JMP  many

rest:
	LASTCOUNTERS
	STREAMHASH
	JMP tail

few:
	LASTCOUNTERS
	STREAM

tail:
	KEEP
	MOVQ DI, R8
	LEAQ stream-272(SP), R9
	MOVQ CX, R10

two:
	SUBQ    $2, R10
	JB      one
	VMOVDQU (SI), Y0
	VPXOR   (R9), Y0, Y0
	VMOVDQU Y0, (DI)
	ADDQ    $32, SI
	ADDQ    $32, DI
	ADDQ    $32, R9
	JMP     two

one:
	ADDQ    $1, R10
	JNE     written
	VMOVDQU (SI), X0
	VPXOR   (R9), X0, X0
	VMOVDQU X0, (DI)

written:
	CALL hashTail<>(SB)
	FINISH
	RET

// func open(k *wide, dst, src *byte, blocks int, nonce, aad, tag *byte)
TEXT ·open(SB), 0, $288-56
	BEGIN

many:
	CMPQ CX, $16
	JB   rest
	MOVQ SI, R8
	COUNTERS
	STREAMHASH
	XORBLOCKS
	JMP  many

rest:
	LASTCOUNTERS
	STREAM
	KEEP
	MOVQ SI, R8
	MOVQ CX, R10
	CALL hashTail<>(SB)
	LEAQ stream-272(SP), R9
	MOVQ CX, R10

two:
	SUBQ    $2, R10
	JB      one
	VMOVDQU (SI), Y0
	VPXOR   (R9), Y0, Y0
	VMOVDQU Y0, (DI)
	ADDQ    $32, SI
	ADDQ    $32, DI
	ADDQ    $32, R9
	JMP     two

one:
	ADDQ    $1, R10
	JNE     opened
	VMOVDQU (SI), X0
	VPXOR   (R9), X0, X0
	VMOVDQU X0, (DI)

opened:
	FINISH
	RET

// hashTail hashes the last CX blocks, 15 at most, which are at R8, and the lengths, of BX blocks in all.
TEXT hashTail<>(SB), NOSPLIT|NOFRAME, $0-0
	VPXOR Y10, Y10, Y10
	VPXOR Y11, Y11, Y11
	VPXOR Y12, Y12, Y12

	// The last block takes H, the one before H².
	MOVQ CX, R10
	SHLQ $4, R10
	LEAQ (powers+240)(AX), R9
	SUBQ R10, R9
	MOVQ CX, R10

two:
	SUBQ    $2, R10
	JB      one
	VMOVDQU (R8), Y13
	VPSHUFB reverse<>(SB), Y13, Y13
	VPXOR   Y15, Y13, Y13
	VPXOR   Y15, Y15, Y15           // it counts once
	MULTIPLY((R9), 256(R9), Y13, Y14, Y9)
	ADDQ    $32, R8
	ADDQ    $32, R9
	JMP     two

one:
	ADDQ    $1, R10
	JNE     lengths
	VMOVDQU (R8), X13
	VPSHUFB reverse<>(SB), X13, X13
	VPXOR   X15, X13, X13
	VPXOR   Y15, Y15, Y15
	MULTIPLY((R9), 256(R9), X13, X14, X9)

lengths:
	// 128 bits of additional data, and so many of ciphertext
	MOVQ   BX, R10
	SHLQ   $7, R10
	VMOVQ  R10, X13
	MOVQ   $128, R10
	VPINSRQ $1, R10, X13, X13
	VPXOR  X15, X13, X13
	MULTIPLY((powers+240)(AX), (sums+240)(AX), X13, X14, X9)
	REDUCE
	RET

// func subWord(w uint32) uint32
TEXT ·subWord(SB), NOSPLIT, $0-12
	MOVL w+0(FP), AX
	VMOVD AX, X0
	VPSLLDQ $4, X0, X0           // AESKEYGENASSIST takes the second word
	VAESKEYGENASSIST $0, X0, X0
	VMOVD X0, AX
	MOVL AX, ret+8(FP)
	RET

// func extended() (ecx uint32)
TEXT ·extended(SB), NOSPLIT, $0-4
	MOVL $7, AX
	XORL CX, CX
	CPUID
	MOVL CX, ecx+0(FP)
	RET

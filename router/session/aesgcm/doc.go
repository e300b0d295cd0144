// SPDX-License-Identifier: Apache-2.0

// Package aesgcm is AES-256-GCM for data messages: the standard library's, and
// faster where the processor handles two blocks by one instruction (VAES and
// VPCLMULQDQ with 256 bits: Intel since Ice Lake, AMD since Zen 3). Sealing is the
// largest part of what a packet costs in user space, and the standard library
// (Go 1.26) handles one block at a time.
//
// The wide code takes what data messages are: whole blocks, a nonce of 12 bytes, one
// block of additional data. All else, other processors, programs built with the tag
// purego and those in FIPS mode (GODEBUG=fips140=on) go by the standard library, whose
// results are the same, byte for byte: it judges the tests.
//
// # Invariants
//
//   - No branch and no address depends on a key, a plaintext or a ciphertext; tags are
//     compared in constant time.
//   - What does not authenticate leaves zeros where the plaintext would be, and not a
//     byte behind it is touched.
//   - Nothing is allocated by Seal and Open but room that dst lacks.
//   - The key stream is wiped off the stack.
//
// # How it goes
//
// wide_amd64.go expands a key: the round keys (FIPS 197, 5.2), and the first 16
// powers of the hash key, computed as NIST SP 800-38D, 6.3 writes multiplication.
// wide_amd64.s encrypts 16 counters at a time and hashes 16 blocks of ciphertext meanwhile:
// of each the product with its power, by Karatsuba's three multiplications, and one reduction for
// the sum of all (Gueron and Kounavis, "Intel Carry-Less Multiplication Instruction and its Usage
// for Computing the GCM Mode", with numbers whose bits are reversed). Sealing hashes what it has written one round before. What
// is left, 15 blocks at most, goes with the stream of one more such round, whose last place is that of the tag.
//
// Only package session imports it.
package aesgcm

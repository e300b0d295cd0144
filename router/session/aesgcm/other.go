// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 || purego

package aesgcm

import "crypto/cipher"

// wide is never made.
type wide struct{}

func isWide() bool { return false }

func newWide(*[KeySize]byte, cipher.Block) *wide { panic("aesgcm: no wide instructions") }

func (*wide) seal(_, _, _, _ []byte) (tag [TagSize]byte) { panic("aesgcm: no wide instructions") }

func (*wide) open(_, _, _, _, _ []byte) bool { panic("aesgcm: no wide instructions") }

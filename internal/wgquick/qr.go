// SPDX-License-Identifier: Apache-2.0

package wgquick

import (
	"fmt"
	"strings"

	"rsc.io/qr"
)

// quiet is the width of the empty frame that a reader needs, in modules (ISO/IEC 18004, 9.1).
const quiet = 4

// Colours that no theme changes: black (16) on white (231) of the 256, as scanners expect it on dark and on light terminals.
const (
	blackOnWhite = "\x1b[38;5;16;48;5;231m"
	plain        = "\x1b[0m"
)

// QR returns a text as a QR code for a terminal, two modules in each character.
func QR(text string) (string, error) {
	// The lowest level of correction is the smallest code: the usual configuration fits into 80 columns, and a screen has no stains.
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return "", fmt.Errorf("making a QR code of %d bytes: %w", len(text), err)
	}
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		b.WriteString(blackOnWhite)
		for x := -quiet; x < code.Size+quiet; x++ {
			switch upper, lower := code.Black(x, y), code.Black(x, y+1); {
			case upper && lower:
				b.WriteString("█")
			case upper:
				b.WriteString("▀")
			case lower:
				b.WriteString("▄")
			default:
				b.WriteString(" ")
			}
		}
		b.WriteString(plain + "\n")
	}
	return b.String(), nil
}

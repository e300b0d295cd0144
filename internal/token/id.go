// SPDX-License-Identifier: Apache-2.0

package token

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// ID names a token without telling anything about it, so that nodes can say which ones they accept. It is never 0.
type ID uint32

// String returns 8 hex digits.
func (i ID) String() string { return fmt.Sprintf("%08x", uint32(i)) }

// ID returns the token's name.
func (t Token) ID() (ID, error) {
	b, err := hkdf.Key(sha256.New, t.secret[:], []byte("weft token v1"), "weft v1 id", 4)
	if err != nil {
		return 0, fmt.Errorf("deriving the token's name: %w", err)
	}
	return max(ID(binary.BigEndian.Uint32(b)), 1), nil
}

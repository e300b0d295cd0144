// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/rand"
	"testing"

	"github.com/weftnet/weft/internal/token"
)

func newToken(t *testing.T) token.Token {
	t.Helper()
	tok, err := token.New(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// SPDX-License-Identifier: Apache-2.0

package session

import "testing"

func TestUsable(t *testing.T) {
	for _, k := range []PublicKey{{}, {0: 1}, {0: 0xec, 1: 0xff}, {31: 0x80}} {
		want := k == PublicKey{0: 0xec, 1: 0xff}
		if got := k.Usable(); got != want {
			t.Errorf("%v: %v, want %v", k, got, want)
		}
	}
	if !(PrivateKey{0: 8, 31: 64}).Public().Usable() {
		t.Error("an honest key is refused")
	}
}

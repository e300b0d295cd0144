// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tai64n"
	"pgregory.net/rapid"
)

func TestSuiteString(t *testing.T) {
	for s, want := range map[Suite]string{WireGuard: "chacha20-poly1305", Weft: "aes-256-gcm", 7: "suite(7)"} {
		if s.String() != want {
			t.Errorf("%d: %s, want %s", uint8(s), s, want)
		}
	}
}

func TestMaxPlaintext(t *testing.T) {
	for payload, want := range map[int]int{
		-5: 0, 0: 0, 31: 0, 32: 0, 47: 0, 48: 16, 1452: 1408, 1472: 1440, 1473: 1440, 8952: 8912, 65507: 65472,
	} {
		got := MaxPlaintext(payload)
		if got != want {
			t.Errorf("payload %d: %d, want %d", payload, got, want)
		}
	}
}

func TestCheckWord(t *testing.T) {
	message := func(size int, word ...byte) []byte { return append(word, make([]byte, size-len(word))...) }
	for _, c := range []struct {
		name string
		msg  []byte
		want error
	}{
		{"empty", nil, ErrShort},
		{"three bytes", []byte{1, 0, 0}, ErrShort},
		{"initiation", message(148, 1, 0), nil},
		{"initiation, weft", message(148, 1, 1), nil},
		{"initiation, short", message(147, 1, 0), ErrShort},
		{"initiation, long", message(149, 1, 0), ErrShort},
		{"initiation, unknown suite", message(148, 1, 2), ErrSuite},
		{"initiation, flag", message(148, 1, 0, 1), ErrType},
		{"initiation, last flag", message(148, 1, 0, 0, 128), ErrType},
		{"response", message(92, 2, 1), nil},
		{"response of initiation's size", message(148, 2, 1), ErrShort},
		{"cookie", message(64, 3, 0), nil},
		{"cookie, short", message(63, 3, 0), ErrShort},
		{"data", message(148, 4, 0), ErrType},
		{"type 0", message(148, 0, 0), ErrType},
		{"gossip", message(148, 16, 0), ErrType},
	} {
		kind, suite, err := checkWord(c.msg)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err == nil && (kind != c.msg[0] || byte(suite) != c.msg[1]) {
			t.Errorf("%s: type %d suite %d", c.name, kind, suite)
		}
	}
}

// TestStampAsWireGuard compares with the reference, which can only read the clock.
func TestStampAsWireGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, d := range []time.Duration{0, 1, 16 * time.Millisecond, 17 * time.Millisecond, time.Second - 1, 1e6 * time.Hour} {
			time.Sleep(d)
			if got, want := stampAt(time.Now()), tai64n.Now(); got != stamp(want) {
				t.Errorf("%v: %x, want %x", time.Now(), got, want)
			}
		}
	})
}

func TestStampOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) time.Time {
			return time.Unix(rapid.Int64Range(-1<<40, 1<<40).Draw(t, name), rapid.Int64Range(0, 999_999_999).Draw(t, name+" ns"))
		}
		a, b := draw("a"), draw("b")
		sa, sb := stampAt(a), stampAt(b)
		if sa.after(sb) && !a.After(b) || sb.after(sa) && !b.After(a) {
			t.Fatalf("%v %x and %v %x are out of order", a, sa, b, sb)
		}
		if d := a.Sub(b); (d >= stampStep || d <= -stampStep) && sa == sb {
			t.Fatalf("%v and %v have the same label", a, b)
		}
		next := sa.next()
		if !next.after(sa) || stampAt(a.Add(2*stampStep)).after(next.next().next()) {
			t.Fatalf("next of %x is %x", sa, next)
		}
	})
}

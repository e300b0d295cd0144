// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/router/fastpath"
)

func TestMessage(t *testing.T) {
	m := message{kind: fastpath.Direct, node: 0x1112131415161718, echo: 0x2122232425262728}
	b := m.append([]byte("before"), 28)
	if got := hex.EncodeToString(b[6:]); got != "57667450"+"01020000"+"1112131415161718"+"2122232425262728"+"00000000" {
		t.Errorf("%s", got)
	}
	b = b[6:]
	if got, err := parse(b); err != nil || got != m {
		t.Errorf("%+v, %v", got, err)
	}
	if n := len(m.append(nil, 1)); n != least {
		t.Errorf("%d bytes", n)
	}
	change := func(i int, to byte) []byte {
		b := slices.Clone(b)
		b[i] = to
		return b
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "too short": b[:least-1], "other magic": change(0, 0), "other version": change(4, 2), "udp": change(5, 0),
		"unknown kind": change(5, 3), "reserved": change(6, 1), "reserved too": change(7, 1), "padding": change(27, 1), "node 0": append(slices.Clone(b[:8]), make([]byte, 16)...),
	} {
		if got, err := parse(b); !errors.Is(err, errForm) || got != (message{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = parse(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What arrives is refused, or is what append makes of what was read.
func FuzzParse(f *testing.F) {
	f.Add(message{kind: fastpath.VXLAN, node: 1, echo: 2}.append(nil, 100))
	f.Add(message{kind: fastpath.Direct, node: 1 << 63, echo: 1<<64 - 1}.append(nil, 0))
	f.Add([]byte("WftP"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err == nil && !bytes.Equal(m.append(nil, len(b)), b) {
			t.Fatalf("%+v of %x", m, b)
		}
		if err != nil && m != (message{}) {
			t.Fatalf("refused, and yet %+v", m)
		}
	})
}

// Whatever the kernel is said to have told is read without harm.
func FuzzArrived(f *testing.F) {
	f.Add([]byte{28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4})
	f.Fuzz(func(_ *testing.T, b []byte) { arrived(b) })
}

// In no second more probes pass than the limits say, and a peer that keeps to its own is not hindered by others.
func TestLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLimits()
		now := time.Unix(1e9, 0)
		type event struct {
			at   time.Time
			from int
		}
		var passed []event
		for range rapid.IntRange(1, 60).Draw(t, "bursts") {
			now = now.Add(time.Duration(rapid.IntRange(-5, 400).Draw(t, "ms")) * time.Millisecond)
			from := rapid.IntRange(0, 60).Draw(t, "from")
			for range rapid.IntRange(1, 200).Draw(t, "n") {
				if l.allow(netip.AddrFrom4([4]byte{10, 32, 0, byte(from)}), now) {
					passed = append(passed, event{now, from})
				}
			}
		}
		for i, e := range passed {
			of, all := 0, 0
			for _, o := range passed[i:] {
				if d := o.at.Sub(e.at); d < 0 || d >= time.Second {
					break
				}
				if all++; o.from == e.from {
					of++
				}
			}
			if of > PerPeer || all > InAll {
				t.Fatalf("%d of one and %d of all in a second", of, all)
			}
		}
	})
	l := newLimits()
	now := time.Unix(1e9, 0)
	refused := 0
	for i := range 1000 {
		for range 10 {
			l.allow(netip.MustParseAddr("10.32.0.9"), now)
		}
		if i%2 == 0 && !l.allow(netip.MustParseAddr("10.33.0.9"), now) {
			refused++
		}
		now = now.Add(10 * time.Millisecond)
	}
	shared := l.index(netip.MustParseAddr("10.32.0.9")) == l.index(netip.MustParseAddr("10.33.0.9")) // one run of 1024
	if refused > 0 && !shared {
		t.Errorf("%d of a peer that keeps to 50 in a second were refused, as another one does not", refused)
	}
}

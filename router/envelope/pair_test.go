// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// A tag is that of one datagram between two nodes: of its kind, its way and its body.
func TestPair(t *testing.T) {
	pair, other := NewPair([32]byte{1}), NewPair([32]byte{2})
	h := Header{Kind: KindPong, Source: 1, Destination: 2, N: 1, Relays: [4]uint64{3}}
	body := Pong{Echo: 7, Seen: netip.MustParseAddrPort("10.0.3.1:6783"), Boot: 2}.Append(nil)
	if pair.Check(&h, body) {
		t.Error("no tag is one")
	}
	pair.Put(&h, body)
	if !pair.Check(&h, body) {
		t.Error("the tag is not known again")
	}
	if p, err := ParsePong(body); err != nil || p.Tag == (Tag{}) || p.Echo != 7 {
		t.Errorf("%+v, %v", p, err)
	}
	onward := h
	onward.At, onward.Key = 1, 9
	if !pair.Check(&onward, body) {
		t.Error("a relay has spoilt the tag, or another token has")
	}
	if other.Check(&h, body) || (Pair{}).Check(&h, body) || pair.Check(&h, body[:TagSize-1]) {
		t.Error("a tag is good for another pair")
	}
	for name, change := range map[string]func(h *Header){
		"kind":        func(h *Header) { h.Kind = KindPing },
		"source":      func(h *Header) { h.Source = 4 },
		"destination": func(h *Header) { h.Destination = 4 },
		"direction":   func(h *Header) { h.Source, h.Destination = 2, 1 },
		"relay":       func(h *Header) { h.Relays[0] = 4 },
		"no relays":   func(h *Header) { h.N, h.Relays = 0, [4]uint64{} },
	} {
		changed := h
		change(&changed)
		if pair.Check(&changed, body) {
			t.Errorf("the tag says nothing of the %s", name)
		}
	}
	for i := range body {
		if pair.Check(&h, set(body, i, body[i]^1)) {
			t.Errorf("the tag says nothing of byte %d", i)
		}
	}
	before := string(body)
	Pair{}.Put(&h, body)
	pair.Put(&h, body[:3])
	if string(body) != before {
		t.Error("a tag was put where none belongs")
	}
}

func TestPairHidden(t *testing.T) {
	p := NewPair([32]byte{0xaa, 0xbb})
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s"} {
		for _, x := range []any{p, &p, struct{ P Pair }{p}} {
			if got := fmt.Sprintf(verb, x); strings.Contains(got, "aabb") || strings.Contains(got, "170") {
				t.Errorf("%s: %s", verb, got)
			}
		}
	}
}

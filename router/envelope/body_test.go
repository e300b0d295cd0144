// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestBodies(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("10.0.3.1:6783"), netip.MustParseAddrPort("[2001:db8::1]:80")
	mapped := netip.AddrPortFrom(netip.AddrFrom16(v4.Addr().As16()), v4.Port())
	noTag := strings.Repeat("00", TagSize)
	zoned := netip.MustParseAddrPort("[fe80::1%eth0]:80")
	for _, c := range []struct {
		name string
		body []byte
		want string
	}{
		{"ping", Ping{Echo: 1<<63 | 7}.Append(nil), "8000000000000007" + noTag},
		{"proof", Proof{Echo: 1<<63 | 7}.Append(nil), "8000000000000007"},
		{"pong", Pong{Echo: 1, Seen: v4, Boot: 2}.Append(nil), "0000000000000001" + "00000000000000000000ffff0a0003011a7f" + "0000000000000002" + noTag},
		{"pong, mapped", Pong{Seen: mapped}.Append(nil), "0000000000000000" + "00000000000000000000ffff0a0003011a7f" + "0000000000000000" + noTag},
		{"pong, relayed", Pong{Echo: 1}.Append(nil), "0000000000000001" + "000000000000000000000000000000000000" + "0000000000000000" + noTag},
		{"punch", Punch{Echo: 1, Candidates: []netip.AddrPort{v6, zoned}}.Append(nil), "0000000000000001" + "20010db8000000000000000000000001" + "0050" + "fe800000000000000000000000000001" + "0050" + noTag},
	} {
		if got := hex.EncodeToString(c.body); got != c.want {
			t.Errorf("%s is %s", c.name, got)
		}
	}
	if p, err := ParsePing(Ping{Echo: 7}.Append(nil)); err != nil || p.Echo != 7 {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := ParseProof(Proof{Echo: 7}.Append(nil)); err != nil || p.Echo != 7 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, want := range []Pong{{Echo: 1, Seen: v4, Boot: 2}, {Echo: 1, Seen: v6}, {Echo: 1, Tag: Tag{1, 15: 2}}} {
		if p, err := ParsePong(want.Append(nil)); err != nil || p != want {
			t.Errorf("%+v, %v", p, err)
		}
	}

	full := Punch{Echo: 3}
	for i := range MaxCandidates + 2 {
		full.Candidates = append(full.Candidates, netip.AddrPortFrom(v4.Addr(), uint16(i))) // the first one is no address
	}
	p, err := ParsePunch(full.Append(nil))
	if err != nil || p.Echo != 3 || !slices.Equal(p.Candidates, full.Candidates[1:MaxCandidates+1]) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestBodiesRefused(t *testing.T) {
	pong := Pong{Echo: 1, Seen: netip.MustParseAddrPort("10.0.3.1:6783"), Boot: 2}.Append(nil)
	punch := Punch{Candidates: []netip.AddrPort{netip.MustParseAddrPort("10.0.3.1:6783")}}.Append(nil)
	for _, c := range []struct {
		name  string
		parse func() error
	}{
		{"short ping", func() error { _, err := ParsePing(make([]byte, 23)); return err }},
		{"long ping", func() error { _, err := ParsePing(make([]byte, 25)); return err }},
		{"no proof", func() error { _, err := ParseProof(nil); return err }},
		{"short proof", func() error { _, err := ParseProof(make([]byte, 7)); return err }},
		{"long proof", func() error { _, err := ParseProof(make([]byte, 9)); return err }},
		{"short pong", func() error { _, err := ParsePong(pong[:49]); return err }},
		{"long pong", func() error { _, err := ParsePong(append(pong, 0)); return err }},
		{"pong without a port", func() error { _, err := ParsePong(set(pong, 24, 0, 0)); return err }},
		{"pong without an address", func() error { _, err := ParsePong(set(pong, 18, 0, 0, 0, 0, 0, 0)); return err }},
		{"empty punch", func() error { _, err := ParsePunch(punch[:8]); return err }},
		{"no punch", func() error { _, err := ParsePunch(nil); return err }},
		{"punch cut short", func() error { _, err := ParsePunch(punch[:41]); return err }},
		{"punch without a port", func() error { _, err := ParsePunch(set(punch, 24, 0, 0)); return err }},
		{"punch to 0.0.0.0", func() error { _, err := ParsePunch(set(punch, 20, 0, 0, 0, 0)); return err }},
		{"punch with 17 addresses", func() error {
			_, err := ParsePunch(append(make([]byte, 8+TagSize), bytes.Repeat(punch[8:len(punch)-TagSize], 17)...))
			return err
		}},
	} {
		if err := c.parse(); !errors.Is(err, ErrBody) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

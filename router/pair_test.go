// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weftnet/weft/router/envelope"
)

// knows makes a member know others as peers.
func (m *member) knows(tb testing.TB, ids ...uint64) {
	tb.Helper()
	var peers []Peer
	for _, id := range ids {
		peers = append(peers, Peer{ID: id, Key: privateOf(id).Public()})
	}
	if err := m.SetPeers(peers); err != nil {
		tb.Fatal(err)
	}
}

// Between nodes that know each other pings, pongs and punches are those of the node that they name.
func TestPairs(t *testing.T) {
	x := newMembers(t, 3, func(*Config) {})
	a, c := x.all[1], x.all[3]
	a.knows(t, 2, 3)
	c.knows(t, 1)
	x.join(1, 2)
	x.join(2, 3)
	x.join(1, 3)
	for _, by := range []way{{Addr: memberAt(3)}, {Relays: [4]uint64{2}, N: 1}} {
		if err := a.sendControl(envelope.KindPing, 3, by, envelope.Ping{Echo: 7}.Append(nil), x.now); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.sendControl(envelope.KindPunch, 3, way{Addr: memberAt(3)}, envelope.Punch{Echo: 8, Candidates: []netip.AddrPort{memberAt(9)}}.Append(nil), x.now); err != nil {
		t.Fatal(err)
	}
	x.run()
	c.want(t, "ways", c.told(), "heard 1 by 192.0.2.1:6783, for sure", "heard 1 by 192.0.2.1:6783, for sure", "punch 8 of 1 to [192.0.2.9:6783]",
		"heard 1 by relays [2], for sure")
	a.want(t, "ways", a.told(), "heard 3 by 192.0.2.3:6783, for sure", "pong 7 of 3 by 192.0.2.3:6783, who saw 192.0.2.1:6783, boot 103, for sure",
		"heard 3 by relays [2], for sure", "pong 7 of 3 by relays [2], who saw invalid AddrPort, boot 103, for sure")

	// Who does not know us answers, but for sure it is not.
	if err := a.sendControl(envelope.KindPing, 2, way{Addr: memberAt(2)}, envelope.Ping{Echo: 9}.Append(nil), x.now); err != nil {
		t.Fatal(err)
	}
	x.run()
	a.want(t, "ways", a.told(), "heard 2 by 192.0.2.2:6783", "pong 9 of 2 by 192.0.2.2:6783, who saw 192.0.2.1:6783, boot 102")
	for _, m := range x.all {
		m.wantDrops(t, map[Reason]uint64{})
	}
}

// A member answers pings, pings and asks for pings in the name of another, and repeats what that one has said in another place: none of it has any effect.
func TestPairsForged(t *testing.T) {
	x := newMembers(t, 3, func(*Config) {})
	a, rogue, c := x.all[1], x.all[2], x.all[3]
	a.knows(t, 2, 3)
	c.knows(t, 1, 2)
	rogue.knows(t, 1, 3)
	x.join(1, 3)
	x.join(1, 2)
	x.join(2, 3)
	own, _ := rogue.pairWith(1) // all that it has
	theirs, _ := c.pairWith(1)
	pong := envelope.Pong{Echo: 7, Seen: memberAt(1), Boot: 103}
	for name, forge := range map[string]func() (envelope.Header, []byte){
		"a pong with its own tag": func() (envelope.Header, []byte) {
			h, b := envelope.Header{Kind: envelope.KindPong, Source: 3, Destination: 1}, pong.Append(nil)
			own.Put(&h, b)
			return h, b
		},
		"a pong that went to another": func() (envelope.Header, []byte) {
			h, b := envelope.Header{Kind: envelope.KindPong, Source: 3, Destination: 1}, pong.Append(nil)
			other := h
			other.Destination = 2
			theirs.Put(&other, b)
			return h, b
		},
		"a pong that came by a relay": func() (envelope.Header, []byte) {
			h, b := envelope.Header{Kind: envelope.KindPong, Source: 3, Destination: 1}, pong.Append(nil)
			other := h
			other.N, other.Relays = 1, [4]uint64{2}
			theirs.Put(&other, b)
			return h, b
		},
		"our own ping": func() (envelope.Header, []byte) {
			h, b := envelope.Header{Kind: envelope.KindPing, Source: 3, Destination: 1}, envelope.Ping{Echo: 7}.Append(nil)
			other := h
			other.Source, other.Destination = 1, 3
			theirs.Put(&other, b)
			return h, b
		},
		"a ping without a tag": func() (envelope.Header, []byte) {
			return envelope.Header{Kind: envelope.KindPing, Source: 3, Destination: 1}, envelope.Ping{Echo: 7}.Append(nil)
		},
		"a punch with its own tag": func() (envelope.Header, []byte) {
			h, b := envelope.Header{Kind: envelope.KindPunch, Source: 3, Destination: 1}, envelope.Punch{Candidates: []netip.AddrPort{memberAt(2)}}.Append(nil)
			own.Put(&h, b)
			return h, b
		},
	} {
		h, body := forge()
		msg, err := rogue.keys.Load().Envelope.Seal(nil, h, body, rogue.config.Rand)
		if err != nil {
			t.Fatal(err)
		}
		before := a.drops()[DropControlForged]
		x.receive(a, slices.Clone(msg), memberAt(2))
		if told := a.told(); a.drops()[DropControlForged] != before+1 || len(told) > 0 || len(a.conn.out) > 0 {
			t.Errorf("%s: drops %v, told %q, sent %v", name, a.drops(), told, a.conn.out)
		}
	}
	// A pong without a tag is heard, and for sure it is not.
	msg, err := rogue.keys.Load().Envelope.Seal(nil, envelope.Header{Kind: envelope.KindPong, Source: 3, Destination: 1}, pong.Append(nil), rogue.config.Rand)
	if err != nil {
		t.Fatal(err)
	}
	x.receive(a, msg, memberAt(2))
	a.want(t, "ways", a.told(), "heard 3 by 192.0.2.2:6783", "pong 7 of 3 by 192.0.2.2:6783, who saw 192.0.2.1:6783, boot 103")
}

// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"pgregory.net/rapid"

	"github.com/weftnet/weft/ipam/ring"
)

const testSize = 64

// drawRing draws a ring of some history, or a delta of one.
func drawRing(t *rapid.T, label string) *ring.Ring {
	r, err := ring.Seed(testSize, []ring.Owner{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	for range rapid.IntRange(0, 5).Draw(t, label+" grants") {
		first := rapid.Uint32Range(0, testSize-1).Draw(t, label+" first")
		i := ring.Interval{First: first, Last: rapid.Uint32Range(first, min(first+7, testSize-1)).Draw(t, label+" last")}
		if err := r.Grant(r.At(first).Owner, ring.Owner(rapid.IntRange(4, 9).Draw(t, label+" to")), i); err != nil {
			continue // not all of one owner
		}
	}
	if rapid.Bool().Draw(t, label+" retired") {
		if err := r.Retire(ring.Retirement{Dead: 2, Heir: 3, By: 1, At: 1000}); err != nil {
			t.Fatal(err)
		}
		r.Promise(ring.Ballot{Count: 1, Node: 3})
	}
	if rapid.Bool().Draw(t, label+" delta") {
		return r.Only(drawSet(t, testSize, label+" of"))
	}
	return r
}

func drawMessage(t *rapid.T) *message {
	m := &message{kind: kind(rapid.IntRange(int(kindRequest), int(kindSurveyed)).Draw(t, "kind"))}
	m.urgent, m.exact, m.last = rapid.Bool().Draw(t, "urgent"), rapid.Bool().Draw(t, "exact"), rapid.Bool().Draw(t, "last")
	number := func(label string) uint64 { return uint64(rapid.Uint32().Draw(t, label)) }
	switch m.kind {
	case kindRequest:
		m.slot, m.have, m.boot = uint32(number("slot")%testSize), number("have"), rapid.Uint64().Draw(t, "boot")
		m.ring = drawRing(t, "ring")
	case kindDeny:
		m.slot = uint32(number("slot") % testSize)
		if rapid.Bool().Draw(t, "with ring") {
			m.ring = drawRing(t, "ring")
		}
		m.reason = refusal(rapid.IntRange(1, int(refusedEnd)-1).Draw(t, "reason"))
		m.usage = counts{number("usable"), number("in use"), number("resting")}
	case kindGrant:
		m.ring, m.grants = drawRing(t, "ring"), drawRing(t, "grants")
	case kindReceived, kindConfirm:
		m.grants = drawRing(t, "grants")
	case kindAck:
		m.grants, m.slots, m.length = drawRing(t, "grants"), drawSet(t, testSize, "slots"), number("length")
	case kindNews, kindVote, kindSurvey:
		m.ring = drawRing(t, "ring")
	case kindVoted, kindSurveyed:
		m.ring, m.slots = drawRing(t, "ring"), drawSet(t, testSize, "slots")
	}
	return m
}

func TestMessagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMessage(t)
		b := m.encode()
		got, err := decodeMessage(b, testSize)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.slots) == 0 {
			m.slots = nil
		}
		if !reflect.DeepEqual(got, m) {
			t.Fatalf("%+v became %+v", m, got)
		}
		if cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut"); cut < len(b) {
			if _, err := decodeMessage(b[:cut], testSize); !errors.Is(err, errMessage) {
				t.Fatalf("cut at %d of %d: %v", cut, len(b), err)
			}
		}
		if _, err := decodeMessage(append(b, 0), testSize); !errors.Is(err, errMessage) {
			t.Fatalf("a byte too many: %v", err)
		}
	})
}

func TestDecodeMessageRefuses(t *testing.T) {
	r := ring.New(testSize)
	bareAck := (&message{kind: kindAck, grants: r}).encode()
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"later format":    {messageFormat + 1, byte(kindNews), 0, 0},
		"unknown kind":    {messageFormat, 99, 0},
		"kind 0":          {messageFormat, 0, 0},
		"unknown flag":    append([]byte{messageFormat, byte(kindNews), flagEnd}, appendRing(nil, r)...),
		"no ring":         {messageFormat, byte(kindNews), 0, 0},
		"other size":      append([]byte{messageFormat, byte(kindNews), 0}, appendRing(nil, ring.New(testSize*2))...),
		"unknown refusal": (&message{kind: kindDeny, reason: refusedEnd}).encode(),
		"no refusal":      (&message{kind: kindDeny}).encode(),
		"no such slot":    (&message{kind: kindRequest, slot: testSize, ring: r}).encode(),
		"slots beyond":    (&message{kind: kindAck, grants: r, slots: ring.Set{{First: 0, Last: testSize}}}).encode(),
		"slots touch":     append(bareAck[:len(bareAck)-2:len(bareAck)-2], 2, 0, 0, 0, 0, 0),
		"endless slots":   append(bareAck[:len(bareAck)-2:len(bareAck)-2], 0xff, 0xff, 0xff, 0xff, 0x7f),
	} {
		if m, err := decodeMessage(b, testSize); !errors.Is(err, errMessage) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

func TestBadMessagesAreLoggedOncePerNode(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	l := newLone(t, "10.32.0.0/26")
	l.cfg.Log = zap.New(core)
	l.restart()
	for range 3 {
		l.HandleMessage(2, []byte("junk"))
		l.HandleMessage(3, nil)
	}
	l.HandleMessage(2, (&message{kind: kindNews, ring: ring.New(testSize)}).encode())
	l.HandleMessage(2, []byte("junk"))
	if logs.Len() != 2 { // taking turns does not make a node heard more often
		t.Errorf("%d lines: %v", logs.Len(), logs.All())
	}
}

func FuzzDecodeMessage(f *testing.F) {
	r := ring.New(testSize)
	f.Add((&message{kind: kindRequest, slot: 5, ring: r, have: 7}).encode())
	f.Add((&message{kind: kindAck, grants: r, slots: ring.Set{{First: 1, Last: 4}, {First: 9, Last: 9}}}).encode())
	f.Add((&message{kind: kindDeny, reason: refusedFull}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b, testSize)
		if err != nil {
			return
		}
		again, err := decodeMessage(m.encode(), testSize)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v became %+v: %v", m, again, err)
		}
	})
}

// peerNet is a Net with live peers that keeps what is sent.
type peerNet struct {
	peers []ring.Owner
	sent  [][]byte
}

func (n *peerNet) Send(_ ring.Owner, msg []byte) error { n.sent = append(n.sent, msg); return nil }
func (n *peerNet) Broadcast([]byte)                    {}
func (n *peerNet) Peers() []Peer {
	var out []Peer
	for _, o := range n.peers {
		out = append(out, Peer{Owner: o, Alive: true})
	}
	return out
}

// Whatever a peer sends, the allocator stays in one piece: what it holds in memory is what it has stored, and every
// message that it sends can be read.
func FuzzHandleMessage(f *testing.F) {
	seed, err := ring.Seed(testSize, []ring.Owner{1})
	if err != nil {
		f.Fatal(err)
	}
	given := seed.Clone()
	if err := given.Grant(1, 2, ring.Interval{First: 32, Last: 63}); err != nil {
		f.Fatal(err)
	}
	all := ring.Set{{First: 0, Last: testSize - 1}}
	for _, m := range []*message{
		{kind: kindRequest, ring: seed, boot: 1, urgent: true},
		{kind: kindRequest, ring: seed, boot: 1, exact: true, slot: 9},
		{kind: kindRequest, ring: seed, boot: 1, last: true},
		{kind: kindDeny, reason: refusedFull, ring: given},
		{kind: kindConfirm, grants: given.Only(all)},
		{kind: kindAck, grants: given, slots: all},
		{kind: kindNews, ring: given},
		{kind: kindGrant, ring: given, grants: given},
		{kind: kindReceived, grants: given},
	} {
		f.Add(m.encode(), m.encode())
	}
	f.Fuzz(func(t *testing.T, b1, b2 []byte) {
		l := newLone(t, "10.32.0.0/26")
		net := &peerNet{peers: []ring.Owner{2, 3}}
		l.cfg.Net = net
		l.restart()
		l.must("w")
		for from, b := range [][]byte{b1, b2, b1} {
			l.HandleMessage(ring.Owner(2+from%2), slices.Clone(b))
		}
		for _, b := range net.sent {
			if _, err := decodeMessage(b, testSize); err != nil {
				t.Fatalf("sent %x: %v", b, err)
			}
		}
		stored, err := l.store.ledger(1)
		if err != nil || !stored.ring.Equal(l.ledger.ring) || !slices.Equal(stored.effective, l.ledger.effective) || l.store.broken != nil {
			t.Fatalf("stored %+v, in memory %+v, %v, %v", stored, l.ledger, err, l.store.broken)
		}
		if len(l.ledger.effective.Subtract(l.ledger.ring.OwnedBy(1))) > 0 {
			t.Fatalf("%v is effective of %v", l.ledger.effective, l.ledger.ring.OwnedBy(1))
		}
		l.restart()
	})
}

func TestLedgerRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRing(t, "ring")
		l := &ledger{self: 4, ring: r, adopted: ring.Owner(rapid.Uint64().Draw(t, "adopted"))}
		l.effective = r.Where(func(x ring.Register) bool { return x.Owner == 4 && x.From == 0 }).Intersect(drawSet(t, testSize, "effective"))
		for range rapid.IntRange(0, 3).Draw(t, "outgoing") {
			o := &outgoing{to: ring.Owner(rapid.IntRange(1, 9).Draw(t, "to")), grants: r.Only(drawSet(t, testSize, "grants")), handed: rapid.Bool().Draw(t, "handed")}
			if len(o.grants.Known()) > 0 {
				l.outgoing = append(l.outgoing, o)
			}
		}
		got := &ledger{self: 4, ring: r}
		if err := got.decode(l.encode()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.encode(), l.encode()) {
			t.Fatalf("%+v became %+v", l, got)
		}
	})
}

func FuzzDecodeLedger(f *testing.F) {
	seed, err := ring.Seed(testSize, []ring.Owner{1})
	if err != nil {
		f.Fatal(err)
	}
	l := &ledger{self: 1, ring: seed, effective: seed.OwnedBy(1)}
	f.Add(l.encode())
	if _, err := l.grant(2, ring.Set{{First: 8, Last: 15}}); err != nil {
		f.Fatal(err)
	}
	f.Add(l.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		got := &ledger{self: 1, ring: l.ring}
		if got.decode(b) != nil {
			return
		}
		if len(got.effective.Subtract(got.ring.OwnedBy(1))) > 0 {
			t.Fatal("what is another's is effective")
		}
		again := &ledger{self: 1, ring: l.ring}
		if err := again.decode(got.encode()); err != nil || !bytes.Equal(again.encode(), got.encode()) {
			t.Fatalf("%+v is not read back: %v", got, err)
		}
	})
}

// The rules about who speaks for a slot, one by one.
func TestLedgerRules(t *testing.T) {
	seed, err := ring.Seed(testSize, []ring.Owner{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	node := func(id ring.Owner) *ledger { return &ledger{self: id, ring: seed, effective: seed.OwnedBy(id)} }
	all := func(ring.Owner) bool { return true }
	donor, other, heir := node(1), node(2), node(4)
	blocks := ring.Set{{First: 8, Last: 15}}

	o, err := donor.grant(4, blocks)
	if err != nil {
		t.Fatal(err)
	}
	if len(donor.effective.Intersect(blocks)) > 0 || len(blocks.Subtract(donor.spoken())) > 0 {
		t.Error("a donor must not use what it has granted, and must speak for it")
	}
	if _, err := donor.grant(3, blocks); err == nil {
		t.Error("what was granted was granted again")
	}
	if len(donor.ripe(all)) > 0 {
		t.Error("handed over without a majority")
	}

	// The heir hears of it from somebody else: that gives it nothing.
	if _, _, err := heir.merge(o.grants); err != nil {
		t.Fatal(err)
	}
	if len(heir.effective) > 0 || len(heir.spoken()) > 0 || heir.announced().Len() != 8 {
		t.Error("announced slots are in use")
	}

	if _, _, err := other.merge(o.grants); err != nil {
		t.Fatal(err)
	}
	donor.acknowledge(o.grants.Only(ring.Set{{First: 8, Last: 11}}), other.spoken(), 0)
	if len(donor.ripe(all)) > 0 {
		t.Error("half a grant was acknowledged and the whole handed over")
	}
	donor.acknowledge(o.grants, other.spoken(), 0)
	if len(donor.ripe(func(id ring.Owner) bool { return id != 4 })) > 0 {
		t.Error("handed over to a node that does not answer")
	}
	donor.received(4, o.grants)
	if len(donor.outgoing) != 1 {
		t.Error("a grant that was not handed over was dropped")
	}
	handed := donor.handOver(all)
	if len(handed) != 1 || len(donor.spoken().Intersect(blocks)) > 0 || len(donor.ripe(all)) > 0 {
		t.Error("the donor speaks for what it has handed over")
	}
	if news, err := heir.receive(1, o.grants); err != nil || news.Len() != 8 || len(blocks.Subtract(heir.spoken())) > 0 {
		t.Error("the recipient does not speak for what it has")
	}
	if news, err := heir.receive(1, o.grants); err != nil || len(news) > 0 {
		t.Error("received twice")
	}

	// An old grant that turns up after the slots have gone on does nothing.
	on, err := heir.grant(3, blocks)
	if err != nil {
		t.Fatal(err)
	}
	if news, err := heir.receive(1, o.grants); err != nil || len(news) > 0 || len(heir.effective) > 0 {
		t.Error("an old grant brought slots back")
	}
	// And that they have gone on shows the first donor that they had arrived.
	if _, _, err := donor.merge(on.grants); err != nil {
		t.Fatal(err)
	}
	if len(donor.outgoing) != 0 {
		t.Error("the grant is still outgoing")
	}
}

func TestMessageKindsAreFixed(t *testing.T) {
	// These numbers are on the wire.
	got := fmt.Sprint(kindRequest, kindDeny, kindConfirm, kindAck, kindNews, kindGrant, kindReceived, kindVote, kindVoted, kindSurvey, kindSurveyed)
	if got != "1 2 3 4 5 6 7 8 9 10 11" {
		t.Errorf("kinds %s", got)
	}
}

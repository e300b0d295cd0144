// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func requests() []Message {
	return []Message{
		{Version: version, Session: 7, Secret: Secret{1}, From: netip.MustParseAddr("10.32.0.1"), Params: Params{}.Defaults()},
		{Version: version, Session: 7, Secret: Secret{1}, From: netip.MustParseAddr("fd00::1"), Params: Params{Time: -1}},
		{Version: version, Session: 7, Answer: true, Code: Busy, BusyWith: "n3", BusyFor: time.Second},
		{Version: version, Session: 7, Answer: true, Code: Invalid, Text: "no"},
		{
			Version: version, Session: 7, Answer: true,
			TCP: netip.MustParseAddrPort("10.32.0.1:4000"), UDP: netip.MustParseAddrPort("10.32.0.1:4001"),
		},
	}
}

func TestMessages(t *testing.T) {
	for _, m := range requests() {
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeMessage(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", b, got, err, m)
		}
	}
}

func TestMessagesThatAreNone(t *testing.T) {
	for name, b := range map[string]string{
		"empty":             "",
		"no JSON":           "bench!",
		"no secret":         `{"version":1,"session":1,"from":"10.0.0.1"}`,
		"a short secret":    `{"version":1,"session":1,"from":"10.0.0.1","secret":"ab"}`,
		"no address":        `{"version":1,"session":1,"secret":"` + strings.Repeat("ab", 32) + `"}`,
		"a zone":            `{"version":1,"session":1,"from":"fe80::1%eth0","secret":"` + strings.Repeat("ab", 32) + `"}`,
		"no ports":          `{"version":1,"session":1,"answer":true}`,
		"port 0":            `{"version":1,"session":1,"answer":true,"tcp":"10.0.0.1:0","udp":"10.0.0.1:1"}`,
		"two hosts":         `{"version":1,"session":1,"answer":true,"tcp":"10.0.0.1:1","udp":"10.0.0.2:1"}`,
		"too long":          `{"version":1,"session":1,"answer":true,"code":"busy","text":"` + strings.Repeat("x", maxRendezvous) + `"}`,
		"a negative number": `{"version":1,"session":-1,"answer":true,"code":"busy"}`,
	} {
		if m, err := DecodeMessage([]byte(b)); err == nil {
			t.Errorf("%s: decoded as %+v", name, m)
		}
	}
}

// A later version says at least whose request could not be understood.
func TestLaterVersion(t *testing.T) {
	m, err := DecodeMessage([]byte(`{"version":2,"session":9,"secret":{"of":"another kind"}}`))
	want := "version 2 of measurements is not known here, but 1; run the same version of weft on both nodes"
	if err == nil || err.Error() != want || m != (Message{Version: 2, Session: 9}) {
		t.Errorf("got  %+v, %v\nwant %s", m, err, want)
	}
}

func TestTextsAreFitForATerminal(t *testing.T) {
	b, err := Message{Session: 1, Answer: true, Code: Failed, Text: "\x1b[2Jé" + strings.Repeat("y", 2*maxText)}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := DecodeMessage(b)
	if err != nil || !strings.HasPrefix(m.Text, "?[2J?yyy") || len(m.Text) != maxText {
		t.Errorf("%q, %v", m.Text, err)
	}
}

func TestGreetings(t *testing.T) {
	secret := Secret{1, 2, 3}
	g := greeting{purpose: forStream, phase: 4, stream: 31}
	b := g.encode(secret)
	if got, ok := decodeGreeting(b, secret); !ok || got != g || len(b) != greetingSize {
		t.Errorf("%+v, %v of %d bytes", got, ok, len(b))
	}
	for i := range b { // phase and stream may be anything here
		if i == len(magic)+2 || i == len(magic)+3 {
			continue
		}
		c := bytes.Clone(b)
		c[i] ^= 0x80
		if _, ok := decodeGreeting(c, secret); ok {
			t.Errorf("byte %d may be anything", i)
		}
	}
}

func TestNotes(t *testing.T) {
	n := note{Type: noteDone, Phase: 3, Usage: Usage{5, 4}, Bytes: 1 << 40, Packets: 7, Elapsed: time.Second, Capped: true}
	b, err := encodeNote(n)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readNote(bytes.NewReader(b)); err != nil || got != n {
		t.Errorf("%+v, %v", got, err)
	}
	longest := note{Type: noteFailed, Text: strings.Repeat("\x01", 4*maxText)}
	if b, err = encodeNote(longest); err != nil || len(b) > maxNote {
		t.Errorf("a note of %d bytes, %v", len(b), err)
	}
	for _, bad := range []string{"\xff\xff", "\x00\x02{", "\x00\x02{}"[:3], "\x00\x0c{\"bytes\":-1}", "\x00\x01x"} {
		if n, err := readNote(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, n)
		}
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, m := range requests() {
		b, err := m.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"version":2,"session":9,"secret":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMessage(b)
		if len(m.Text) > maxText || len(m.BusyWith) > maxText || m.BusyFor < 0 {
			t.Fatalf("%+v", m)
		}
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeMessage(again); err != nil || !reflect.DeepEqual(back, m) {
			t.Fatalf("%+v became %+v, %v", m, back, err)
		}
	})
}

func FuzzReadNote(f *testing.F) {
	for _, n := range []note{{Type: noteHello, Port: 5}, {Type: noteDone, Phase: 3, Bytes: 5, Usage: Usage{1, 2}}, {Type: noteFailed, Text: "why"}} {
		b, err := encodeNote(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := readNote(bytes.NewReader(b))
		if err == nil && (n.Bytes < 0 || n.Packets < 0 || n.Elapsed < 0 || n.Phase < 0 || len(n.Text) > maxText) {
			t.Fatalf("%+v", n)
		}
	})
}

func FuzzDecodeGreeting(f *testing.F) {
	secret := Secret{9}
	f.Add(greeting{purpose: forStream, phase: 1, stream: 2}.encode(secret))
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, ok := decodeGreeting(b, secret); ok && !bytes.Equal(g.encode(secret), b) {
			t.Fatalf("%x became %+v", b, g)
		}
	})
}

func FuzzDecodeDatagram(f *testing.F) {
	tag := Secret{9}.tag()
	var b [PacketSize]byte
	encodeDatagram(&b, tag, datagramLoad, 3, 77)
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, _, number, ok := decodeDatagram(b, tag)
		if ok && (len(b) != PacketSize || kind > datagramLoad || number < 0) {
			t.Fatalf("kind %d, number %d of %x", kind, number, b)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
)

func must(t testing.TB) func(b []byte, err error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// Nobody without the key gets beyond the hello, in either role, whatever they say.
func FuzzHello(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(append(head(), make([]byte, 200)...))
	f.Add(append([]byte("WEFT\x02\x00\x00\x00"), make([]byte, 200)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, _, err := receive(&script{Reader: bytes.NewReader(b)}, [32]byte{1}, time.Second); err == nil || s != nil {
			t.Fatal("let in")
		}
		if s, _, err := greet(&script{Reader: bytes.NewReader(b)}, [32]byte{1}, testIntroduction(1), time.Second); err == nil || s != nil {
			t.Fatal("believed")
		}
	})
}

func FuzzIntroduction(f *testing.F) {
	who := testIdentity(5)
	at := [sha256.Size]byte{7}
	f.Add(must(f)(testIntroduction(5).encode(diallerLabel, at))[signedHead:])
	f.Add(must(f)(introduction{identity: who, id: who.ID(), purpose: purposeProbe}.encode(diallerLabel, at))[signedHead:])
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := decodeIntroduction(who.sign(diallerLabel, at[:], b), diallerLabel, at)
		if err != nil {
			return
		}
		i.identity = who
		again, err := decodeIntroduction(must(t)(i.encode(diallerLabel, at)), diallerLabel, at)
		if err != nil || again.id != i.id || again.advertise != i.advertise || again.universe.ID != i.universe.ID || again.name != i.name {
			t.Fatalf("%+v became %+v, %v", i, again, err)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(must(f)(fullRecord().MarshalBinary()))
	f.Add(must(f)(Record{ID: 1, Name: "n"}.MarshalBinary()))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again Record
		if r.UnmarshalBinary(b) != nil {
			return
		}
		if err := again.UnmarshalBinary(must(t)(r.MarshalBinary())); err != nil || !reflect.DeepEqual(normal(again), normal(r)) {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}

// normal makes empty slices nil.
func normal(r Record) Record {
	if len(r.Suites) == 0 {
		r.Suites = nil
	}
	if len(r.Features) == 0 {
		r.Features = nil
	}
	return r
}

func FuzzRecords(f *testing.F) {
	f.Add(must(f)(encodeRecords([]*storedRecord{makeRecord(f, 1, 2, "b", StateRunning), {raw: []byte{1}}})))
	f.Fuzz(func(t *testing.T, b []byte) {
		rs, _, err := decodeRecords(b, parseRecord)
		if err != nil {
			return
		}
		again, insane, err := decodeRecords(must(t)(encodeRecords(rs)), parseRecord)
		if err != nil || insane != 0 || !reflect.DeepEqual(again, rs) {
			t.Fatalf("%v became %v, %v", rs, again, err)
		}
	})
}

func FuzzWire(f *testing.F) {
	f.Add(memberMeta([16]byte{1}, netip.MustParseAddrPort("[2001:db8::1]:9")))
	f.Add(must(f)(encodeChange([16]byte{1}, "ring", []byte{1, 2})))
	f.Add(must(f)(cbor.Marshal(message{Seq: 1, Channel: "ipam", Payload: []byte{1}})))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, at, ok := parseMeta(b); ok && !bytes.Equal(memberMeta(u, at), b) {
			t.Fatalf("%x is %x %v", b, u, at)
		}
		if c, err := decodeChange(b); err == nil {
			if again, err := decodeChange(must(t)(encodeChange([16]byte(c.Universe), c.State, c.Delta))); err != nil || !reflect.DeepEqual(again, c) {
				t.Fatalf("%+v became %+v, %v", c, again, err)
			}
		}
		if msg, err := decodeMessage(b); err == nil {
			if again, err := decodeMessage(must(t)(cbor.Marshal(msg))); err != nil || again.Seq != msg.Seq || !bytes.Equal(again.Payload, msg.Payload) {
				t.Fatalf("%+v became %+v, %v", msg, again, err)
			}
		}
	})
}

// What the decoders of anti-entropy let through is what they would let through again.
func FuzzSync(f *testing.F) {
	u := make([]byte, 16)
	f.Add(must(f)(cbor.Marshal(digest{Version: digestVersion, Universe: u, Sums: map[string]uint64{"ring": 1}, Members: 2, Alarm: true})))
	f.Add(must(f)(cbor.Marshal(syncOffer{Version: syncVersion, Universe: u, Buckets: make([]byte, 8*buckets), Sums: map[string]uint64{"ring": 1}})))
	f.Add(must(f)(cbor.Marshal(syncAnswer{Version: syncVersion, Differ: []byte{1}, Entries: appendEntry(nil, 1, 2), States: map[string][]byte{"ring": {1}}})))
	f.Add(must(f)(cbor.Marshal(syncRest{Version: syncVersion, Want: make([]byte, idSize), Members: appendEntry(nil, 1, 2)})))
	f.Add(must(f)(cbor.Marshal(syncRecords{Version: syncVersion, Records: []byte{1}})))
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, decodeDigest)
		again(t, b, decodeSyncOffer)
		again(t, b, decodeSyncAnswer)
		again(t, b, decodeSyncRest)
		again(t, b, decodeSyncRecords)
	})
}

// again decodes b and, if it makes sense, what it encodes to, and compares.
func again[T any](t *testing.T, b []byte, decode func([]byte) (T, error)) {
	v, err := decode(b)
	if err != nil {
		return
	}
	c := must(t)(cbor.Marshal(v))
	w, err := decode(c)
	if err != nil || !bytes.Equal(must(t)(cbor.Marshal(w)), c) {
		t.Fatalf("%+v became %+v, %v", v, w, err)
	}
}

// A stream hands out nothing that was not sealed for it, in order, and reads no frame
// beyond its bound.
func FuzzStream(f *testing.F) {
	seal := func(t testing.TB, p []byte) (*stream, []byte) {
		out, err := newStream(&script{}, [32]byte{1}, [32]byte{2}, true)
		if err != nil {
			t.Fatal(err)
		}
		return out, out.seal(nil, p)
	}
	_, good := seal(f, []byte("\x00\x00\x00\x02hi"))
	f.Add(good)
	f.Add(good[:7])
	_, long := seal(f, []byte("\x7f\xff\xff\xffhi"))
	f.Add(long)
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := newStream(&script{Reader: bytes.NewReader(b)}, [32]byte{1}, [32]byte{2}, false)
		if err != nil {
			t.Fatal(err)
		}
		frame, err := in.readFrame(100)
		if err == nil && (string(frame) != "hi" || !bytes.HasPrefix(b, good)) {
			t.Fatalf("read %q", frame)
		}
		if bytes.HasPrefix(b, long) && !errors.Is(err, ErrTooLarge) {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(in); err == nil && len(b) != 0 && !bytes.Equal(b, good) && !bytes.Equal(b, long) {
			t.Fatalf("%x ended well", b)
		}
	})
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"7f02030405060708-0000000000000005", "[2001:db8::1]:9", "n1:5", "[ERR] memberlist: x from=10.0.0.1:5", "[", "[]:", "[0000:]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if id, boot, err := parseMember(s); err == nil && memberName(id, boot) != s {
			t.Fatalf("%q is %v %v", s, id, boot)
		}
		if id, err := parseMemberAddr(s); err == nil && !id.Valid() {
			t.Fatalf("%q is %v", s, id)
		}
		if host, port, err := splitTarget(s, 1); err == nil {
			if _, err := netip.ParseAddr(host); err != nil {
				if h, p, err := splitTarget(host, port); err != nil || h != host || p != port {
					t.Fatalf("%q is %q, which is %q %d, %v", s, host, h, p, err)
				}
			}
		}
		text, _ := parseLine(s)
		classify(text)
		var st NodeState
		if st.UnmarshalText([]byte(s)) == nil && st.String() != s {
			t.Fatal(s)
		}
	})
}

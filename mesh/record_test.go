// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"
)

func fullRecord() Record {
	r := Record{
		ID: testIdentity(1).ID(), Seq: 7, Boot: 9, State: StateStopped, Name: "n1", PublicKey: [32]byte{1, 2, 3},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6783"), netip.MustParseAddrPort("[2001:db8::1]:6783")},
		Suites:    []uint8{1, 0}, Features: []string{"relay"}, MTU: 1400, Build: "v0.1", Universe: [16]byte{4},
		Links:          []NodeID{1, 77},
		Keys:           []uint32{7, 5},
		Hosts:          []netip.Addr{netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")},
		TrustedSubnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")},
	}
	return r
}

func TestRecordRoundTrip(t *testing.T) {
	for _, r := range []Record{fullRecord(), {ID: 1, Name: "x"}} {
		b, err := r.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got Record
		if err := got.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%v\ngot  %+v\nwant %+v", err, got, r)
		}
		for n := range len(b) {
			if err := got.UnmarshalBinary(b[:n]); err == nil {
				t.Errorf("%d of %d bytes were taken", n, len(b))
			}
		}
		if err := got.UnmarshalBinary(append(b, 0)); err == nil {
			t.Error("a byte too many was taken")
		}
	}
	j, err := json.Marshal(fullRecord())
	if err != nil || !strings.Contains(string(j), `"ID":"`+fullRecord().ID.String()+`"`) || !strings.Contains(string(j), `"State":"stopped"`) {
		t.Errorf("%s %v", j, err)
	}
	var back Record
	if err := json.Unmarshal(j, &back); err != nil || !reflect.DeepEqual(back, fullRecord()) {
		t.Errorf("%v: %+v", err, back)
	}
}

// The encoding is on the wire and on disk: it must not change by accident.
func TestRecordEncoding(t *testing.T) {
	b, err := Record{ID: 1, Seq: 2, Boot: 3, Name: "n"}.MarshalBinary()
	if want := "a5010102020303" + "05616e" + "065820" + strings.Repeat("00", 32); err != nil || fmt.Sprintf("%x", b) != want {
		t.Errorf("%x, %v\nwant %s", b, err, want)
	}
}

func TestInsaneRecords(t *testing.T) {
	for name, f := range map[string]func(*Record){
		"no id":           func(r *Record) { r.ID = 0 },
		"top bit":         func(r *Record) { r.ID |= 1 << 63 },
		"state":           func(r *Record) { r.State = 3 },
		"no name":         func(r *Record) { r.Name = "" },
		"long name":       func(r *Record) { r.Name = strings.Repeat("n", 254) },
		"escape in name":  func(r *Record) { r.Name = "\x1b[31m" },
		"not utf-8":       func(r *Record) { r.Name = "\xff" },
		"endpoints":       func(r *Record) { r.Endpoints = make([]netip.AddrPort, 17) },
		"no endpoint":     func(r *Record) { r.Endpoints = []netip.AddrPort{{}} },
		"port 0":          func(r *Record) { r.Endpoints[0] = netip.MustParseAddrPort("192.0.2.1:0") },
		"unspecified":     func(r *Record) { r.Endpoints[0] = netip.MustParseAddrPort("0.0.0.0:1") },
		"multicast":       func(r *Record) { r.Endpoints[0] = netip.MustParseAddrPort("224.0.0.1:1") },
		"broadcast":       func(r *Record) { r.Endpoints[0] = netip.MustParseAddrPort("255.255.255.255:1") },
		"mapped":          func(r *Record) { r.Endpoints[0] = netip.MustParseAddrPort("[::ffff:1.2.3.4]:1") },
		"zone":            func(r *Record) { r.Endpoints[0] = netip.MustParseAddrPort("[fe80::1%eth0]:1") },
		"suites":          func(r *Record) { r.Suites = make([]uint8, 9) },
		"features":        func(r *Record) { r.Features = make([]string, 33) },
		"empty feature":   func(r *Record) { r.Features = []string{""} },
		"long feature":    func(r *Record) { r.Features = []string{strings.Repeat("f", 65)} },
		"tokens":          func(r *Record) { r.Keys = []uint32{1, 2, 3, 4, 5, 6, 7, 8, 9} },
		"token 0":         func(r *Record) { r.Keys = []uint32{1, 0} },
		"links":           func(r *Record) { r.Links = []NodeID{1, 2, 3, 4, 5, 6, 7, 8, 9} },
		"links, order":    func(r *Record) { r.Links = []NodeID{77, 1} },
		"link to itself":  func(r *Record) { r.Links = []NodeID{r.ID} },
		"three hosts":     func(r *Record) { r.Hosts = append(r.Hosts, netip.MustParseAddr("fd00::2")) },
		"two v4 hosts":    func(r *Record) { r.Hosts[1] = netip.MustParseAddr("10.32.0.2") },
		"v6 host first":   func(r *Record) { r.Hosts[0] = netip.MustParseAddr("fd00::2") },
		"no host address": func(r *Record) { r.Hosts = make([]netip.Addr, 1) },
		"mapped host":     func(r *Record) { r.Hosts = []netip.Addr{netip.MustParseAddr("::ffff:1.2.3.4")} },
		"host with zone":  func(r *Record) { r.Hosts = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
		"multicast host":  func(r *Record) { r.Hosts = []netip.Addr{netip.MustParseAddr("ff02::1")} },
		"subnets":         func(r *Record) { r.TrustedSubnets = make([]netip.Prefix, 65) },
		"no subnet":       func(r *Record) { r.TrustedSubnets = make([]netip.Prefix, 1) },
		"host bits":       func(r *Record) { r.TrustedSubnets[0] = netip.MustParsePrefix("10.0.0.1/8") },
		"mtu":             func(r *Record) { r.MTU = 575 },
		"build":           func(r *Record) { r.Build = strings.Repeat("b", 129) },
	} {
		r := fullRecord()
		f(&r)
		if _, err := r.MarshalBinary(); err == nil || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A record of a newer release, with fields that this one does not know, is stored and
// passed on byte by byte.
func TestNewerRecord(t *testing.T) {
	b, err := fullRecord().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var fields map[int]any
	if err := cbor.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	fields[40] = "something new"
	newer, err := cbor.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseRecord(testIdentity(1).sign(recordLabel, nil, newer))
	if err != nil || !s.authentic() || !reflect.DeepEqual(s.Record, fullRecord()) {
		t.Fatalf("%+v, %v", s, err)
	}
	out, err := encodeRecords([]*storedRecord{s})
	if err != nil {
		t.Fatal(err)
	}
	rs, insane, err := decodeRecords(out, parseRecord)
	if err != nil || insane != 0 || !bytes.Equal(rs[0].raw[signedHead:], newer) {
		t.Errorf("%d, %v", insane, err)
	}
}

func makeRecord(t testing.TB, id NodeID, seq uint64, build string, state NodeState) *storedRecord {
	t.Helper()
	r := Record{ID: id, Seq: seq, Name: "n", Build: build, State: state}
	raw, err := r.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return &storedRecord{Record: r, raw: raw} // who keeps it need not know who signed it
}

// However a set of records is cut, ordered and repeated, all end with the same.
func TestRecordsConverge(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var all []*storedRecord
		for range rapid.IntRange(1, 12).Draw(rt, "n") {
			all = append(all, makeRecord(t, NodeID(rapid.IntRange(1, 3).Draw(rt, "id")), uint64(rapid.IntRange(1, 3).Draw(rt, "seq")),
				rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "build"), StateRunning))
		}
		want := map[NodeID]*storedRecord{} // the slow, obvious way
		for _, r := range all {
			if w, ok := want[r.ID]; !ok || r.Seq > w.Seq || r.Seq == w.Seq && bytes.Compare(r.raw, w.raw) > 0 {
				want[r.ID] = r
			}
		}
		for range 3 {
			var rs recordSet
			for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(all)-1), 0, 20).Draw(rt, "order") {
				rs.put(all[i])
			}
			for _, i := range rand.Perm(len(all)) {
				rs.put(all[i])
			}
			for _, r := range all {
				if rs.put(r) {
					rt.Fatal("putting one again changed something")
				}
			}
			if !reflect.DeepEqual(rs.byID, want) {
				rt.Fatalf("got %v, want %v", rs.byID, want)
			}
		}
	})
}

func TestRecordsAreBounded(t *testing.T) {
	var rs recordSet
	for i := range maxRecords {
		state := StateRunning
		if i%100 == 0 {
			state = StateLeft
		}
		if !rs.put(makeRecord(t, NodeID(i+1), 1, "", state)) {
			t.Fatal(i)
		}
	}
	next := NodeID(maxRecords + 1)
	if rs.put(makeRecord(t, next, 1, "", StateLeft)) {
		t.Error("a node that left pushed another out")
	}
	room := (maxRecords + 99) / 100
	for i := range room + 5 {
		if got := rs.put(makeRecord(t, next+NodeID(i), 1, "", StateRunning)); got != (i < room) {
			t.Errorf("node %d beyond the bound: %v", i, got)
		}
	}
	if len(rs.byID) != maxRecords {
		t.Errorf("%d records", len(rs.byID))
	}
	if !rs.put(makeRecord(t, 2, 2, "", StateRunning)) {
		t.Error("a full set takes no update")
	}
}

func TestDecodeRecordsBounds(t *testing.T) {
	who := testIdentity(1)
	ok, err := who.signRecord(Record{ID: who.ID(), Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	bad := &storedRecord{raw: []byte{1, 2, 3}}
	b, err := encodeRecords([]*storedRecord{bad, ok, bad})
	if err != nil {
		t.Fatal(err)
	}
	rs, insane, err := decodeRecords(b, parseRecord)
	if err != nil || len(rs) != 1 || insane != 2 {
		t.Errorf("%d records, %d insane, %v", len(rs), insane, err)
	}
	many, err := encodeRecords(slices.Repeat([]*storedRecord{{}}, 2*maxRecords+1))
	if err != nil {
		t.Fatal(err)
	}
	other, err := cbor.Marshal(wireRecords{Version: 2})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"too many": many, "other version": other, "nothing": nil, "junk": {0xff, 0x00}} {
		if _, _, err := decodeRecords(b, parseRecord); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestNodeID(t *testing.T) {
	const id NodeID = 0x7f02030405060708
	if id.String() != "7f02030405060708" {
		t.Error(id)
	}
	if got, err := ParseNodeID("7f02030405060708"); err != nil || got != id {
		t.Error(got, err)
	}
	for _, s := range []string{"", "7f0203040506070", "7F02030405060708", "ff02030405060708", "0000000000000000", "7f0203040506070g", "+f02030405060708"} {
		if _, err := ParseNodeID(s); err == nil {
			t.Errorf("%q is an id", s)
		}
	}
	for _, s := range []string{"", "7f02030405060708", memberName(id, 5) + "0", "-0000000000000005", "7f02030405060708-5"} {
		if _, _, err := parseMember(s); err == nil {
			t.Errorf("%q is a member", s)
		}
	}
	if got, boot, err := parseMember(memberName(id, 5)); err != nil || got != id || boot != 5 {
		t.Error(got, boot, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"testing"

	"pgregory.net/rapid"
)

// roundTrip checks all that is promised of the binary form of n.
func roundTrip(t *rapid.T, n *naive) {
	b := n.ring(t).Encode()
	if len(b) != n.encodedSize() {
		t.Fatalf("form of %d bytes, the oracle says %d", len(b), n.encodedSize())
	}
	if got := n.ring(t).AppendEncode([]byte("before")); string(got) != "before"+string(b) {
		t.Fatal("appended to others, the form is another one")
	}
	r, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	check(t, r, n)
	if !r.Equal(n.ring(t)) || !bytes.Equal(r.Encode(), b) {
		t.Fatal("equal rings have different forms")
	}
	if _, err := Decode(b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")]); !errors.Is(err, ErrMalformed) {
		t.Fatalf("cut off: error %v", err)
	}
	if _, err := Decode(append(b, 0)); !errors.Is(err, ErrMalformed) {
		t.Fatalf("a byte too many: error %v", err)
	}
}

// encodedSize counts the bytes of the form as its description does.
func (n *naive) encodedSize() int {
	number := func(v uint64) int { return len(binary.AppendUvarint(nil, v)) }
	entries, ballots := append([]Retirement(nil), n.log...), []Ballot{}
	size := 1 + number(uint64(len(n.slots))) + number(uint64(len(n.log))) + 1
	if n.votes != (Votes{}) {
		ballots = append(ballots, n.votes.Promised)
	}
	if n.votes.Accepted != (Ballot{}) {
		ballots, entries = append(ballots, n.votes.Accepted), append(entries, n.votes.Value)
	}
	index := make(map[Owner]uint64)
	for o := range Owner(256) { // ascending
		named := false
		for _, x := range n.slots {
			named = named || x.Owner == o || x.From == o
		}
		for _, e := range entries {
			named = named || e.Dead == o || e.Heir == o || e.By == o
		}
		for _, b := range ballots {
			named = named || b.Node == o
		}
		if named && o != 0 {
			index[o] = uint64(len(index))
		}
	}
	size += number(uint64(len(index))) + 8*len(index)
	runs, gap := 0, 0
	for i := 0; i < len(n.slots); {
		end := i + 1
		for end < len(n.slots) && n.slots[end] == n.slots[i] {
			end++
		}
		if x := n.slots[i]; x == (Register{}) {
			gap = end - i
		} else {
			runs++
			size += number(8*index[x.Owner]) + number(uint64(end-i-1)) + number(uint64(x.Version.Count))
			if gap > 0 {
				size += number(uint64(gap))
			}
			if x.From != 0 {
				size += number(index[x.From])
			}
			if x.Version.Epoch > 0 {
				size += number(uint64(x.Version.Epoch))
			}
			gap = 0
		}
		i = end
	}
	size += number(uint64(runs))
	for _, e := range entries {
		size += number(2*index[e.Dead]) + number(index[e.Heir]) + number(index[e.By]) + number(uint64(e.At))
	}
	for _, b := range ballots {
		size += number(uint64(b.Count)) + number(index[b.Node])
	}
	return size
}

func TestEncodeArbitraryRings(t *testing.T) {
	often(t, 5, func(t *rapid.T) {
		n := anyNaive(t, rapid.IntRange(2, 300).Draw(t, "size"), "ring")
		for i := range rapid.IntRange(0, 2).Draw(t, "large numbers") {
			n.slots[i] = Register{Version{rapid.Uint32().Draw(t, "epoch"), rapid.Uint32Range(1, math.MaxUint32).Draw(t, "count")}, 250, 0}
		}
		roundTrip(t, n)
	})
}

func TestEncodeReachableRings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.run(t)
		roundTrip(t, rapid.SampledFrom(h.oracle).Draw(t, "which"))
	})
}

// The form on the wire is a promise to other builds: these bytes must stay readable.
func TestEncodeForm(t *testing.T) {
	seed, err := Seed(1<<20, []Owner{0x1122334455667788, 0x0102030405060708})
	if err != nil {
		t.Fatal(err)
	}
	log := []Retirement{{Dead: 1, Heir: 2, By: 3, At: 300}, {Dead: 4, Heir: 2, By: 2, At: 301, Forced: true}}
	owners := func(n byte) []byte {
		b := []byte{n}
		for o := range n {
			b = append(b, o+1, 0, 0, 0, 0, 0, 0, 0)
		}
		return b
	}
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct {
		r    *Ring
		want []byte
	}{
		"nothing": {New(300), []byte{2, 0xac, 2, 0, 0, 0, 0}},
		"seed": {seed, cat([]byte{2, 0x80, 0x80, 0x40},
			[]byte{2, 8, 7, 6, 5, 4, 3, 2, 1, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11},
			[]byte{2, 8, 0xff, 0xff, 0x1f, 1, 0, 0xff, 0xff, 0x1f, 1}, []byte{0, 0})},
		"delta": {
			slots{9: {Version{3, 4}, 1, 2}, 10: {Version{3, 4}, 1, 2}, 11: {}}.ring(),
			cat([]byte{2, 12}, owners(2), []byte{1, 7, 9, 1, 3, 1, 4}, []byte{0, 0}),
		},
		"log": {
			(&naive{slots{{}}, log, Votes{}}).ring(t),
			cat([]byte{2, 1}, owners(4), []byte{0}, []byte{2, 0, 1, 2, 0xac, 2, 7, 1, 1, 0xad, 2}, []byte{0}),
		},
		"promise": {
			(&naive{slots{{}}, nil, Votes{Promised: Ballot{7, 1}}}).ring(t),
			cat([]byte{2, 1}, owners(1), []byte{0, 0}, []byte{1, 7, 0}),
		},
		"value": {
			(&naive{slots{{}}, nil, Votes{Ballot{7, 1}, Ballot{6, 2}, log[1]}}).ring(t),
			append([]byte{2, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0}, 0, 0, 2, 7, 0, 6, 1, 5, 1, 1, 0xad, 2),
		},
	} {
		if got := c.r.Encode(); !bytes.Equal(got, c.want) {
			t.Errorf("%s: % x, want % x", name, got, c.want)
		}
		if r, err := Decode(c.want); err != nil || !r.Equal(c.r) {
			t.Errorf("%s: decoded %v, error %v", name, r, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	ring := func(size byte, owners int, rest ...byte) []byte {
		b := []byte{2, size, byte(owners)}
		for o := range owners {
			b = append(b, byte(o+1), 0, 0, 0, 0, 0, 0, 0)
		}
		return append(b, rest...)
	}
	for name, b := range map[string][]byte{ // what is spoilt below
		"a run":       ring(8, 1, 1, 0, 7, 1, 0, 0),
		"a gap":       ring(8, 1, 1, 4, 1, 6, 1, 0, 0),
		"two runs":    ring(8, 1, 2, 0, 3, 1, 0, 3, 2, 0, 0),
		"a grant":     ring(8, 2, 1, 2, 7, 1, 1, 0, 0),
		"a log":       ring(8, 3, 0, 2, 0, 1, 1, 0, 2, 2, 1, 0, 0),
		"a promise":   ring(8, 1, 0, 0, 1, 1, 0),
		"an accepted": ring(8, 2, 0, 0, 2, 1, 1, 1, 1, 0, 1, 0, 0),
	} {
		if r, err := Decode(b); err != nil || !bytes.Equal(r.Encode(), b) {
			t.Errorf("%s: ring %v, error %v", name, r, err)
		}
	}
	for name, b := range map[string][]byte{
		"nothing":                nil,
		"the format alone":       {2},
		"no slots":               ring(0, 0, 0, 0, 0),
		"size over 32 bits":      {2, 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0, 0, 0},
		"endless number":         {2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"number too long":        {2, 0x88, 0, 0, 0, 0, 0},
		"more owners than bytes": {2, 8, 0xff, 0xff, 3},
		"more runs than bytes":   {2, 8, 0, 0xff, 0xff, 3},
		"longer log than bytes":  ring(8, 2, 0, 0xff, 0xff, 3),
		"owner nobody":           {2, 8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"owner twice":            {2, 8, 2, 5, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 1, 8, 3, 2, 0, 0},
		"owner not named":        ring(8, 2, 1, 0, 7, 1, 0, 0),
		"owner out of the table": ring(8, 1, 1, 8, 7, 1, 0, 0),
		"from out of the table":  ring(8, 1, 1, 2, 7, 1, 1, 0, 0),
		"from the owner":         ring(8, 1, 1, 2, 7, 0, 1, 0, 0),
		"run behind the end":     ring(8, 1, 1, 0, 8, 1, 0, 0),
		"gap behind the end":     ring(8, 1, 1, 4, 8, 0, 1, 0, 0),
		"2nd run behind the end": ring(8, 1, 2, 0, 3, 1, 0, 4, 2, 0, 0),
		"2nd gap behind the end": ring(8, 1, 2, 0, 3, 1, 4, 2, 2, 2, 0, 0),
		"gap of nothing":         ring(8, 1, 1, 4, 0, 7, 1, 0, 0),
		"epoch 0":                ring(8, 1, 1, 1, 7, 0, 1, 0, 0),
		"no version":             ring(8, 1, 1, 0, 7, 0, 0, 0),
		"count over 32 bits":     ring(8, 1, 1, 0, 7, 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0),
		"two runs for one":       ring(8, 1, 2, 0, 3, 1, 0, 3, 1, 0, 0),
		"run cut off":            ring(8, 1, 1, 0, 7),
		"no log":                 ring(8, 1, 1, 0, 7, 1),
		"retired twice":          ring(8, 2, 0, 2, 0, 1, 1, 0, 0, 1, 1, 0, 0),
		"heir is retired":        ring(8, 2, 0, 2, 0, 1, 1, 0, 2, 0, 1, 0, 0),
		"heir of itself":         ring(8, 2, 0, 1, 0, 0, 1, 0, 0),
		"log out of the table":   ring(8, 2, 0, 1, 0, 1, 2, 0, 0),
		"time over 63 bits":      ring(8, 2, 0, 1, 0, 1, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0),
		"no votes":               ring(8, 2, 0, 1, 0, 1, 1, 0),
		"votes of a third kind":  ring(8, 1, 0, 0, 3, 1, 0),
		"accepted, not promised": ring(8, 2, 0, 0, 2, 1, 0, 1, 1, 0, 1, 0, 0),
		"value retired already":  ring(8, 2, 0, 1, 0, 1, 1, 0, 2, 1, 0, 1, 0, 0, 1, 0, 0),
		"votes cut off":          ring(8, 1, 0, 0, 1, 1),
	} {
		if r, err := Decode(b); !errors.Is(err, ErrMalformed) || err.Error() != fmt.Sprintf("ring: malformed ring of %d bytes", len(b)) {
			t.Errorf("%s: ring %v, error %v", name, r, err)
		}
	}
	for b, want := range map[byte]string{
		1: "ring: unknown ring format 1, this build knows 2; upgrade the node that wrote it",
		3: "ring: unknown ring format 3, this build knows 2; upgrade this node",
	} {
		if _, err := Decode([]byte{b, 1, 2, 3}); !errors.Is(err, ErrFormat) || err.Error() != want {
			t.Errorf("format %d: error %v", b, err)
		}
	}
}

func TestDecodeTheLastSlotThereCanBe(t *testing.T) {
	for _, r := range []*Ring{
		{size: math.MaxUint32, runs: []run{{0, Register{Version{1, 1}, 5, 6}}}},
		{size: math.MaxUint32, runs: []run{{0, Register{}}, {math.MaxUint32 - 1, Register{Version{1, 1}, 5, 6}}}},
	} {
		o, err := Decode(r.Encode())
		if err != nil || !o.Equal(r) || o.At(math.MaxUint32-1).Owner != 5 {
			t.Errorf("%v became %v, error %v", r, o, err)
		}
	}
}

// Whatever is decoded, the memory for it is in proportion to the bytes: numbers in it do not make it more.
func TestDecodeTakesLittleMemory(t *testing.T) {
	huge := binary.AppendUvarint(nil, 1<<32-1)
	claims := func(part ...[]byte) []byte { return bytes.Join(part, nil) }
	many := binary.AppendUvarint(nil, 1<<20)
	owner := []byte{1, 5, 0, 0, 0, 0, 0, 0, 0}
	for name, b := range map[string][]byte{
		"owners":     claims([]byte{2}, huge, many, make([]byte, 10)),
		"runs":       claims([]byte{2}, huge, []byte{0}, many, make([]byte, 10)),
		"log":        claims([]byte{2}, huge, owner, []byte{0}, many, make([]byte, 10)),
		"all huge":   claims([]byte{2}, huge, huge, huge, huge, make([]byte, 10)),
		"long run":   claims([]byte{2}, huge, owner, []byte{1, 0}, binary.AppendUvarint(nil, 1<<32-2), []byte{1, 0, 0}),
		"real":       large(100, 1).Encode(),
		"with a log": churned(1000).Encode(),
		"many runs": func() []byte {
			s := make(slots, 20000)
			for i := range s {
				s[i] = Register{Version{0, 1 + uint32(i%2)}, 5, 0}
				if i%4 == 3 {
					s[i] = Register{}
				}
			}
			return s.ring().Encode()
		}(),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = Decode(b)
		runtime.ReadMemStats(&after)
		if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(4096+64*len(b)); got > limit {
			t.Errorf("%s: %d bytes allocated for %d bytes, more than %d", name, got, len(b), limit)
		}
	}
}

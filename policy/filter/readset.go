// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// A reader reads the elements of one set.
type reader struct {
	kind  setKind
	have  *contents
	into  map[string]element
	edges []edge
}

// An edge is where an interval begins or ends.
type edge struct {
	key  []byte
	data uint32
	end  bool
}

// message reads what is in a message; false if it makes no sense. Of b nothing is kept.
func (r *reader) message(b []byte) bool {
	return len(b) >= 4 && attributes(b[4:], func(kind uint16, list []byte) bool {
		return kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS || attributes(list, func(_ uint16, one []byte) bool {
			return r.element(one)
		})
	})
}

func (r *reader) element(b []byte) bool {
	var e edge
	var chain, comment string
	var packets uint64
	odd := false
	ok := attributes(b, func(kind uint16, v []byte) bool {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			return attributes(v, func(_ uint16, v []byte) bool { e.key = bytes.Clone(v); return true })
		case unix.NFTA_SET_ELEM_DATA:
			return attributes(v, func(kind uint16, v []byte) bool {
				switch kind {
				case unix.NFTA_DATA_VALUE:
					if len(v) == 4 {
						e.data = binary.NativeEndian.Uint32(v)
					}
				case unix.NFTA_DATA_VERDICT:
					chain = jumpTo(v)
				}
				return true
			})
		case unix.NFTA_SET_ELEM_FLAGS:
			flags := word(v)
			e.end = flags&unix.NFT_SET_ELEM_INTERVAL_END != 0
			odd = odd || flags&^unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_USERDATA:
			if len(v) > 2 && v[0] == 0 {
				comment = stringOf(v[2:])
			}
		case unix.NFTA_SET_ELEM_EXPR:
			return readCounter(v, &packets)
		case unix.NFTA_SET_ELEM_TIMEOUT, unix.NFTA_SET_ELEM_EXPIRATION, nftaElementKeyEnd:
			odd = true
		}
		return true
	})
	switch {
	case !ok || odd || len(e.key) != int(r.kind.keyLen):
		r.have.broken[r.kind.name] = true
	case r.kind.dataType == typeVerdict:
		d, number, ok := leafNumber(chain)
		if !ok || d.name != directionOf(r.kind.name) {
			r.have.broken[r.kind.name] = true
		}
		r.into[string(e.key)] = element{key: e.key, data: number}
	case r.kind.flags&unix.NFT_SET_INTERVAL != 0:
		r.edges = append(r.edges, e)
	default:
		r.into[string(e.key)] = element{key: e.key, data: e.data, comment: comment}
	}
	if r.kind.name == setCounts && len(e.key) == 4 {
		n := binary.NativeEndian.Uint32(e.key)
		r.have.comments[n], r.have.counts[n] = comment, packets
		r.have.verdicts = max(r.have.verdicts, n&^allowed)
	}
	return ok
}

// jumpTo is the chain to which a verdict jumps, "" if it is another verdict.
func jumpTo(b []byte) (chain string) {
	attributes(b, func(kind uint16, v []byte) bool {
		switch kind {
		case unix.NFTA_VERDICT_CODE:
			if jump := int32(unix.NFT_JUMP); word(v) != uint32(jump) {
				chain = ""
				return false
			}
		case unix.NFTA_VERDICT_CHAIN:
			chain = stringOf(v)
		}
		return true
	})
	return chain
}

// finish puts intervals together, and notes the greatest numbers.
func (r *reader) finish() {
	name := r.kind.name
	if r.kind.flags&unix.NFT_SET_INTERVAL == 0 {
		r.have.values[name] = r.into
	} else {
		r.have.intervals[name] = r.into
		r.pair()
	}
	for _, x := range r.into {
		r.note(x)
	}
}

// settlePhase says which copy judges, when all is read.
func (c *contents) settlePhase() {
	n := 0
	for _, x := range copies() {
		phase := c.values[setCurrent+x]
		n += len(phase)
		if len(phase) == len(families()) {
			c.phase, c.digest, c.judged = x, phase[string([]byte{unix.NFPROTO_IPV4})].comment, phase[string([]byte{unix.NFPROTO_IPV6})].comment
		}
	}
	if n != len(families()) {
		c.phase, c.digest, c.judged = "", "", ""
	}
}

// pair puts together where intervals begin and end. The last one need not end.
func (r *reader) pair() {
	slices.SortFunc(r.edges, func(a, b edge) int {
		switch c := bytes.Compare(a.key, b.key); {
		case c != 0 || a.end == b.end:
			return c
		case a.end:
			return -1
		}
		return 1
	})
	rest := r.edges
	if len(rest) > 0 && rest[0].end && len(bytes.Trim(rest[0].key, "\x00")) == 0 {
		rest = rest[1:] // nft(8) says where what is before the first one ends
	}
	for len(rest) > 0 {
		from := rest[0]
		switch {
		case from.end:
			r.have.broken[r.kind.name] = true
			return
		case len(rest) == 1:
			r.into[string(from.key)] = element{key: from.key, end: []byte{}, data: from.data}
			return
		case !rest[1].end:
			r.have.broken[r.kind.name] = true
			return
		}
		r.into[string(from.key)] = element{key: from.key, end: rest[1].key, data: from.data}
		rest = rest[2:]
	}
}

// note keeps the greatest numbers of tables and identities.
func (r *reader) note(x element) {
	h := r.have
	both := func() {
		n := binary.NativeEndian.Uint32(x.key)
		h.tables = max(h.tables, n>>identityBits)
		h.identities = max(h.identities, n&identityMask&^ownBit)
	}
	switch name := r.kind.name; {
	case name == setCells || name == setWide:
		both()
		h.verdicts = max(h.verdicts, x.data&^allowed)
	case name == setLists:
		both()
		h.lists = max(h.lists, x.data>>16)
	case name == setRanges:
		h.lists = max(h.lists, binary.BigEndian.Uint32(x.key)>>16)
		h.verdicts = max(h.verdicts, x.data&^allowed)
	case r.kind.dataType == typeVerdict:
		h.tables = max(h.tables, x.data)
	case len(name) > 1 && slices.Contains([]string{setOwn, setHosts, setBlocks, setSelves}, name[:len(name)-1]):
		h.identities = max(h.identities, x.data&^ownBit)
	}
}

// readCounter reads the packets of an expression, if it is a counter.
func readCounter(b []byte, packets *uint64) bool {
	return attributes(b, func(kind uint16, v []byte) bool {
		return kind != unix.NFTA_EXPR_DATA || attributes(v, func(kind uint16, v []byte) bool {
			if kind == unix.NFTA_COUNTER_PACKETS && len(v) == 8 {
				*packets = binary.BigEndian.Uint64(v)
			}
			return true
		})
	})
}

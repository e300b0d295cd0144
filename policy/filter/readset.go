// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"bytes"
	"encoding/binary"
	"fmt"
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
	var verdict, comment string
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
					e.data = word(v)
				case unix.NFTA_DATA_VERDICT:
					verdict = verdictLine(v)
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
		r.have.skeleton = append(r.have.skeleton, fmt.Sprintf("element %s %x: %s", r.kind.name, e.key, verdict))
	case r.kind.flags&unix.NFT_SET_INTERVAL != 0:
		r.edges = append(r.edges, e)
	default:
		r.into[string(e.key)] = element{key: e.key, data: e.data, comment: comment}
	}
	if r.kind.name == setCounts && len(e.key) == 4 {
		n := binary.BigEndian.Uint32(e.key)
		r.have.comments[n], r.have.counts[n] = comment, packets
		r.have.verdicts = max(r.have.verdicts, n&^allowed)
	}
	return ok
}

func verdictLine(b []byte) string {
	var code uint32
	var chain string
	attributes(b, func(kind uint16, v []byte) bool {
		switch kind {
		case unix.NFTA_VERDICT_CODE:
			code = word(v)
		case unix.NFTA_VERDICT_CHAIN:
			chain = stringOf(v)
		}
		return true
	})
	return fmt.Sprintf("%d %s", int32(code), chain)
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
	if name == setCurrent {
		for _, c := range copies() {
			if x, ok := r.into[string(phase(c))]; ok && len(r.into) == 1 {
				r.have.phase, r.have.digest = c, x.comment
			}
		}
		return
	}
	for _, x := range r.into {
		r.note(x)
	}
}

// pair puts together where intervals begin and end.
func (r *reader) pair() {
	slices.SortFunc(r.edges, func(a, b edge) int { return bytes.Compare(a.key, b.key) })
	for i := 0; i < len(r.edges); i += 2 {
		if i+1 == len(r.edges) || r.edges[i].end || !r.edges[i+1].end {
			r.have.broken[r.kind.name] = true
			return
		}
		e := r.edges[i]
		r.into[string(e.key)] = element{key: e.key, end: r.edges[i+1].key, data: e.data}
	}
}

// note keeps the greatest numbers of tables and identities.
func (r *reader) note(x element) {
	h := r.have
	identity := func(n uint32) {
		if n != itselfNumber {
			h.identities = max(h.identities, n&^ownBit)
		}
	}
	switch name := r.kind.name; {
	case len(x.key) >= 8 && (name == setCells || name == setRanges || name == setWide):
		h.tables = max(h.tables, binary.BigEndian.Uint32(x.key))
		identity(binary.BigEndian.Uint32(x.key[4:]))
		h.verdicts = max(h.verdicts, x.data&^allowed)
	case r.kind.dataLen == 4 && len(name) > 1:
		switch name[:len(name)-1] {
		case setEgress, setIngress:
			h.tables = max(h.tables, x.data)
		case setHosts, setBlocks, setSelf:
			identity(x.data)
		}
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

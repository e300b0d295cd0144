// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/fxamacker/cbor/v2"
)

// maxRecords bounds how many nodes are remembered.
const maxRecords = 4096

// recordSet is the replicated set of node records: per node the record with the
// highest Seq; of two different ones with the same Seq the one whose encoding is
// greater bytewise, so that all nodes agree. Records travel as the bytes that
// their node made, so that fields of a newer release survive older ones. Not safe
// for concurrent use.
type recordSet struct {
	byID map[NodeID]storedRecord
}

type storedRecord struct {
	Record
	raw []byte
}

// parseRecord decodes raw and keeps a copy of it.
func parseRecord(raw []byte) (storedRecord, error) {
	s := storedRecord{raw: bytes.Clone(raw)}
	err := s.UnmarshalBinary(raw)
	return s, err
}

// beats tells whether s replaces old.
func (s storedRecord) beats(old storedRecord) bool {
	return cmp.Or(cmp.Compare(s.Seq, old.Seq), bytes.Compare(s.raw, old.raw)) > 0
}

// put takes r in if it beats what is there. When the set is full, nodes that left
// make room for others, and no others are taken in: they are forgotten here
// first, whoever still knows them.
func (rs *recordSet) put(r storedRecord) (changed bool) {
	if rs.byID == nil {
		rs.byID = make(map[NodeID]storedRecord)
	}
	old, known := rs.byID[r.ID]
	switch {
	case known && !r.beats(old):
		return false
	case !known && len(rs.byID) >= maxRecords && (r.State == StateLeft || !rs.forgetLeft()):
		return false
	}
	rs.byID[r.ID] = r
	return true
}

func (rs *recordSet) forgetLeft() bool {
	for id, r := range rs.byID {
		if r.State == StateLeft {
			delete(rs.byID, id)
			return true
		}
	}
	return false
}

// all returns the records ordered by node.
func (rs *recordSet) all() []storedRecord {
	return slices.SortedFunc(maps.Values(rs.byID), func(a, b storedRecord) int { return cmp.Compare(a.ID, b.ID) })
}

// wireRecords is the state "nodes" and its deltas.
type wireRecords struct {
	Version uint8    `cbor:"1,keyasint"`
	Records [][]byte `cbor:"2,keyasint"`
}

const recordsVersion = 1

func encodeRecords(rs []storedRecord) ([]byte, error) {
	w := wireRecords{Version: recordsVersion, Records: make([][]byte, 0, len(rs))}
	for _, r := range rs {
		w.Records = append(w.Records, r.raw)
	}
	return cbor.Marshal(w)
}

// decodeRecords returns the sane records of b and how many were not. One bad
// record does not keep the others out.
func decodeRecords(b []byte) (rs []storedRecord, insane int, err error) {
	var w wireRecords
	if err := decodeCBOR(b, &w); err != nil {
		return nil, 0, fmt.Errorf("decode node records: %w", err)
	}
	if w.Version != recordsVersion {
		return nil, 0, fmt.Errorf("node records of version %d: %w", w.Version, ErrVersion)
	}
	if len(w.Records) > 2*maxRecords {
		return nil, 0, fmt.Errorf("%d node records: %w", len(w.Records), ErrTooLarge)
	}
	for _, raw := range w.Records {
		r, err := parseRecord(raw)
		if err != nil {
			insane++
			continue
		}
		rs = append(rs, r)
	}
	return rs, insane, nil
}

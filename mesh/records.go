// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// maxRecords bounds how many nodes are remembered.
const maxRecords = 8192

// recordSet is the replicated set of node records: per node the record with the
// highest Seq; of two different ones with the same Seq the one whose encoding is
// greater bytewise, so that all nodes agree. Records travel as the bytes that
// their node made, so that fields of a newer release survive older ones. Not safe
// for concurrent use.
type recordSet struct {
	byID    map[NodeID]*storedRecord // not written to
	shared  *Shared                  // nil: none
	buckets [buckets]uint64          // sums of the sums of the records, by bucketOf
	total   uint64                   // of them all
	past    past                     // what total was
	left    int                      // how many of them are of nodes that left
	limited bool                     // something had to make room

	seen   func(NodeID) bool // whether the node has been alive here; nil: all have
	forgot func(NodeID)      // told of each that makes room; nil: nobody is
}

type storedRecord struct {
	Record
	raw []byte // signed
	sum uint64 // sumOf raw
}

// parseRecord decodes a signed record and keeps a copy of it. Whether the signature is right is for [storedRecord.authentic] to tell.
func parseRecord(raw []byte) (*storedRecord, error) {
	id, body, err := bodyOf(raw)
	if err != nil {
		return nil, fmt.Errorf("decode a node record: %w", err)
	}
	s := &storedRecord{raw: bytes.Clone(raw), sum: sumOf(raw)}
	if err := s.UnmarshalBinary(body); err != nil {
		return nil, err
	}
	if s.ID != id {
		return nil, fmt.Errorf("the record of node %v (%q) was signed by node %v: %w", s.ID, clip(s.Name), id, errSignature)
	}
	return s, nil
}

// authentic tells whether the node itself made the record.
func (s *storedRecord) authentic() bool { return verify(recordLabel, nil, s.raw) }

// signRecord makes r, which is the identity's own, what travels.
func (i Identity) signRecord(r Record) (*storedRecord, error) {
	body, err := r.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return parseRecord(i.sign(recordLabel, nil, body))
}

// ParseSigned reads a record as [Node.Signed] has it, and checks its signature.
func ParseSigned(raw []byte) (Record, error) {
	s, err := parseRecord(raw)
	if err == nil && !s.authentic() {
		err = fmt.Errorf("the record of node %v (%q): %w", s.ID, clip(s.Name), errSignature)
	}
	if err != nil {
		return Record{}, err
	}
	return s.Record, nil
}

// beats tells whether s replaces old.
func (s *storedRecord) beats(old *storedRecord) bool {
	return cmp.Or(cmp.Compare(s.Seq, old.Seq), bytes.Compare(s.raw, old.raw)) > 0
}

// get returns the record of a node, an empty one and false if there is none. It must not be written to.
func (rs *recordSet) get(id NodeID) (*storedRecord, bool) {
	if r := rs.byID[id]; r != nil {
		return r, true
	}
	return new(storedRecord), false
}

// wants tells whether put would take r in, as far as what is known of its node decides.
func (rs *recordSet) wants(r *storedRecord) bool {
	old, known := rs.get(r.ID)
	return !known || r.beats(old)
}

// put takes r, which must not be written to from here on, in if it beats what is there. When the set is full, nodes that left
// make room for others, then any of those that were never alive here, whoever still knows them. If
// there are none of these, no others are taken in.
func (rs *recordSet) put(r *storedRecord) (changed bool) {
	old, known := rs.get(r.ID)
	switch {
	case known && !r.beats(old):
		return false
	case !known && len(rs.byID) >= maxRecords && (r.State == StateLeft || !rs.makeRoom()):
		return false
	}
	rs.set(r)
	return true
}

// bucketOf is the bucket that a node's record counts in.
func bucketOf(id NodeID) int { return int(id % buckets) }

// set puts r in the place of whatever is there.
func (rs *recordSet) set(r *storedRecord) {
	if rs.byID == nil {
		rs.byID = make(map[NodeID]*storedRecord)
	}
	old, _ := rs.get(r.ID)
	rs.add(r.ID, r.sum-old.sum)
	rs.left += leftOf(r) - leftOf(old)
	rs.byID[r.ID] = rs.shared.one(r)
}

func leftOf(r *storedRecord) int {
	if r.State == StateLeft {
		return 1
	}
	return 0
}

func (rs *recordSet) add(id NodeID, sum uint64) {
	rs.past.add(rs.total, time.Now())
	rs.buckets[bucketOf(id)] += sum
	rs.total += sum
}

func (rs *recordSet) makeRoom() bool {
	rs.limited = true
	for id, r := range rs.byID {
		if rs.left > 0 && r.State == StateLeft || rs.left == 0 && rs.seen != nil && !rs.seen(id) {
			rs.add(id, -r.sum)
			rs.left -= leftOf(r)
			delete(rs.byID, id)
			if rs.forgot != nil {
				rs.forgot(id)
			}
			return true
		}
	}
	return false
}

// full tells whether nodes that are known elsewhere may be missing here for want of room.
func (rs *recordSet) full() bool { return rs.limited && len(rs.byID) >= maxRecords }

// all returns the records ordered by node.
func (rs *recordSet) all() []*storedRecord {
	all := make([]*storedRecord, 0, len(rs.byID))
	for _, id := range slices.Sorted(maps.Keys(rs.byID)) {
		all = append(all, rs.byID[id])
	}
	return all
}

// wireRecords is the state "nodes" and its deltas.
type wireRecords struct {
	Version uint8    `cbor:"1,keyasint"`
	Records [][]byte `cbor:"2,keyasint"`
}

const recordsVersion = 1

func encodeRecords(rs []*storedRecord) ([]byte, error) {
	w := wireRecords{Version: recordsVersion, Records: make([][]byte, 0, len(rs))}
	for _, r := range rs {
		w.Records = append(w.Records, r.raw)
	}
	return cbor.Marshal(w)
}

// decodeRecords returns the sane records of b, by parse, and how many were not. One bad
// record does not keep the others out.
func decodeRecords(b []byte, parse func(raw []byte) (*storedRecord, error)) (rs []*storedRecord, insane int, err error) {
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
	rs = make([]*storedRecord, 0, len(w.Records))
	for _, raw := range w.Records {
		r, err := parse(raw)
		if err != nil {
			insane++
			continue
		}
		rs = append(rs, r)
	}
	return rs, insane, nil
}

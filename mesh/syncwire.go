// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// A sync is four frames over a stream of its own, the first by who opened it:
//
//	dialler   syncOffer    hashes: of each bucket of records, of each other state, of the members
//	acceptor  syncAnswer   which records are in buckets that differ; other states that differ, whole
//	dialler   syncRest     records that the acceptor lacks; which of its records are wanted; the same states, whole
//	acceptor  syncRecords  the records wanted
//
// Members travel only if their hashes differ.
const (
	syncVersion = 1
	buckets     = 256
	idSize      = 8
	entrySize   = 16 // a record's node and hash, or a member's node and boot
	maxSync     = maxExchange + 1<<20
	maxSyncPart = 4 << 20 // bytes of records in one frame; more come with the next sync
)

type syncOffer struct {
	Version  uint8             `cbor:"1,keyasint"`
	Universe []byte            `cbor:"2,keyasint"` // 16 bytes
	Buckets  []byte            `cbor:"3,keyasint"` // 8 bytes each
	Sums     map[string]uint64 `cbor:"4,keyasint"` // by state, the records not among them
	Members  uint64            `cbor:"5,keyasint"`
}

type syncAnswer struct {
	Version uint8             `cbor:"1,keyasint"`
	Differ  []byte            `cbor:"2,keyasint"` // numbers of buckets
	Entries []byte            `cbor:"3,keyasint"` // 16 bytes each
	States  map[string][]byte `cbor:"4,keyasint"`
	Members []byte            `cbor:"5,keyasint"` // 16 bytes each; empty: the same
}

type syncRest struct {
	Version uint8             `cbor:"1,keyasint"`
	Want    []byte            `cbor:"2,keyasint"` // 8 bytes each
	States  map[string][]byte `cbor:"3,keyasint"` // the records under their name
	Members []byte            `cbor:"4,keyasint"`
}

type syncRecords struct {
	Version uint8  `cbor:"1,keyasint"`
	Records []byte `cbor:"2,keyasint"`
}

func malformedSync(what string) error { return fmt.Errorf("decode %s of a sync: %w", what, errWire) }

func decodeSyncOffer(b []byte) (o syncOffer, err error) {
	if err := decodeCBOR(b, &o); err != nil {
		return syncOffer{}, fmt.Errorf("decode the offer of a sync: %w", err)
	}
	if o.Version != syncVersion || len(o.Universe) != 16 || len(o.Buckets) != 8*buckets || len(o.Sums) > maxStates {
		return syncOffer{}, malformedSync("the offer")
	}
	return o, nil
}

func decodeSyncAnswer(b []byte) (a syncAnswer, err error) {
	if err := decodeCBOR(b, &a); err != nil {
		return syncAnswer{}, fmt.Errorf("decode the answer of a sync: %w", err)
	}
	if a.Version != syncVersion || len(a.Differ) > buckets || !entries(a.Entries) || !entries(a.Members) || !stateNames(a.States) {
		return syncAnswer{}, malformedSync("the answer")
	}
	return a, nil
}

func decodeSyncRest(b []byte) (r syncRest, err error) {
	if err := decodeCBOR(b, &r); err != nil {
		return syncRest{}, fmt.Errorf("decode the rest of a sync: %w", err)
	}
	if r.Version != syncVersion || len(r.Want)%idSize != 0 || len(r.Want) > idSize*2*maxRecords || !entries(r.Members) || !stateNames(r.States) {
		return syncRest{}, malformedSync("the rest")
	}
	return r, nil
}

func decodeSyncRecords(b []byte) (r syncRecords, err error) {
	if err := decodeCBOR(b, &r); err != nil {
		return syncRecords{}, fmt.Errorf("decode the records of a sync: %w", err)
	}
	if r.Version != syncVersion {
		return syncRecords{}, malformedSync("the records")
	}
	return r, nil
}

func entries(b []byte) bool { return len(b)%entrySize == 0 && len(b) <= entrySize*2*maxRecords }

func stateNames(states map[string][]byte) bool {
	if len(states) > maxStates {
		return false
	}
	for name := range states {
		if !validName(name, maxStateName) {
			return false
		}
	}
	return true
}

func appendEntry(b []byte, id NodeID, n uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(id)), n)
}

// entry reads one entry off the front of b.
func entry(b []byte) (id NodeID, n uint64, rest []byte) {
	return NodeID(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint64(b[idSize:]), b[entrySize:]
}

// writeSync and readSync exchange one frame.
func writeSync(c *peerConn, v any) error {
	b, err := cbor.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxSync {
		return fmt.Errorf("a frame of %d bytes: %w", len(b), ErrTooLarge)
	}
	return c.writeFrame(b)
}

func readSync[T any](m *Mesh, c *peerConn, from NodeID, decode func([]byte) (T, error)) (v T, eaten func(), err error) {
	b, eaten, err := m.readLarge(c, from, maxSync)
	if err == nil {
		if v, err = decode(b); err != nil {
			eaten()
		}
	}
	return v, eaten, err
}

// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// errWire marks things of the wrong shape from the wire.
var errWire = errors.New("malformed")

// Bounds of what travels.
const (
	maxStateName = 32
	maxChannel   = 64
	maxStates    = 16
	maxPayload   = 8 << 20 // of a message or a change
	maxFrame     = maxPayload + 1024
)

// decodeCBOR reads one CBOR item that fills b, within narrow limits: what is
// allocated is proportional to len(b), which every caller bounds before.
func decodeCBOR(b []byte, into any) error {
	mode, err := decodeMode()
	if err != nil {
		return err
	}
	return mode.Unmarshal(b, into)
}

var decodeMode = sync.OnceValues(cbor.DecOptions{
	DupMapKey:        cbor.DupMapKeyEnforcedAPF,
	MaxNestedLevels:  6,
	MaxArrayElements: 1 << 14,
	MaxMapPairs:      64,
	IndefLength:      cbor.IndefLengthForbidden,
	TagsMd:           cbor.TagsForbidden,
	UTF8:             cbor.UTF8RejectInvalid,
}.DecMode)

const wireVersion = 1

// change is a delta of one state, as gossip carries it.
type change struct {
	Version  uint8  `cbor:"1,keyasint"`
	Universe []byte `cbor:"2,keyasint"` // 16 bytes
	State    string `cbor:"3,keyasint"`
	Delta    []byte `cbor:"4,keyasint"`
}

func encodeChange(u [16]byte, state string, delta []byte) ([]byte, error) {
	return cbor.Marshal(change{Version: wireVersion, Universe: u[:], State: state, Delta: delta})
}

func decodeChange(b []byte) (change, error) {
	var c change
	if err := decodeCBOR(b, &c); err != nil {
		return change{}, fmt.Errorf("decode a change: %w", err)
	}
	if c.Version != wireVersion || len(c.Universe) != 16 || !validName(c.State, maxStateName) || len(c.Delta) == 0 {
		return change{}, fmt.Errorf("decode a change of version %d: %w", c.Version, errWire)
	}
	return c, nil
}

// message is what Send carries, and a change too large for gossip.
type message struct {
	Seq     uint64 `cbor:"1,keyasint"` // per sending process and receiver, from 1
	Channel string `cbor:"2,keyasint,omitempty"`
	State   string `cbor:"3,keyasint,omitempty"` // not empty: Payload is a delta of that state
	Payload []byte `cbor:"4,keyasint"`
}

func decodeMessage(b []byte) (message, error) {
	var msg message
	if err := decodeCBOR(b, &msg); err != nil {
		return message{}, fmt.Errorf("decode a message: %w", err)
	}
	if msg.Seq == 0 || !printable(msg.Channel, maxChannel) || len(msg.Payload) > maxPayload ||
		(msg.State != "" && !validName(msg.State, maxStateName)) {
		return message{}, fmt.Errorf("decode message %d: %w", msg.Seq, errWire)
	}
	return msg, nil
}

// validName tells whether s may name a state.
func validName(s string, limit int) bool { return s != "" && printable(s, limit) }

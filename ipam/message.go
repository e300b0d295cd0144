// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/weftnet/weft/ipam/ring"
)

// kind is what a message between two allocators says.
type kind uint8

const (
	kindRequest  kind = 1 + iota // give me slots, or this slot; here is all that I know
	kindDeny                     // you get none from me, or not yet, and why
	kindConfirm                  // I have granted these: record it and say so
	kindAck                      // the slots that I speak for, these, have recorded the grants
	kindNews                     // you are behind: here is what I know
	kindGrant                    // these are yours, a majority has recorded it; here is all that I know
	kindReceived                 // I have these grants of yours
	kindVote                     // this is how I vote on the next retirement: do you follow, and for which slots?
	kindVoted                    // this is how I vote, for these slots
	kindSurvey                   // these are retired, and I am an heir: what do you know?
	kindSurveyed                 // here is all that I know, and the slots that I speak for
)

// heedsRetired reports whether such a message is taken in from a node that is retired.
func (k kind) heedsRetired() bool {
	return k == kindNews || k == kindVote || k == kindSurvey || k == kindSurveyed
}

// refusal is why a donor gives nothing.
type refusal uint8

const (
	refusedFull       refusal = 1 + iota // no slot is free, or none to spare for somebody who is not in need
	refusedTaken                         // the slot asked for is in use, resting or not here
	refusedNoMajority                    // the donor reaches no majority, so no grant could take effect
	refusedLeaving                       // the donor is leaving the mesh
	refusedStale                         // the asker has been granted slots that it does not know of yet
	refusedUnderway                      // there is a grant, which waits for a majority to record it
	refusedClosed                        // the asker is leaving and has all that was granted to it
	refusedEnd
)

// message is any message; which fields mean something depends on the kind.
type message struct {
	kind kind

	urgent bool   // request, deny: somebody waits for the address
	exact  bool   // request, deny: it is about one slot
	slot   uint32 // that slot
	have   uint64 // request: how many free slots the asker has
	boot   uint64 // request, deny: when the sender started
	closed uint64 // request, deny: the start of the other's run that was leaving, whose requests are not answered; 0: none was
	last   bool   // request: the asker is leaving; grant nothing more, but repeat what was granted

	ring   *ring.Ring // request, grant, survey, surveyed: all that the sender knows; deny: the same, or nil; news: some of it; vote, voted: log and votes
	grants *ring.Ring // confirm, ack, grant, received: the delta in question; confirm: with the log
	slots  ring.Set   // ack, voted, surveyed: those that the sender speaks for
	length uint64     // ack: of the sender's log of retirements

	reason refusal // deny
	usage  counts  // deny
}

// counts is how full a node is, in slots that may be handed out.
type counts struct{ usable, inUse, resting uint64 }

const messageFormat = 2

const (
	flagUrgent = 1 << iota
	flagExact
	flagLast
	flagEnd
)

var errMessage = errors.New("malformed message")

// encode returns the binary form: the format, the kind, flags, and the fields of the kind in the order of the struct.
func (m *message) encode() []byte {
	flags := byte(0)
	for flag, set := range map[byte]bool{flagUrgent: m.urgent, flagExact: m.exact, flagLast: m.last} {
		if set {
			flags |= flag
		}
	}
	b := []byte{messageFormat, byte(m.kind), flags}
	switch m.kind {
	case kindRequest:
		b = binary.AppendUvarint(b, uint64(m.slot))
		b = binary.AppendUvarint(b, m.have)
		b = binary.AppendUvarint(b, m.boot)
		b = binary.AppendUvarint(b, m.closed)
		b = appendRing(b, m.ring)
	case kindGrant:
		b = appendRing(b, m.ring)
		b = appendRing(b, m.grants)
	case kindDeny:
		b = binary.AppendUvarint(b, uint64(m.slot))
		b = binary.AppendUvarint(b, m.boot)
		b = binary.AppendUvarint(b, m.closed)
		b = appendRing(b, m.ring)
		b = append(b, byte(m.reason))
		b = binary.AppendUvarint(b, m.usage.usable)
		b = binary.AppendUvarint(b, m.usage.inUse)
		b = binary.AppendUvarint(b, m.usage.resting)
	case kindReceived, kindConfirm:
		b = appendRing(b, m.grants)
	case kindAck:
		b = appendRing(b, m.grants)
		b = appendSet(b, m.slots)
		b = binary.AppendUvarint(b, m.length)
	case kindNews, kindVote, kindSurvey:
		b = appendRing(b, m.ring)
	case kindVoted, kindSurveyed:
		b = appendRing(b, m.ring)
		b = appendSet(b, m.slots)
	}
	return b
}

// decodeMessage parses what encode wrote in a mesh of size slots. The message does not refer to b afterwards.
func decodeMessage(b []byte, size uint32) (*message, error) {
	if len(b) < 3 {
		return nil, fmt.Errorf("%w of %d bytes", errMessage, len(b))
	}
	if b[0] != messageFormat {
		return nil, fmt.Errorf("%w: format %d, this build knows %d; upgrade this node", errMessage, b[0], messageFormat)
	}
	m := &message{kind: kind(b[1])}
	m.urgent, m.exact, m.last = b[2]&flagUrgent != 0, b[2]&flagExact != 0, b[2]&flagLast != 0
	r := reader{b: b[3:], bad: b[2] >= flagEnd}
	switch m.kind {
	case kindRequest:
		m.slot = uint32(r.number(uint64(size) - 1))
		m.have = r.number(math.MaxUint32)
		m.boot = r.number(math.MaxUint64)
		m.closed = r.number(math.MaxUint64)
		m.ring = r.ring(size, false)
	case kindGrant:
		m.ring = r.ring(size, false)
		m.grants = r.ring(size, false)
	case kindDeny:
		m.slot = uint32(r.number(uint64(size) - 1))
		m.boot = r.number(math.MaxUint64)
		m.closed = r.number(math.MaxUint64)
		m.ring = r.ring(size, true)
		m.reason = refusal(r.byte())
		m.usage = counts{r.number(math.MaxUint32), r.number(math.MaxUint32), r.number(math.MaxUint32)}
		r.bad = r.bad || m.reason == 0 || m.reason >= refusedEnd
	case kindReceived, kindConfirm:
		m.grants = r.ring(size, false)
	case kindAck:
		m.grants = r.ring(size, false)
		m.slots = r.set(size)
		m.length = r.number(math.MaxUint32)
	case kindNews, kindVote, kindSurvey:
		m.ring = r.ring(size, false)
	case kindVoted, kindSurveyed:
		m.ring = r.ring(size, false)
		m.slots = r.set(size)
	default:
		r.bad = true
	}
	if !r.done() {
		return nil, fmt.Errorf("%w of kind %d, %d bytes", errMessage, m.kind, len(b))
	}
	return m, nil
}

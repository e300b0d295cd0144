// SPDX-License-Identifier: Apache-2.0

package router

import (
	"time"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/underlay"
)

// The more a shard does at a time, the less each packet costs, and the longer one waits that comes in meanwhile. So it does little
// as long as somebody waits.

const (
	// How many bytes are read from the TUN queue before it is the datagrams' turn again, and about how many of those it is, too: while somebody waits, and otherwise.
	hastyBytes, calmBytes = 64 << 10, 512 << 10
	// How many datagrams, or runs of them, are received at once at least, however long they are.
	hastyBatch, calmBatch = 1, 8
	// hasteLasts is for how long after a packet that somebody waits for a shard assumes that there will be others.
	hasteLasts = 100 * time.Millisecond
)

// portion is how much a shard does at a time.
type portion struct {
	bytes int // read from the TUN queue, or received
	batch int // least number of runs of datagrams received
}

// haste decides on that. It is the shard's.
type haste struct {
	always bool      // it cannot be told who waits
	now    bool      // a packet that somebody waits for has passed in this turn
	last   time.Time // when the turn after the last one with such a packet began
	hasty  bool      // in this turn
	portion
}

// begin decides for the turn that begins.
func (h *haste) begin(now time.Time) {
	if h.now {
		h.now, h.last = false, now
	}
	h.hasty = h.always || now.Sub(h.last) < hasteLasts
	h.portion = portion{calmBytes, calmBatch}
	if h.hasty {
		h.portion = portion{hastyBytes, hastyBatch}
	}
}

// passes notes a light packet. All are waited for but those by which the receiver of a stream only says what it has got: the stream goes on without.
func (h *haste) passes(b []byte, p *packet.Packet) {
	if !h.now && !p.BareACK(b) {
		h.now = true
	}
}

// passesOn is passes for what is passed on in a datagram of that type of service, and cannot be read.
func (h *haste) passesOn(tos uint8) {
	if tos&underlay.LightTOS != 0 {
		h.now = true
	}
}

// passesIn is passes for a packet in a datagram of that type of service.
func (h *haste) passesIn(tos uint8, b []byte, p *packet.Packet) {
	if tos&underlay.LightTOS != 0 {
		h.passes(b, p)
	}
}

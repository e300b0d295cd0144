// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"encoding/binary"
	"fmt"
)

// Changes have packets of their own. memberlist would carry them in the room that its own messages leave, which is
// none for a minute and more after many nodes have joined: nobody would hear meanwhile of whoever joins next, nor of an address that was granted.
// While there are any, changesFanout members chosen at random get a packet of them each, every GossipInterval.
//
// A packet is a row of changes, each behind its length (two bytes, big endian).
const (
	changesFanout = 3
	changeHead    = 2
	maxChanges    = maxPacket - 1 // bytes behind the kind
)

// changesLoop sends the changes that wait, for as long as there are any.
func (m *Mesh) changesLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.gossiping:
		}
		for m.gossip.NumQueued() > 0 && m.sendChanges() {
			if !sleep(ctx, m.tuning.GossipInterval) {
				return
			}
		}
	}
}

// sendChanges sends a packet of changes to each of some members. It reports false if there is nobody.
func (m *Mesh) sendChanges() bool {
	to := m.someAlive(changesFanout)
	for _, id := range to {
		b := encodeChanges(m.gossip.GetBroadcasts(changeHead, maxChanges))
		if len(b) == 0 {
			break
		}
		if err := m.sendPacket(kindChanges, b, id); err != nil {
			m.dropped.Add(1)
		}
	}
	return len(to) > 0
}

// gossipSoon has changesLoop look.
func (m *Mesh) gossipSoon() {
	select {
	case m.gossiping <- struct{}{}:
	default:
	}
}

func encodeChanges(all [][]byte) []byte {
	var b []byte
	for _, c := range all {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(c))), c...) // at most maxGossip
	}
	return b
}

// decodeChanges hands each change of a packet on, and stops at what makes no sense.
func decodeChanges(b []byte, take func(change []byte)) error {
	for len(b) > 0 {
		if len(b) < changeHead {
			return fmt.Errorf("%d bytes behind the last change: %w", len(b), errWire)
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[changeHead:]; n == 0 || n > len(b) {
			return fmt.Errorf("a change of %d bytes, of which %d are there: %w", n, len(b), errWire)
		}
		take(b[:n])
		b = b[n:]
	}
	return nil
}

// takeChanges takes a packet of changes.
func (m *Mesh) takeChanges(b []byte, from NodeID) {
	if err := decodeChanges(b, func(change []byte) { m.takeChange(change, from) }); err != nil {
		m.oddity(from, "changes that make no sense were dropped", err)
	}
}

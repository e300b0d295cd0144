// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/fxamacker/cbor/v2"
	"go.uber.org/zap"
)

// Messages. Each destination has a queue and, while something is in it, a worker that
// keeps a connection, sends one message after the other and waits for the receipt of
// each. A message whose receipt is missing is sent again over a new connection; the
// receiver knows by its number that it has had it. So messages arrive in order and
// once, unless they are given up because their destination could not be reached for
// messageLife.
const (
	maxOutbox      = 256      // messages waiting for one node
	maxOutboxBytes = 32 << 20 // bytes waiting for one node
	messageLife    = 15 * time.Second
	connIdle       = 10 * time.Second // worker without work
	serveIdle      = 30 * time.Second // receiver without messages
	firstResend    = 100 * time.Millisecond
	maxResend      = 2 * time.Second
	receiptSize    = 8
)

// outbox is what waits for one node. Guarded by Mesh.mu.
type outbox struct {
	queue  []outgoing
	bytes  int
	seq    uint64
	worker bool
	wake   chan struct{} // capacity 1
}

type outgoing struct {
	message
	until time.Time
}

// inbox is the number of the last message taken from a node's process. Guarded by Mesh.mu.
type inbox struct {
	boot, seq uint64
	busy      bool
}

// Send queues a message of at most 8 MiB to a node, on a channel whose name (at most 64
// bytes) the receiver's OnMessage gets. payload is copied. It returns at once; nil
// means queued. Messages to one node arrive in order and at most once; they are
// dropped if the node cannot be reached for 15 s, or stops before it has them.
//
// Errors: ErrUnknownNode, ErrSelf, ErrQueueFull, ErrTooLarge, ErrNotRunning.
func (m *Mesh) Send(to NodeID, channel string, payload []byte) error {
	if !printable(channel, maxChannel) {
		return fmt.Errorf("send to node %v: a channel name of %d bytes: %w", to, len(channel), ErrTooLarge)
	}
	if to == m.id {
		return fmt.Errorf("send to node %v: it %w", to, ErrSelf)
	}
	return m.enqueue(to, message{Channel: channel, Payload: payload})
}

func (m *Mesh) enqueue(to NodeID, msg message) error {
	if len(msg.Payload) > maxPayload {
		return fmt.Errorf("send %d bytes to node %v: %w", len(msg.Payload), to, ErrTooLarge)
	}
	msg.Payload = bytes.Clone(msg.Payload)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != running {
		return fmt.Errorf("send to node %v: %w", to, ErrNotRunning)
	}
	if m.peers[to] == nil {
		return fmt.Errorf("send to node %v: %w", to, ErrUnknownNode)
	}
	o := m.outboxes[to]
	if o == nil {
		o = &outbox{wake: make(chan struct{}, 1)}
		m.outboxes[to] = o
	}
	if len(o.queue) >= maxOutbox || o.bytes+len(msg.Payload) > maxOutboxBytes {
		return fmt.Errorf("send to node %v: %w", to, ErrQueueFull)
	}
	o.seq++
	msg.Seq = o.seq
	o.queue = append(o.queue, outgoing{message: msg, until: time.Now().Add(messageLife)})
	o.bytes += len(msg.Payload)
	select {
	case o.wake <- struct{}{}:
	default:
	}
	if !o.worker {
		o.worker = m.spawnLocked(func(ctx context.Context) { m.work(ctx, to, o) })
	}
	return nil
}

// work empties one outbox.
func (m *Mesh) work(ctx context.Context, to NodeID, o *outbox) {
	var conn *peerConn
	hangUp := func() {
		if conn != nil {
			m.closeQuietly(conn)
			conn = nil
		}
	}
	defer hangUp()
	wait := firstResend
	for {
		msg, ok := m.next(o)
		if !ok {
			if m.idle(ctx, o) {
				return
			}
			continue
		}
		var err error
		if conn == nil {
			conn, err = m.dialNode(to, purposeMessage, m.tuning.StreamTimeout)
		}
		if err == nil {
			err = m.sendOne(conn, msg.message)
		}
		if err == nil || errors.Is(err, ErrTooLarge) {
			wait = firstResend
			m.sent(o)
			continue
		}
		if n := m.giveUp(o, time.Now()); n > 0 {
			m.log.Debug("messages were given up", zap.Stringer("to", to), zap.Int("messages", n), zap.Error(err))
		}
		hangUp()
		if !sleep(ctx, jitter(wait)) {
			m.retire(o)
			return
		}
		wait = min(2*wait, maxResend)
	}
}

// next returns the oldest message of o.
func (m *Mesh) next(o *outbox) (outgoing, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(o.queue) == 0 {
		return outgoing{}, false
	}
	return o.queue[0], true
}

// sent removes the oldest message of o.
func (m *Mesh) sent(o *outbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o.drop()
}

// giveUp removes the messages of o that have waited too long.
func (m *Mesh) giveUp(o *outbox, now time.Time) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; len(o.queue) > 0 && !now.Before(o.queue[0].until); n++ {
		o.drop()
	}
	return n
}

func (o *outbox) drop() {
	o.bytes -= len(o.queue[0].Payload)
	o.queue[0] = outgoing{}
	o.queue = o.queue[1:]
}

// idle waits for work, and tells whether the worker has retired for want of it.
func (m *Mesh) idle(ctx context.Context, o *outbox) (retired bool) {
	t := time.NewTimer(connIdle)
	defer t.Stop()
	select {
	case <-o.wake:
		return false
	case <-ctx.Done():
		m.retire(o)
		return true
	case <-t.C:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(o.queue) > 0 {
		return false
	}
	o.worker = false
	o.queue = nil
	return true
}

func (m *Mesh) retire(o *outbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o.worker = false
}

// sendOne sends a message and waits for its receipt.
func (m *Mesh) sendOne(c *peerConn, msg message) error {
	b, err := cbor.Marshal(msg)
	if err != nil {
		return err
	}
	if len(b) > maxFrame {
		return ErrTooLarge
	}
	// A second more for each MiB.
	if err := c.within(m.tuning.StreamTimeout + time.Duration(len(b))*time.Second>>20); err != nil {
		return err
	}
	if err := c.writeFrame(b); err != nil {
		return err
	}
	var receipt [receiptSize]byte
	if _, err := io.ReadFull(c, receipt[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(receipt[:]) != msg.Seq {
		return fmt.Errorf("a receipt for another message: %w", errWire)
	}
	return nil
}

// serveMessages takes messages from a node until it hangs up.
func (m *Mesh) serveMessages(ctx context.Context, c *peerConn, them introduction) {
	for ctx.Err() == nil {
		if err := c.within(serveIdle); err != nil {
			return
		}
		b, eaten, err := m.readLarge(c, them.id, maxFrame)
		if err != nil {
			return
		}
		if !m.takeMessage(c, them, b, eaten) {
			return
		}
	}
}

// takeMessage takes a message in and confirms it; false: the connection is of no more use.
func (m *Mesh) takeMessage(c *peerConn, them introduction, b []byte, eaten func()) bool {
	msg, err := decodeMessage(b)
	if err != nil {
		eaten()
		m.oddity(them.id, "a message that makes no sense was dropped", err)
		return false
	}
	first, ok := m.isNew(them, msg.Seq)
	if !ok || !first {
		eaten()
	}
	if !ok {
		return false // another connection is at it: the sender comes again
	}
	if first {
		ok = m.take(them.id, msg, eaten)
		m.noteTaken(them, msg.Seq, ok)
		if !ok {
			return false
		}
	}
	if err := c.within(m.tuning.StreamTimeout); err != nil {
		return false
	}
	_, err = c.Write(binary.BigEndian.AppendUint64(nil, msg.Seq))
	return err == nil
}

// isNew tells whether message seq has not been taken yet (first), unless an
// earlier one of that node is being taken right now (not ok).
func (m *Mesh) isNew(them introduction, seq uint64) (first, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in := m.inboxes[them.id]
	if in == nil {
		m.tidyInboxes()
		in = &inbox{}
		m.inboxes[them.id] = in
	}
	switch {
	case in.busy:
		return false, false
	case in.boot == them.boot && seq <= in.seq:
		return false, true
	}
	in.busy = true
	return true, true
}

// tidyInboxes makes room for another inbox: of nodes that have come and gone there may be any number. Called with mu held.
func (m *Mesh) tidyInboxes() {
	for id, in := range m.inboxes {
		if len(m.inboxes) < maxWays {
			return
		}
		if p := m.peers[id]; !in.busy && (p == nil || p.status != Alive) {
			delete(m.inboxes, id)
		}
	}
}

func (m *Mesh) noteTaken(them introduction, seq uint64, taken bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in := m.inboxes[them.id]
	in.busy = false
	if taken {
		in.boot, in.seq = them.boot, seq
	}
}

// take hands a message on. eaten is called when it is of no more use.
func (m *Mesh) take(from NodeID, msg message, eaten func()) bool {
	if msg.State != "" {
		u := m.Universe()
		return m.queueMerge(incoming{from: from, change: change{Universe: u.ID[:], State: msg.State, Delta: msg.Payload}, eaten: eaten})
	}
	defer eaten()
	if m.cfg.OnMessage != nil {
		m.cfg.OnMessage(from, msg.Channel, msg.Payload)
	}
	return true
}

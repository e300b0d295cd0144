// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/flynn/noise"
)

// initiate starts a handshake or arranges for one (see Initiate). Called under mu.
func (p *Peer) initiate(out []byte, now time.Time) ([]byte, bool) {
	if p.removed {
		return out, false
	}
	p.tryingSince = now
	if !p.deadline[timerRetransmit].IsZero() {
		return out, false
	}
	if !p.lastHandshake.IsZero() && within(now, p.lastHandshake, RekeyTimeout) {
		p.deadline[timerRetransmit] = p.lastHandshake.Add(RekeyTimeout + p.jitter())
		return out, false
	}
	out = p.sendInitiation(out, now)
	return out, len(out) > 0
}

// sendInitiation appends an initiation to out, which is empty, in place of the one in flight. If
// randomness fails it appends nothing; the timer tries again. Called under mu.
func (p *Peer) sendInitiation(out []byte, now time.Time) []byte {
	p.lastHandshake = now
	p.deadline[timerRetransmit] = now.Add(RekeyTimeout + p.jitter())
	p.dropHandshake()
	msg, err := p.buildInitiation(out, now)
	if err != nil {
		p.dropHandshake()
		return out
	}
	p.attempts++
	p.sent(now)
	return msg
}

func (p *Peer) buildInitiation(out []byte, now time.Time) ([]byte, error) {
	m := p.machine
	hs, err := newNoise(p.suite, m.own, &p.public, &m.rand)
	if err != nil {
		return nil, err
	}
	index, err := m.table.reserve(&m.rand, p)
	if err != nil {
		return nil, err
	}
	p.handshake.noise, p.handshake.suite, p.handshake.index = hs, p.suite, index

	label := stampAt(now)
	if !label.after(p.sentStamp) {
		label = p.sentStamp.next() // the clock stepped back, or has not moved by a whole step
	}
	p.sentStamp = label

	out = appendWord(out, TypeInitiation, p.suite)
	out = binary.LittleEndian.AppendUint32(out, index)
	if out, _, _, err = hs.WriteMessage(out, label[:]); err != nil {
		return nil, err
	}
	out = append(out, make([]byte, 2*macSize)...)
	return out, p.jar.seal(out, now)
}

// respond answers an initiation that opened, unless it is a replay or one too many, with a session
// that waits for its first datagram.
func (p *Peer) respond(
	out []byte, hs *noise.HandshakeState, suite Suite, remote uint32, label stamp, now time.Time,
) (Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.removed:
		return Result{}, ErrUnknownPeer
	case p.exclusive && suite != p.suite:
		return Result{}, ErrSuite
	case !label.after(p.lastStamp):
		return Result{}, ErrReplay
	case !p.initiations.take(now, flood, floodBurst*flood):
		return Result{}, ErrFlood
	}
	p.lastStamp = label

	m := p.machine
	local, err := m.table.reserve(&m.rand, p)
	if err != nil {
		return Result{}, err
	}
	msg, k, err := p.buildResponse(out[:0], hs, suite, local, remote, now)
	if err != nil {
		m.table.remove(local)
		return Result{}, err
	}
	p.drop(p.pending)
	p.pending = k
	m.table.publish(k)

	p.lastHandshake = now
	p.deadline[timerZero] = now.Add(ZeroAfterTime)
	p.received(now)
	p.sent(now)
	return Result{Peer: p, Reply: msg}, nil
}

func (p *Peer) buildResponse(
	out []byte, hs *noise.HandshakeState, suite Suite, local, remote uint32, now time.Time,
) ([]byte, *Keypair, error) {
	if err := hs.SetPresharedKey(p.preshared[0][:]); err != nil {
		return nil, nil, err
	}
	out = appendWord(out, TypeResponse, suite)
	out = binary.LittleEndian.AppendUint32(out, local)
	out = binary.LittleEndian.AppendUint32(out, remote)
	out, toUs, toThem, err := hs.WriteMessage(out, nil)
	if err != nil {
		return nil, nil, err
	}
	receive, send, err := splitKeys(toUs, toThem)
	if err != nil {
		return nil, nil, err
	}
	k := &Keypair{peer: p, suite: suite, created: now, preshared: p.preshared[0], local: local, remote: remote}
	if err := k.arm(send, receive); err != nil {
		return nil, nil, err
	}
	out = append(out, make([]byte, 2*macSize)...)
	return out, k, p.jar.seal(out, now)
}

// receiveResponse completes the handshake in flight. The reply is the datagram that confirms the
// key to the responder.
func (p *Peer) receiveResponse(out, msg []byte, suite Suite, now time.Time) (Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hs := &p.handshake
	switch {
	case hs.noise == nil || hs.index != binary.LittleEndian.Uint32(msg[responseReceiverAt:]):
		return Result{}, ErrIndex
	case hs.suite != suite:
		return Result{}, ErrSuite
	}
	toThem, toUs, preshared := p.readResponse(hs.noise, msg)
	if preshared == nil {
		return Result{}, ErrAuth // the handshake goes on waiting: anyone can send such a message
	}
	send, receive, err := splitKeys(toThem, toUs)
	if err != nil {
		return Result{}, err
	}
	k := &Keypair{
		peer: p, suite: suite, initiator: true, created: now, rekeyAfter: RekeyAfterTime, preshared: preshared,
		local: hs.index, remote: binary.LittleEndian.Uint32(msg[senderAt:]),
	}
	if err := k.arm(send, receive); err != nil {
		return Result{}, err
	}
	hs.noise = nil // the index now belongs to k
	p.machine.table.publish(k)

	p.retire(p.current.Load())
	if p.pending != nil {
		// The peer initiated too, and may be sending under that key: keep it. Next time, let one
		// side be first.
		p.retire(p.pending)
		p.pending = nil
		if bytes.Compare(p.machine.own.public[:], p.public[:]) < 0 {
			k.rekeyAfter += RekeyTimeout
		}
	}
	p.current.Store(k)
	p.complete(now)
	p.deadline[timerZero] = now.Add(ZeroAfterTime)
	p.received(now)
	return Result{Peer: p, Reply: p.sendKeepalive(out[:0], now), Established: true}, nil
}

// receiveCookie keeps the cookie for the next handshake message.
func (p *Peer) receiveCookie(msg []byte, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.jar.accept(msg, now)
}

// confirm brings the session that was made as responder into use. Called under mu.
func (p *Peer) confirm(now time.Time) {
	p.retire(p.current.Load())
	p.current.Store(p.pending)
	p.pending = nil
	p.dropHandshake() // our own initiation has become unnecessary, and its answer could come late
	p.complete(now)
}

// complete notes that a new key for sending is in use. Called under mu.
func (p *Peer) complete(now time.Time) {
	p.deadline[timerRetransmit] = time.Time{}
	p.attempts, p.lastMinute = 0, false
	p.completed++
	p.completedAt = now
}

// sendKeepalive appends an empty datagram to out, which is empty, or an initiation if there is no
// key. Called under mu.
func (p *Peer) sendKeepalive(out []byte, now time.Time) []byte {
	k := p.Key(now)
	if k == nil {
		out, _ = p.initiate(out, now)
		return out
	}
	msg, err := k.Seal(out, nil)
	if err != nil {
		return out
	}
	p.sent(now)
	return msg
}

// dropHandshake forgets the handshake in flight. Called under mu.
func (p *Peer) dropHandshake() {
	if p.handshake.noise != nil {
		p.machine.table.remove(p.handshake.index)
		p.handshake.noise = nil
	}
}

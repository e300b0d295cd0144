// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"io"
	"time"
)

// Times and counts of the WireGuard whitepaper, §6.1.
const (
	RekeyAfterMessages  = 1 << 60
	RejectAfterMessages = 1<<64 - 1<<13 - 1
	RekeyAfterTime      = 120 * time.Second // an initiator starts the next handshake at this age
	RejectAfterTime     = 180 * time.Second // nobody uses a key from this age
	RekeyAttemptTime    = 90 * time.Second  // a handshake is given up after so long
	RekeyTimeout        = 5 * time.Second   // and tried again after so long, plus jitter
	KeepaliveTimeout    = 10 * time.Second
	CookieRefreshTime   = 120 * time.Second
	ZeroAfterTime       = 3 * RejectAfterTime // keys are forgotten after so long without a new one

	// MaxJitter bounds what is added to RekeyTimeout, so that two sides do not stay in step.
	MaxJitter = 333 * time.Millisecond

	lastMinuteAge = RejectAfterTime - KeepaliveTimeout - RekeyTimeout

	sendMargin = time.Second // nobody seals with a key for so long before it expires
)

// timer names a deadline of a peer. They are looked at in this order.
type timer int

const (
	timerZero       timer = iota // forget all keys
	timerRetransmit              // initiate again, or for the first time if that had to wait
	timerSilence                 // sent data, heard nothing: initiate
	timerKeepalive               // received data, sent nothing: send an empty datagram
	timerPersistent              // send an empty datagram whatever happens
	timerRevoked                 // forget the keys that were made with a pre-shared key of the past
	timerCount
)

// Tick does what is due at now and returns a message for the peer, appended to out[:0] and empty
// if there is none, and the time of the next Tick; zero means not before something else happened
// to the peer. The message is accounted for already: do not call Sent for it. One Tick makes one
// message; if more is due, next is now. Every other method may bring the time forward: ask Next.
func (p *Peer) Tick(out []byte, now time.Time) (msg []byte, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out = out[:0]
	for t := range timerCount {
		if at := p.deadline[t]; at.IsZero() || now.Before(at) {
			continue
		}
		p.deadline[t] = time.Time{}
		switch t {
		case timerZero:
			p.forget()
		case timerRetransmit:
			if within(now, p.tryingSince, RekeyAttemptTime) {
				out = p.sendInitiation(out, now)
			} else {
				p.giveUp(now)
			}
		case timerSilence:
			out, _ = p.initiate(out, now)
		case timerKeepalive:
			out = p.sendKeepalive(out, now)
			if p.keepaliveAgain {
				p.keepaliveAgain = false
				p.deadline[timerKeepalive] = now.Add(KeepaliveTimeout)
			}
		case timerPersistent:
			out = p.sendKeepalive(out, now)
			if p.keepalive > 0 {
				p.deadline[timerPersistent] = now.Add(p.keepalive)
			}
		case timerRevoked:
			p.forgetRevoked(now)
		}
		if len(out) > 0 {
			break
		}
	}
	next = p.next()
	if !next.IsZero() && next.Before(now) {
		next = now
	}
	return out, next
}

// Next returns the time at which Tick has something to do, maybe in the past; zero if never.
func (p *Peer) Next() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next()
}

func (p *Peer) next() (first time.Time) {
	for _, at := range p.deadline {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// Sent tells that datagrams were sealed and sent: once per batch. keepalive tells that all of them
// were empty. If initiate is true it is time for a new key: call Initiate. Messages that Receive,
// Initiate and Tick return are accounted for already.
func (p *Peer) Sent(now time.Time, keepalive bool) (initiate bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed {
		return false
	}
	p.sent(now)
	if !keepalive && p.deadline[timerSilence].IsZero() {
		p.deadline[timerSilence] = now.Add(KeepaliveTimeout + RekeyTimeout + p.jitter())
	}
	k := p.current.Load()
	return k != nil && k.stale(now)
}

// Received tells that datagrams opened under k: once per batch and key. keepalive tells that all
// of them were empty. If established is true, k has come into use for sending: send what was
// queued. If initiate is true it is time for a new key: call Initiate.
func (p *Peer) Received(now time.Time, k *Keypair, keepalive bool) (established, initiate bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed {
		return false, false
	}
	if k != nil && k == p.pending {
		p.confirm(now)
		established = true
	}
	p.received(now)
	if !keepalive {
		if p.deadline[timerKeepalive].IsZero() {
			p.deadline[timerKeepalive] = now.Add(KeepaliveTimeout)
		} else {
			p.keepaliveAgain = true
		}
	}
	// Whitepaper §6.2: an initiator that only receives renews the key before it is rejected.
	c := p.current.Load()
	if c != nil && c.initiator && !p.lastMinute && now.Sub(c.created) >= lastMinuteAge {
		p.lastMinute = true
		initiate = true
	}
	return established, initiate
}

// sent notes that something authenticated leaves for the peer.
func (p *Peer) sent(now time.Time) {
	p.deadline[timerKeepalive] = time.Time{}
	p.touch(now)
}

// received notes that something authenticated came from the peer.
func (p *Peer) received(now time.Time) {
	p.deadline[timerSilence] = time.Time{}
	p.touch(now)
}

func (p *Peer) touch(now time.Time) {
	if p.keepalive > 0 {
		p.deadline[timerPersistent] = now.Add(p.keepalive)
	}
}

// giveUp stops trying; the next packet or keepalive starts anew.
func (p *Peer) giveUp(now time.Time) {
	p.dropHandshake()
	p.deadline[timerKeepalive] = time.Time{}
	if p.deadline[timerZero].IsZero() {
		p.deadline[timerZero] = now.Add(ZeroAfterTime)
	}
}

// jitter returns between 0 and MaxJitter, and 0 if randomness fails, which costs some handshakes.
func (p *Peer) jitter() time.Duration {
	b := p.random[:] // a local one would escape: this runs for every batch
	if _, err := io.ReadFull(&p.machine.rand, b); err != nil {
		return 0
	}
	return time.Duration(binary.LittleEndian.Uint32(b)) % (MaxJitter + 1)
}

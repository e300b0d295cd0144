// SPDX-License-Identifier: Apache-2.0

package session

import (
	"time"

	"github.com/flynn/noise"
)

// MaxPreshared is how many pre-shared keys a peer may have at a time. Reading a response costs two Curve25519 computations for
// each, in the worst case.
const MaxPreshared = 4

// RevokeGrace is how long a session lives on whose pre-shared key was taken away: enough for two tries to replace it.
const RevokeGrace = 12 * time.Second

// revokeTurn is how much later the responder of a session tries to replace it, so that the two do not collide.
const revokeTurn = time.Second

// SetPreshared replaces the peer's pre-shared keys, of which there must be 1 to [MaxPreshared]; of more only the first count.
// This side answers initiations with the first one, which the peer must have, and takes responses made with any. Sessions made
// with a key that is still there stay as they are. The others are renewed at once, so by the next [Peer.Tick], if they can
// still be used, and forgotten after [RevokeGrace], whether that succeeded or not. Doing it again with the same keys does
// nothing. The keys are copied.
func (p *Peer) SetPreshared(keys []PresharedKey, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed || len(keys) == 0 {
		return
	}
	next := make([]*PresharedKey, 0, MaxPreshared)
	for _, k := range keys[:min(len(keys), MaxPreshared)] {
		next = append(next, p.held(k))
	}
	p.preshared = next
	for _, k := range p.sessions() {
		switch {
		case p.isHeld(k.preshared):
			k.revoked = time.Time{}
		case k.revoked.IsZero():
			k.revoked = now
		}
	}
	p.forgetRevoked(now)
	k := p.current.Load()
	if k == nil || k.revoked.IsZero() || p.Key(now) == nil || !p.deadline[timerRetransmit].IsZero() {
		return
	}
	p.tryingSince = now
	p.deadline[timerRetransmit] = now.Add(p.jitter())
	if !k.initiator {
		p.deadline[timerRetransmit] = now.Add(revokeTurn + p.jitter())
	}
}

// held returns the peer's copy of k, a new one if it has none. Called under mu.
func (p *Peer) held(k PresharedKey) *PresharedKey {
	for _, mine := range p.preshared {
		if *mine == k {
			return mine
		}
	}
	for _, s := range p.sessions() { // taken away a moment ago, and back
		if *s.preshared == k {
			return s.preshared
		}
	}
	return &k
}

func (p *Peer) isHeld(k *PresharedKey) bool {
	for _, mine := range p.preshared {
		if mine == k {
			return true
		}
	}
	return false
}

// sessions returns all that the peer has. Called under mu.
func (p *Peer) sessions() []*Keypair {
	all := make([]*Keypair, 0, 2+len(p.previous))
	for _, k := range append([]*Keypair{p.current.Load(), p.pending}, p.previous[:]...) {
		if k != nil {
			all = append(all, k)
		}
	}
	return all
}

// readResponse tries the peer's pre-shared keys on a response; the one returned is nil if none fits. A try that fails leaves the
// handshake as it was. Called under mu.
func (p *Peer) readResponse(hs *noise.HandshakeState, msg []byte) (toThem, toUs *noise.CipherState, with *PresharedKey) {
	for _, k := range p.preshared {
		if err := hs.SetPresharedKey(k[:]); err != nil {
			return nil, nil, nil
		}
		if _, toThem, toUs, err := hs.ReadMessage(nil, msg[responseNoiseAt:responseNoiseEnd]); err == nil {
			return toThem, toUs, k
		}
	}
	return nil, nil, nil
}

// forgetRevoked drops the sessions whose pre-shared key was taken away long enough ago. Called under mu.
func (p *Peer) forgetRevoked(now time.Time) {
	p.deadline[timerRevoked] = time.Time{}
	ended := func(k *Keypair) bool {
		if k == nil || k.revoked.IsZero() {
			return false
		}
		end := k.revoked.Add(RevokeGrace)
		if !now.Before(end) {
			return true
		}
		if at := p.deadline[timerRevoked]; at.IsZero() || end.Before(at) {
			p.deadline[timerRevoked] = end
		}
		return false
	}
	if k := p.current.Load(); ended(k) {
		p.drop(p.current.Swap(nil))
	}
	if ended(p.pending) {
		p.drop(p.pending)
		p.pending = nil
	}
	kept := 0
	for _, k := range p.previous {
		if ended(k) {
			p.drop(k)
		} else if k != nil {
			p.previous[kept] = k
			kept++
		}
	}
	clear(p.previous[kept:])
}

// SPDX-License-Identifier: Apache-2.0

package session

import "time"

const (
	// AgainLimit is how many initiations Again sends at most within RekeyTimeout.
	AgainLimit = 8
	// againGap is the least time between two initiations, so that the peer does not take them for a flood.
	againGap = 2 * flood
)

// Again is for when it has turned out that what was sent to the peer may have gone where it cannot arrive: if a handshake is in flight, or about to
// be tried again, and the last message of one was sent at least after ago, it begins anew without waiting for RekeyTimeout. It returns the
// initiation, appended to out[:0], and true; or false if there is nothing to be sent now. It sends AgainLimit within RekeyTimeout at
// most, and Tick what it puts off. The whitepaper does not have it: it is for peers whose addresses are found out by other means.
func (p *Peer) Again(out []byte, after time.Duration, now time.Time) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out = out[:0]
	due := p.deadline[timerRetransmit]
	if p.removed || due.IsZero() || !p.lastHandshake.IsZero() && within(now, p.lastHandshake, after) {
		return out, false
	}
	if !within(now, p.againSince, RekeyTimeout) {
		p.againSince, p.renewals = now, 0
	}
	if p.renewals >= AgainLimit {
		return out, false
	}
	if !p.lastHandshake.IsZero() && within(now, p.lastHandshake, againGap) {
		if soon := p.lastHandshake.Add(againGap); soon.Before(due) {
			p.renewals++
			p.deadline[timerRetransmit] = soon
		}
		return out, false
	}
	p.renewals++
	out = p.sendInitiation(out, now)
	return out, len(out) > 0
}

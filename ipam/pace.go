// SPDX-License-Identifier: Apache-2.0

package ipam

import "time"

// slowest is the longest answer that pace takes into account: what took longer was away, or asked in vain before.
const slowest = 500 * time.Millisecond

// pace is how long others take to record a grant, from when they were first asked until one of them says so, smoothed as round-trip times are
// (RFC 6298 §2). Where a machine or a disk is slow because many nodes start at once, asking them again before they have come to it makes it only slower.
// An answer to a question that was repeated counts from the first time, so the estimate is too high rather than too low; slowest bounds it.
type pace struct{ smoothed time.Duration }

// note takes into account that an answer has come to what was asked at begun; the zero Time if this run has not asked.
func (p *pace) note(begun, now time.Time) {
	if begun.IsZero() {
		return
	}
	d := min(max(now.Sub(begun), 0), slowest)
	if p.smoothed == 0 {
		p.smoothed = d
		return
	}
	p.smoothed += (d - p.smoothed) / 8
}

// wait returns how long to wait for answers after having asked for the nth time, n from 0 to 6: twice as long each time, patience at least and abstain at most.
func (p *pace) wait(n int) time.Duration {
	return min(max(patience, 2*p.smoothed)<<n, abstain)
}

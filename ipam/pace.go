// SPDX-License-Identifier: Apache-2.0

package ipam

import "time"

// pace is how long others take to record a grant, from when they were first asked until one of them says so, smoothed as round-trip times are
// (RFC 6298 §2). Where a machine or a disk is slow because many nodes start at once, asking them again before they have come to it makes it only slower.
// An answer to a question that was repeated counts from the first time, so the estimate is too high rather than too low; it is forgotten as quicker
// answers come in.
type pace struct{ smoothed time.Duration }

// note takes an answer into account that took d.
func (p *pace) note(d time.Duration) {
	if p.smoothed == 0 {
		p.smoothed = d
		return
	}
	p.smoothed += (d - p.smoothed) / 8
}

// wait returns how long to wait for answers after having asked for the nth time: twice as long each time, patience at least and abstain at most.
func (p *pace) wait(n int) time.Duration {
	return min(max(patience, 2*p.smoothed)<<n, abstain)
}

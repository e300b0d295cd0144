// SPDX-License-Identifier: Apache-2.0

package bypass

import "time"

// keepEvery is how often the entry of a connection is looked at again that was taken around the stack.
const keepEvery = 30 * time.Second

// timeouts are those of connection tracking's entries of TCP.
type timeouts struct {
	established time.Duration
	short       time.Duration // of one that is established and of which it believes that something is lacking
	closing     time.Duration // after a reset
}

// A kept entry is one of connection tracking that has been marked. Tracking has not seen all of its packets, so it may believe that one of them was
// never acknowledged, and forget the connection minutes after it has gone quiet and not days. Kept entries get back what they should have.
type kept struct {
	due     time.Time
	expires time.Time // when it would, as it was when it was looked at last; zero: it was not
}

// judge is told how long the entry of an established connection lasts from now on, and says whether it is to last as long as that of a connection should.
func (k kept) judge(now time.Time, left time.Duration, t timeouts) (restore bool, next kept) {
	next = kept{due: now.Add(keepEvery), expires: now.Add(left)}
	switch {
	case t.established <= t.short:
	case left <= t.closing && t.closing < t.short:
		// It was reset. If that has counted nothing follows.
		next.expires = k.expires
	case left <= t.short && (k.expires.IsZero() || k.expires.Sub(now) > t.short+time.Minute):
		next.expires = now.Add(t.established)
		return true, next
	}
	return false, next
}

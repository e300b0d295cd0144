// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	// SmallProbe is the size in bytes of the IP packets of small probes, which pass wherever anything does.
	SmallProbe = 128

	// inRow answers in a row, in each family, prove a way; proveGap apart.
	inRow    = 3
	proveGap = 150 * time.Millisecond
	// A way that failed has to answer for cleanFor without a loss, by probes cleanGap apart.
	cleanFor = 3 * time.Second
	cleanGap = 500 * time.Millisecond
	// giveUp is how long an attempt to prove a way lasts at most, if some are answered; if none is, silence.
	giveUp = 3 * time.Second
	// lostAfter is when a probe of an attempt counts as lost.
	lostAfter = time.Second

	// watchGap is how often a way is probed that is in use, and idleGap when there is no traffic; restGap that of one which could be, of
	// a peer without traffic.
	watchGap = 300 * time.Millisecond
	idleGap  = 10 * time.Second
	restGap  = time.Minute
	// In doubt, when doubtAfter has passed without an answer, it is probed more often; it has failed when silence has passed. A way that an earlier run has left has
	// longer, as not everything works at once at a start.
	doubtAfter    = 450 * time.Millisecond
	doubtGap      = 200 * time.Millisecond
	silence       = 900 * time.Millisecond
	silenceTrust  = 5 * time.Second
	unanswered    = 3 // that many at least
	smallAfter    = 250 * time.Millisecond
	maxUnanswered = 32 // are kept in mind

	// activeFor is how long there is traffic, after it was seen.
	activeFor = 5 * time.Second
	// againActive and againIdle are after how long a way is tried again that could not be proven, but for the first hasty times, as the other node may be about to start:
	// after againFirst, and twice as long each time. failedFirst is after how long one is that has failed, twice
	// as long each time, up to failedMost, until it has not for wellFor.
	againActive = 10 * time.Second
	againIdle   = time.Minute
	againFirst  = 2 * time.Second
	hasty       = 2
	failedFirst = 2 * time.Second
	failedMost  = time.Minute
	wellFor     = time.Minute

	// In any second at most the sums of both leave: 120 and 80, so 200 of full size, and 2000 small ones. When there are none to spare it is tried again
	// after starvedWait.
	watchRate, watchBurst = 80, 40
	proveRate, proveBurst = 60, 20
	smallRate, smallBurst = 1600, 400
	starvedWait           = 20 * time.Millisecond
)

// kernelKinds are the kinds that need proof, best first.
func kernelKinds() []Kind { return []Kind{Direct, VXLAN} }

// state is how far a trial is.
type state uint8

const (
	resting state = iota // not proven; tried again at some time
	proving              // an attempt goes on
	trusted              // adopted: in use without proof
	proven
)

// trial is what is known of one way to a peer.
type trial struct {
	way      Way
	families []family // as in way.Probe

	state state
	since time.Time // of the state
	last  time.Time // when full probes were sent last
	// lastSmall is when small ones were.
	lastSmall time.Time

	retry time.Time // resting: not before; zero: it depends on whether there is traffic
	fails int       // how often it has failed since it went well for long
	vain  int       // how often it has been tried in vain since it was proven last
	clean bool      // proving: without a loss
	lossy bool      // proving: there was a loss
	why   string    // why it is not proven
}

// family is one family of addresses on a way.
type family struct {
	to          netip.Addr
	full, small track
	streak      int    // full ones answered in a row
	fault       string // why the last full one could not leave, if none was answered since
}

// track are probes of one size.
type track struct {
	pending []asked   // not answered, since the last that was
	heard   time.Time // when the last one was sent that was answered
}

type asked struct {
	echo uint64
	at   time.Time
}

// ask notes a probe; if there are too many, one is forgotten: not the first, which tells since when there is no answer.
func (x *track) ask(echo uint64, now time.Time) (old uint64, over bool) {
	x.pending = append(x.pending, asked{echo, now})
	if len(x.pending) <= maxUnanswered {
		return 0, false
	}
	old = x.pending[1].echo
	x.pending = slices.Delete(x.pending, 1, 2)
	return old, true
}

// answer notes an answer, and returns the echoes of probes before, which will not be.
func (x *track) answer(echo uint64) (overtaken []uint64, ok bool) {
	i := slices.IndexFunc(x.pending, func(q asked) bool { return q.echo == echo })
	if i < 0 {
		return nil, false
	}
	for _, q := range x.pending[:i] {
		overtaken = append(overtaken, q.echo)
	}
	x.heard = x.pending[i].at
	x.pending = slices.Clone(x.pending[i+1:])
	return overtaken, true
}

// drop forgets probes that were sent until then.
func (x *track) drop(until time.Time) (dropped []uint64) {
	for len(x.pending) > 0 && !x.pending[0].at.After(until) {
		dropped = append(dropped, x.pending[0].echo)
		x.pending = x.pending[1:]
	}
	return dropped
}

// first returns when the first probe was sent that was not answered; false: all are.
func (x *track) first() (time.Time, bool) {
	if len(x.pending) == 0 {
		return time.Time{}, false
	}
	return x.pending[0].at, true
}

func newTrial(w Way, now time.Time) *trial {
	t := &trial{way: w, since: now, retry: now}
	for _, to := range w.Probe {
		t.families = append(t.families, family{to: to})
	}
	return t
}

// first returns when the first probe of any family was sent that was not answered, of any size.
func (t *trial) first() (at time.Time, ok bool) {
	for i := range t.families {
		for _, x := range []*track{&t.families[i].full, &t.families[i].small} {
			if f, silent := x.first(); silent && (!ok || f.Before(at)) {
				at, ok = f, true
			}
		}
	}
	return at, ok
}

// doubtful tells whether an answer is overdue.
func (t *trial) doubtful(now time.Time) bool {
	at, ok := t.first()
	return ok && now.Sub(at) >= doubtAfter
}

// usable tells whether the way may be in use.
func (t *trial) usable() bool { return t != nil && (t.state == proven || t.state == trusted) }

// heardSince tells whether all families have answered a probe that was not sent before then.
func (t *trial) heardSince(then time.Time) bool {
	return !slices.ContainsFunc(t.families, func(f family) bool { return f.full.heard.Before(then) })
}

// streaks tells whether all families have answered as often in a row as it takes.
func (t *trial) streaks() bool {
	return !slices.ContainsFunc(t.families, func(f family) bool { return f.streak < inRow })
}

// quiet tells whether packets of a family, or large ones, do not arrive: since when, and whether small ones do.
func (f *family) quiet(now time.Time, limit time.Duration) (since time.Time, hole, is bool) {
	full, lost := f.full.first()
	small, lostSmall := f.small.first()
	if lost && len(f.full.pending) >= unanswered && now.Sub(full) >= limit {
		return full, f.small.heard.After(full), true
	}
	if !lostSmall {
		return time.Time{}, false, false
	}
	since = small
	if lost && full.Before(small) {
		since = full
	}
	if n := len(f.full.pending) + len(f.small.pending); n < unanswered || now.Sub(since) < limit || f.full.heard.After(since) || f.small.heard.After(since) {
		return time.Time{}, false, false
	}
	return since, false, true
}

// lost tells whether a probe of an attempt is lost.
func (t *trial) lost(now time.Time) bool {
	if t.lossy {
		return true
	}
	return slices.ContainsFunc(t.families, func(f family) bool {
		at, silent := f.full.first()
		return silent && now.Sub(at) >= lostAfter
	})
}

// begin begins an attempt.
func (t *trial) begin(now time.Time) {
	t.state, t.since, t.lossy, t.clean = proving, now, false, t.fails > 0
	t.last, t.lastSmall = time.Time{}, time.Time{}
	for i := range t.families {
		t.families[i].streak = 0
		t.families[i].full.heard, t.families[i].small.heard = time.Time{}, time.Time{}
	}
}

// prove makes it proven.
func (t *trial) prove(now time.Time) {
	t.state, t.since, t.why, t.vain = proven, now, "", 0
}

// fail ends proof, or an attempt.
func (t *trial) fail(why string, now time.Time) {
	switch {
	case t.state == proving && !t.clean: // it has never worked
		t.retry = time.Time{}
		if t.vain++; t.vain <= hasty {
			t.retry = now.Add(againFirst << (t.vain - 1))
		}
	default:
		if t.state == proven && now.Sub(t.since) >= wellFor {
			t.fails = 0
		}
		t.fails++
		t.retry = now.Add(backoff(t.fails))
	}
	t.state, t.since, t.why = resting, now, why
}

// backoff is how long a way rests after so many failures.
func backoff(fails int) time.Duration {
	return min(failedFirst<<min(fails-1, 10), failedMost)
}

// silent says what does not arrive of a family.
func (t *trial) silent(f *family, since time.Time, hole bool) string {
	others := slices.ContainsFunc(t.families, func(o family) bool { return o.to != f.to && o.full.heard.After(since) })
	by := fmt.Sprintf("by %v", t.way)
	packets := "packets"
	if others {
		packets = "IPv4 packets"
		if f.to.Is6() {
			packets = "IPv6 packets"
		}
	}
	switch {
	case f.fault != "":
		return fmt.Sprintf("%s of %d bytes cannot leave %s since %s: %s", packets, t.way.MTU, by, clock(since), f.fault)
	case hole:
		return fmt.Sprintf("%s of %d bytes do not pass %s, small ones do", packets, t.way.MTU, by)
	case others:
		return fmt.Sprintf("no answer to %s %s since %s", packets, by, clock(since))
	}
	return fmt.Sprintf("no answer %s since %s", by, clock(since))
}

// clock returns the time of day.
func clock(t time.Time) string { return t.Local().Format(time.TimeOnly) }

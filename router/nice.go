// SPDX-License-Identifier: Apache-2.0

package router

import (
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A shard works for the programs of its host, and is interrupted by them: each acknowledgement that it delivers wakes one up that sends a little
// more, and while several streams pass they take turns so quickly that the shard never has more than a packet or two to do at a time. So
// while only streams pass its thread is nicer to itself than to them, as Open vSwitch's daemon is always. While somebody waits for a
// light packet it is not, as that one needs a processor, too; nor while it never catches up with what arrives, when it is them who would starve.

const (
	// calmNice is how much less nice a thread is while only streams pass than it was (setpriority(2): each step is a quarter more of the processor).
	calmNice = -12
	// leastNice is the least that there is.
	leastNice = -20
	// behindFor is for how long a shard that has not caught up is taken for one that will.
	behindFor = 100 * time.Millisecond
)

// nice is the shard's, and of its thread. The zero value leaves that as it is.
type nice struct {
	set    func(nice int) error // nil: cannot be set
	usual  int                  // what the thread had
	raised bool                 // it is less nice
	caught time.Time            // when there was nothing left to do
}

// begin is called by the thread with what it has, and with what sets that.
func (n *nice) begin(usual int, set func(nice int) error, now time.Time) {
	*n = nice{set: set, usual: usual, caught: now}
}

// turn decides after a turn: more tells that there is something left to do. It returns why the thread cannot be less nice, which it does not try again.
func (n *nice) turn(now time.Time, hasty, more bool) error {
	if n.set == nil {
		return nil
	}
	if !more {
		n.caught = now
	}
	raise := !hasty && now.Sub(n.caught) < behindFor
	if raise == n.raised {
		return nil
	}
	to := n.usual
	if raise {
		to = max(n.usual+calmNice, leastNice)
	}
	if err := n.set(to); err != nil {
		n.set = nil
		return err
	}
	n.raised = raise
	return nil
}

// end sets what the thread had, and tells whether it has that now.
func (n *nice) end() bool {
	return !n.raised || n.set != nil && n.set(n.usual) == nil
}

// beginNice is begin for the calling thread.
func (s *shard) beginNice() {
	const ofKernel = 20 // the system call's result is this less the nice value (getpriority(2), C library/kernel differences)
	got, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return
	}
	s.nice.begin(ofKernel-got, func(to int) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, to) }, s.r.config.Now())
}

// turnNice is turn for the calling thread.
func (s *shard) turnNice(now time.Time, more bool) {
	if err := s.nice.turn(now, s.haste.hasty, more); err != nil && s.number == 0 {
		s.r.config.Log.Info("streams share the processors with all programs as equals: they are faster where the packet threads may have a lower nice value (CAP_SYS_NICE, or LimitNICE= in a unit of systemd)",
			zap.Error(err))
	}
}

// SPDX-License-Identifier: Apache-2.0

package router

import (
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime is what the shards' threads have used of the processors, user and
// system, since Run began; 0 before it and after it. What the kernel does for the
// router in interrupts is not in it. It may be called from any goroutine.
func (r *Router) CPUTime() time.Duration {
	var sum time.Duration
	for _, s := range r.shards {
		tid := s.thread.Load()
		if tid == 0 {
			continue
		}
		var t unix.Timespec
		if err := unix.ClockGettime(threadClock(tid), &t); err == nil { // else it has just ended
			sum += time.Duration(t.Nano())
		}
	}
	return sum
}

// threadClock is the clock of the processor time of a thread of this process, as
// pthread_getcpuclockid(3) makes it: MAKE_THREAD_CPUCLOCK(tid, CPUCLOCK_SCHED) of
// Linux's include/linux/posix-timers_types.h.
func threadClock(tid int32) int32 {
	const perThread, scheduled = 4, 2
	return ^tid<<3 | perThread | scheduled
}

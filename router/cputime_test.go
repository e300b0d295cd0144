// SPDX-License-Identifier: Apache-2.0

package router

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The clock of a thread is the one that getrusage(2) tells of it.
func TestThreadClock(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sum := 0
	for begin := time.Now(); time.Since(begin) < 50*time.Millisecond; sum++ {
		runtime.KeepAlive(sum)
	}
	usage := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	r := &Router{shards: []*shard{{}, {}}} // the second one does not run
	r.shards[0].thread.Store(int32(unix.Gettid()))
	before, got := usage(), r.CPUTime()
	after := usage()
	const tick = 10 * time.Millisecond // some kernels count no finer
	if got <= 0 || got < before-tick || got > after+tick {
		t.Errorf("CPUTime says %v, getrusage %v to %v", got, before, after)
	}
	r.shards[0].thread.Store(0)
	if got := r.CPUTime(); got != 0 {
		t.Errorf("without a thread it says %v", got)
	}
}

// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A queue of a multi-queue device consists of lanes: queues in the eyes of the kernel, which spreads the flows over them by a hash. Each
// has room of its own, so that a flow that sends more than can be carried loses its own packets and delays its own, and
// those in other lanes neither wait behind it nor are dropped for it.

const (
	// maxLanes is how many there are, if the number of queues leaves room for that.
	maxLanes = 16
	// maxFiles is how many files the kernel lets be attached to a device, or be detached from it (MAX_TAP_QUEUES of
	// linux/if_tap.h, since Linux 4.8), and oldFiles how many before.
	maxFiles, oldFiles = 256, 8

	// A lane may send quantum bytes in its turn, to which packetCost is added for each packet, as small ones cost about the
	// same to carry whatever their size.
	quantum    = 160 << 10
	packetCost = 512
)

// layout is how many queues a device has, and how many lanes each of them.
type layout struct{ queues, lanes int }

// layouts are what to try in turn, if the kernel does not allow so many files, for n queues.
func layouts(n int, multiQueue bool) []layout {
	if !multiQueue {
		return []layout{{1, 1}}
	}
	list := []layout{{n, min(maxFiles/n-1, maxLanes)}}
	if n > 1 {
		list = append(list, layout{2, oldFiles/2 - 1})
	}
	return append(list, layout{1, oldFiles - 1}, layout{1, 1})
}

// turns decides which lane is read next: deficit round robin (Shreedhar and Varghese, SIGCOMM 1995). The zero value is ready.
type turns struct {
	ready  uint          // lanes that may have packets
	at     int           // whose turn it is
	credit [maxLanes]int // bytes
}

// over tells that the turn of the lane that was read last is over: a good time to see which ones are ready, as those that have become so come next.
func (t *turns) over() bool { return t.ready&(1<<t.at) == 0 || t.credit[t.at] <= 0 }

// current returns the lane to read; ok is false if none is ready.
func (t *turns) current() (lane int, ok bool) {
	if t.ready == 0 {
		return 0, false
	}
	for t.ready&(1<<t.at) == 0 || t.credit[t.at] <= 0 {
		after := t.ready &^ (1<<(t.at+1) - 1)
		if after == 0 {
			after = t.ready
		}
		t.at = bits.TrailingZeros(after)
		t.credit[t.at] = min(t.credit[t.at]+quantum, quantum)
	}
	return t.at, true
}

// took charges the lane whose turn it is for a packet of n bytes.
func (t *turns) took(n int) { t.credit[t.at] -= n + packetCost }

// yield ends the turn of the lane that was read last.
func (t *turns) yield() { t.credit[t.at] = min(t.credit[t.at], 0) }

// empty ends the turn of a lane that has no packets.
func (t *turns) empty() {
	t.ready &^= 1 << t.at
	t.yield()
}

// bundle makes the lanes one descriptor to wait for.
func (q *Queue) bundle() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return newError(q.name, nil, err, "waiting for %s: %v", q.name, err)
	}
	q.fd = fd
	for i, lane := range q.lanes {
		if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, lane, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			return newError(q.name, nil, err, "waiting for %s: %v", q.name, err)
		}
	}
	return nil
}

// readLanes is Read for several lanes.
func (q *Queue) readLanes(b []byte) (int, error) {
	found := true // until a lane was read to its end: whoever waits is told at once of what may have come
	for {
		if found && q.turns.over() {
			if err := q.look(); err != nil {
				return 0, err
			}
		}
		lane, ok := q.turns.current()
		if !ok {
			return 0, nil
		}
		n, errno := q.call(unix.SYS_READ, q.lanes[lane], b)
		switch errno {
		case 0:
			q.turns.took(n)
			return n, nil
		case unix.EAGAIN:
			q.turns.empty()
			found = false
		default:
			return 0, q.explain("reading from", errno)
		}
	}
}

// look finds out which lanes have packets, or errors, which reading tells.
func (q *Queue) look() error {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.closed {
		return q.explain("reading from", unix.EBADF)
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(q.fd), uintptr(unsafe.Pointer(&q.events[0])), uintptr(len(q.events)), 0, 0, 0)
		switch errno {
		case 0:
			for _, e := range q.events[:n] {
				q.turns.ready |= 1 << e.Fd
			}
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("looking for packets in %s: %w", q.name, errno)
		}
	}
}

// closeLanes closes all descriptors of a queue.
func (q *Queue) closeLanes() error {
	var errs []error
	for _, fd := range q.lanes {
		errs = append(errs, unix.Close(fd))
	}
	for _, fd := range []int{q.out, q.fd} {
		if fd >= 0 && !slices.Contains(q.lanes, fd) {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// descriptor is what newPoller asks of a Queue and a Conn.
type descriptor interface{ FD() int }

func hasFD(v any) bool {
	_, ok := v.(descriptor)
	return ok
}

// epoll is the Poller over descriptors.
type epoll struct {
	fd, wake        int
	tun, udp, light int    // -1 for none
	armed           Events // what the kernel watches for us
	events          [4]unix.EpollEvent

	mu     sync.Mutex // of Wake against Close
	closed bool
}

// newPoller makes a Poller over a Queue and a Conn that have descriptors: for a shard, or without a Queue for the goroutine of control datagrams.
func newPoller(q Queue, c Conn) (Poller, error) {
	e, err := newEpoll(q, c)
	switch {
	case err != nil:
		return nil, err
	case q != nil:
		return e, nil
	}
	return park(e)
}

func newEpoll(q Queue, c Conn) (*epoll, error) {
	e := &epoll{fd: -1, wake: -1, tun: -1, light: -1, armed: ReadUDP}
	udp, ok := c.(descriptor)
	if !ok || q != nil && !hasFD(q) {
		return nil, errors.New("epoll: a queue or conn without a descriptor")
	}
	e.udp = udp.FD()
	watched := []int{e.udp}
	if l, ok := c.(lightConn); ok && q != nil && l.LightFD() >= 0 {
		e.light = l.LightFD()
		watched = append(watched, e.light)
	}
	if tun, ok := q.(descriptor); ok {
		e.tun = tun.FD()
		e.armed |= ReadTUN
		watched = append(watched, e.tun)
	}
	var err error
	if e.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if e.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", err), e.Close())
	}
	for _, fd := range append(watched, e.wake) {
		if err := unix.EpollCtl(e.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return nil, errors.Join(fmt.Errorf("epoll: %w", err), e.Close())
		}
	}
	return e, nil
}

func (e *epoll) Wait(want Events, timeout time.Duration) (Events, error) {
	if err := e.arm(want); err != nil {
		return 0, err
	}
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	got, _, err := e.poll(ms)
	return got, err
}

// poll waits for as many milliseconds at longest, for ever if that is negative. some says that there was an event, of Wake if none of got.
func (e *epoll) poll(ms int) (got Events, some bool, err error) {
	n, err := unix.EpollWait(e.fd, e.events[:], ms)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, false, fmt.Errorf("epoll: %w", err)
	}
	for _, ev := range e.events[:max(n, 0)] {
		switch int(ev.Fd) {
		case e.tun:
			got |= ReadTUN // errors too: reading tells which
		case e.light:
			got |= ReadLight
		case e.udp:
			if ev.Events&unix.EPOLLOUT != 0 {
				got |= WriteUDP
			}
			if ev.Events&^unix.EPOLLOUT != 0 {
				got |= ReadUDP
			}
		case e.wake:
			var b [8]byte
			if _, err := unix.Read(e.wake, b[:]); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				return 0, false, fmt.Errorf("eventfd: %w", err)
			}
		}
	}
	return got, n > 0, nil
}

// arm tells the kernel what to watch. That changes only when a socket fills up or empties.
func (e *epoll) arm(want Events) error {
	want &^= ReadLight // always
	if changed := want ^ e.armed; changed == 0 {
		return nil
	} else if changed&ReadTUN != 0 {
		if err := e.modify(e.tun, want&ReadTUN != 0, false); err != nil {
			return err
		}
	}
	if err := e.modify(e.udp, want&ReadUDP != 0, want&WriteUDP != 0); err != nil {
		return err
	}
	e.armed = want
	return nil
}

func (e *epoll) modify(fd int, read, write bool) error {
	var events uint32
	if read {
		events |= unix.EPOLLIN
	}
	if write {
		events |= unix.EPOLLOUT
	}
	err := unix.EpollCtl(e.fd, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBADF) { // what was closed tells so to whoever uses it next
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

func (e *epoll) Wake() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// It can fail only because the counter is full, and then Wait returns anyway.
	_, _ = unix.Write(e.wake, one[:])
}

func (e *epoll) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	var errs []error
	for _, fd := range []int{e.fd, e.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

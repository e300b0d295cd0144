// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// parked is an epoll whose waiting goroutine leaves its thread, and waits where all goroutines of the process wait for descriptors. That is for who waits often
// and for a short time: while a thread blocks in a system call of its own, Go's scheduler looks after it for 10 ms (sysmon), dozens of times. A shard, which is a thread, would wake up later
// by it.
type parked struct {
	*epoll
	file *os.File // is e.fd
	raw  syscall.RawConn
}

// park takes e over, also when it fails.
func park(e *epoll) (Poller, error) {
	fd, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), e.Close())
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else it is no file to wait for
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), unix.Close(fd), e.Close())
	}
	p := &parked{epoll: e, file: os.NewFile(uintptr(fd), "epoll")}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), p.Close())
	}
	return p, nil
}

func (p *parked) Wait(want Events, timeout time.Duration) (got Events, err error) {
	if timeout == 0 {
		return p.epoll.Wait(want, 0)
	}
	if err := p.arm(want); err != nil {
		return 0, err
	}
	var end time.Time
	if timeout > 0 {
		end = time.Now().Add(timeout)
	}
	if err := p.file.SetReadDeadline(end); err != nil {
		return 0, fmt.Errorf("epoll: %w", err)
	}
	werr := p.raw.Read(func(uintptr) (some bool) {
		got, some, err = p.poll(0)
		return some || err != nil
	})
	switch {
	case err != nil:
		return 0, err
	case werr != nil && !errors.Is(werr, os.ErrDeadlineExceeded):
		return 0, fmt.Errorf("epoll: %w", werr)
	}
	return got, nil
}

func (p *parked) Close() error {
	err := p.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	return errors.Join(err, p.epoll.Close())
}

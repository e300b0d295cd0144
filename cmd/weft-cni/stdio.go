// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	inputWait   = 10 * time.Second // for a runtime that does not close its end
	versionWait = time.Second      // VERSION is answered without
	outputWait  = 10 * time.Second // for one that does not read
)

// input reads a descriptor for some time only. It does not change its mode, as others may have it too.
type input struct {
	fd    int
	until time.Time
}

// newInput returns what the runtime writes to fd. For VERSION that may be nobody at a terminal.
func newInput(fd int, version bool) io.Reader {
	wait := inputWait
	if version {
		wait = versionWait
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFCHR {
			return strings.NewReader("")
		}
	}
	return &input{fd: fd, until: time.Now().Add(wait)}
}

func (i *input) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	fds := []unix.PollFd{{Fd: int32(i.fd), Events: unix.POLLIN}}
	for {
		left := time.Until(i.until)
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		ready, err := unix.Poll(fds, int(left.Milliseconds())+1)
		n := -1
		if ready > 0 {
			n, err = unix.Read(i.fd, b)
		}
		switch {
		case n == 0:
			return 0, io.EOF
		case n > 0:
			return n, nil
		case err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN):
			return 0, err
		}
	}
}

// output writes to a descriptor, waiting for who reads no longer than outputWait in all, also where a write would block. A runtime that has closed its end is an
// error, not the end of the process, as os.Stdout has it: what was begun for it is undone.
type output int

// outputPiece bounds a write, in bytes: a pipe that poll calls writable takes as much without blocking (PIPE_BUF).
const outputPiece = 4096

func (o output) Write(b []byte) (int, error) { return o.write(b, time.Now().Add(outputWait)) }

func (o output) write(b []byte, until time.Time) (int, error) {
	fds := []unix.PollFd{{Fd: int32(o), Events: unix.POLLOUT}}
	done := 0
	for done < len(b) {
		ready, err := unix.Poll(fds, max(0, int(time.Until(until).Milliseconds())))
		switch {
		case err == nil && ready == 0:
			return done, os.ErrDeadlineExceeded
		case err == nil:
			var n int
			n, err = unix.Write(int(o), b[done:min(len(b), done+outputPiece)])
			done += max(n, 0)
		}
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return done, err
		}
	}
	return done, nil
}

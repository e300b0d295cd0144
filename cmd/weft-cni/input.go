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
)

// input reads a file for some time only. It does not make the file non-blocking, as others may have it too.
type input struct {
	file  *os.File
	until time.Time
}

// newInput returns what the runtime writes to f. For VERSION that may be nobody at a terminal.
func newInput(f *os.File, version bool) io.Reader {
	wait := inputWait
	if version {
		wait = versionWait
		if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice != 0 {
			return strings.NewReader("")
		}
	}
	return &input{file: f, until: time.Now().Add(wait)}
}

func (i *input) Read(b []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(i.file.Fd()), Events: unix.POLLIN}}
	for {
		left := time.Until(i.until)
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return 0, err
		case n > 0:
			return i.file.Read(b)
		}
	}
}

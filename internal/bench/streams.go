// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// streamBuffer is what a stream writes and reads at once, in bytes.
const streamBuffer = 256 << 10

// sendStreams writes to all connections for the phase's time, or until its
// bytes are used up, which capped tells, and then closes their writing sides.
func (s *session) sendStreams(p Phase, conns []net.Conn) (capped bool, err error) {
	until := time.Now().Add(p.Time)
	var left atomic.Int64
	left.Store(p.Bytes)
	var used atomic.Bool
	payload := make([]byte, streamBuffer)
	err = each(conns, func(c net.Conn) error {
		if err := c.SetWriteDeadline(until); err != nil {
			return err
		}
		for {
			n := min(int64(len(payload)), left.Add(-int64(len(payload)))+int64(len(payload)))
			if n <= 0 {
				used.Store(true)
				break
			}
			if _, err := c.Write(payload[:n]); errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				return fmt.Errorf("the stream broke: %w", err)
			}
		}
		if w, ok := c.(interface{ CloseWrite() error }); ok {
			return w.CloseWrite()
		}
		return nil
	})
	return used.Load(), err
}

// takeStreams reads from all connections for the phase's time, counted from the
// first byte on, or until the senders have ended or the phase's bytes are there.
func (s *session) takeStreams(p Phase, conns []net.Conn) (bytes int64, elapsed time.Duration, err error) {
	s.taken.Store(0)
	var begin time.Time
	var first sync.Once
	var last atomic.Int64 // since begin
	until := time.Now().Add(patience)
	for _, c := range conns { // before any of them begins: the first byte moves the deadlines of all
		if err := c.SetReadDeadline(until); err != nil {
			return 0, time.Microsecond, fmt.Errorf("the stream broke: %w", err)
		}
	}
	err = each(conns, func(c net.Conn) error {
		buf := make([]byte, streamBuffer)
		for {
			n, err := c.Read(buf)
			if n > 0 {
				first.Do(func() {
					begin = time.Now()
					for _, c := range conns {
						_ = c.SetReadDeadline(begin.Add(p.Time)) // one that is closed has ended
					}
				})
				s.alive.Store(true)
				if total := s.taken.Add(int64(n)); total >= p.Bytes {
					err = io.EOF
				}
				raise(&last, int64(time.Since(begin)))
			}
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case errors.Is(err, os.ErrDeadlineExceeded):
				if s.taken.Load() == 0 {
					return fmt.Errorf("nothing arrived within %v", patience)
				}
				raise(&last, int64(p.Time))
				return nil
			case err != nil:
				return fmt.Errorf("the stream broke: %w", err)
			}
		}
	})
	return s.taken.Load(), max(time.Duration(last.Load()), time.Microsecond), err
}

// raise makes v at least n.
func raise(v *atomic.Int64, n int64) {
	for {
		was := v.Load()
		if n <= was || v.CompareAndSwap(was, n) {
			return
		}
	}
}

// each runs f for all connections at once and returns the first error.
func each(conns []net.Conn, f func(net.Conn) error) error {
	errs := make(chan error, len(conns))
	for _, c := range conns {
		go func() { errs <- f(c) }()
	}
	var first error
	for range conns {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

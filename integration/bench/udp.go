// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

const (
	udpBuffer  = 8 << 20                // bytes that the receiver's socket holds, so that it is not what loses
	udpWarmUp  = 50 * time.Millisecond  // from the first datagram on; it does not count
	udpSettle  = 100 * time.Millisecond // without a datagram: nothing more comes
	udpTimeout = 20 * time.Millisecond  // of one recvmmsg(2)
	maxPayload = 2048                   // bytes that the receiver makes room for
)

var errNothing = errors.New("no datagram arrived")

// datagrams is what one measurement of UDP saw.
type datagrams struct {
	sent    int64
	offered float64 // a second
	rate    float64 // delivered a second, while all of it ran
	loss    float64 // share of those sent that never arrived
}

// sink counts datagrams in a thread of its own.
type sink struct {
	addr  netip.AddrPort
	count atomic.Int64
	stop  atomic.Bool
	done  sync.WaitGroup
	err   error // when done
}

// newSink starts counting in the namespace at the address, on any port. It answers the first datagram if it is told to.
func newSink(in *lab.Namespace, addr netip.Addr, answers bool) (*sink, error) {
	var fd int
	err := in.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(udpTimeout.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4()}))
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	own, ok := name.(*unix.SockaddrInet4)
	if err == nil && !ok {
		err = fmt.Errorf("bound to %T", name)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	s := &sink{addr: netip.AddrPortFrom(addr, uint16(own.Port))}
	s.done.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if answers {
			s.err = s.answer(fd)
		}
		if s.err == nil {
			s.err = s.receive(fd)
		}
		_ = unix.Close(fd)
	})
	return s, nil
}

// answer waits for the first datagram and sends one back.
func (s *sink) answer(fd int) error {
	buf := make([]byte, maxPayload)
	for !s.stop.Load() {
		_, from, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case err == nil:
			s.count.Add(1)
			return unix.Sendto(fd, buf[:1], 0, from)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		default:
			return err
		}
	}
	return nil
}

func (s *sink) receive(fd int) error {
	m := messages(floodBatch*2, maxPayload)
	for !s.stop.Load() {
		n, err := mmsg(unix.SYS_RECVMMSG, fd, m, unix.MSG_WAITFORONE)
		switch {
		case err == nil:
			s.count.Add(int64(n))
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		default:
			return err
		}
	}
	return nil
}

// close ends the counting and returns what went wrong with it.
func (s *sink) close() error {
	s.stop.Store(true)
	s.done.Wait()
	return s.err
}

// settle waits until nothing more arrives and returns the count.
func (s *sink) settle(ctx context.Context) (int64, error) {
	for last := int64(-1); ; {
		n := s.count.Load()
		if n == last {
			return n, nil
		}
		last = n
		if err := sleep(ctx, udpSettle); err != nil {
			return 0, err
		}
	}
}

// startFlood starts a sender process; its answer goes to out.
func startFlood(from *lab.Namespace, to netip.AddrPort, size int, rate float64, length time.Duration, out, errs *strings.Builder) (*lab.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return from.Start(lab.Command{
		Path: self, Stdout: out, Stderr: errs,
		Args: []string{floodCommand, "-to", to.String(), "-size", fmt.Sprint(size), "-rate", fmt.Sprint(rate), "-length", length.String()},
	})
}

// udp sends datagrams of size bytes at the rate, or as fast as it goes if that is 0, and counts what arrives.
func udp(ctx context.Context, c *contender, size int, rate float64, length time.Duration) (d datagrams, err error) {
	s, err := newSink(c.to, c.addr, c.answers)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var out, errs strings.Builder
	p, err := startFlood(c.from, s.addr, size, rate, length+2*udpWarmUp, &out, &errs)
	if err != nil {
		return d, err
	}
	defer p.Kill()
	if err := s.first(ctx); err != nil {
		return d, err
	}
	if err := sleep(ctx, udpWarmUp); err != nil {
		return d, err
	}
	start, before := time.Now(), s.count.Load()
	if err := sleep(ctx, length); err != nil {
		return d, err
	}
	d.rate = float64(s.count.Load()-before) / time.Since(start).Seconds()
	code, err := p.Wait(within)
	if err != nil {
		return d, err
	}
	if code != 0 {
		return d, fmt.Errorf("the sender ended with code %d: %s", code, errs.String())
	}
	var answer sent
	if err := json.Unmarshal([]byte(out.String()), &answer); err != nil {
		return d, err
	}
	total, err := s.settle(ctx)
	if err != nil {
		return d, err
	}
	if total == 0 || answer.Datagrams == 0 {
		return d, errNothing
	}
	d.sent = answer.Datagrams
	d.offered = float64(answer.Datagrams) / answer.Seconds
	d.loss = max(0, 1-float64(total)/float64(answer.Datagrams))
	return d, nil
}

// first waits for the first datagram.
func (s *sink) first(ctx context.Context) error {
	for deadline := time.Now().Add(within); s.count.Load() == 0; {
		if time.Now().After(deadline) {
			return errNothing
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

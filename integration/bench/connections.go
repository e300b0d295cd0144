// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// callTimeout is how long an end may wait for the other one's byte.
const callTimeout = 5 * time.Second

// connections is what one measurement of new connections saw.
type connections struct {
	rate float64 // a second
	cpu  float64 // seconds of all processors for each, whoever used them
}

// calls makes TCP connections from one namespace to a server in another one, on each of the ports one after the other: it connects, sends a byte, gets one
// back, and closes. Blocking sockets in threads of their own keep what is not the kernel's small.
func calls(ctx context.Context, from, to *lab.Namespace, addr netip.Addr, ports []uint16, length time.Duration) (c connections, err error) {
	var listeners []int
	defer func() {
		for _, fd := range listeners {
			_ = unix.Close(fd)
		}
	}()
	err = to.Do(func() error {
		for _, p := range ports {
			fd, err := listen(netip.AddrPortFrom(addr, p))
			if err != nil {
				return fmt.Errorf("listening on %v, port %d: %w", addr, p, err)
			}
			listeners = append(listeners, fd)
		}
		return nil
	})
	if err != nil {
		return c, err
	}
	var stop atomic.Bool
	var made atomic.Int64
	var mu sync.Mutex
	fail := func(e error) {
		stop.Store(true)
		mu.Lock()
		defer mu.Unlock()
		err = errors.Join(err, e)
	}
	var servers, clients sync.WaitGroup
	for i, fd := range listeners {
		servers.Go(func() {
			for {
				if e := answer(fd); e != nil {
					if !errors.Is(e, unix.EINVAL) { // shut down
						fail(fmt.Errorf("the server's end: %w", e))
					}
					return
				}
			}
		})
		clients.Go(func() {
			e := from.Do(func() error {
				for !stop.Load() {
					if err := call(netip.AddrPortFrom(addr, ports[i])); err != nil {
						return err
					}
					made.Add(1)
				}
				return nil
			})
			if e != nil {
				fail(fmt.Errorf("connecting to %v, port %d: %w", addr, ports[i], e))
			}
		})
	}
	c, e := count(ctx, &made, length)
	stop.Store(true)
	clients.Wait()
	for _, fd := range listeners {
		_ = unix.Shutdown(fd, unix.SHUT_RD)
	}
	servers.Wait()
	return c, errors.Join(e, err)
}

// count counts what is made, once it is warm.
func count(ctx context.Context, made *atomic.Int64, length time.Duration) (c connections, err error) {
	for deadline := time.Now().Add(within); made.Load() == 0 && time.Now().Before(deadline); {
		if err := sleep(ctx, time.Millisecond); err != nil {
			return c, err
		}
	}
	if err := sleep(ctx, callWarmUp); err != nil {
		return c, err
	}
	whole, err := readProcessors()
	if err != nil {
		return c, err
	}
	start, before := time.Now(), made.Load()
	if err := sleep(ctx, length); err != nil {
		return c, err
	}
	for made.Load() == before && time.Since(start) < within { // on a machine that has no time for it
		if err := sleep(ctx, time.Millisecond); err != nil {
			return c, err
		}
	}
	n := float64(made.Load() - before)
	took := time.Since(start)
	end, err := readProcessors()
	if err == nil && n == 0 {
		err = errors.New("no connection was made")
	}
	if err != nil {
		return c, err
	}
	return connections{rate: n / took.Seconds(), cpu: end.seconds(whole) / n}, nil
}

// callWarmUp is for which connections do not count.
const callWarmUp = 100 * time.Millisecond

// listen opens a listening socket in the thread's namespace.
func listen(at netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}),
		unix.Listen(fd, 128))
	if err != nil {
		_ = unix.Close(fd)
	}
	return fd, err
}

// answer takes one connection and sends back its byte.
func answer(listener int) error {
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var b [1]byte
	if err := limit(fd); err != nil {
		return err
	}
	if err := exactly(fd, b[:], unix.Read); err != nil {
		return err
	}
	if err := exactly(fd, b[:], unix.Write); err != nil {
		return err
	}
	_, err = unix.Read(fd, b[:]) // until the client closes
	for errors.Is(err, unix.EINTR) {
		_, err = unix.Read(fd, b[:])
	}
	return err
}

// call makes one connection from the thread's namespace.
func call(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := limit(fd); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		return err
	}
	var b [1]byte
	if err := exactly(fd, b[:], unix.Write); err != nil {
		return err
	}
	return exactly(fd, b[:], unix.Read)
}

// limit sees to it that nothing waits for ever. connect(2) is limited by how often the kernel tries: with a timeout a signal would end it.
func limit(fd int) error {
	t := unix.NsecToTimeval(callTimeout.Nanoseconds())
	return errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 2))
}

// exactly does what reads or writes one byte.
func exactly(fd int, b []byte, do func(int, []byte) (int, error)) error {
	n, err := do(fd, b)
	for errors.Is(err, unix.EINTR) {
		n, err = do(fd, b)
	}
	if err == nil && n != len(b) {
		err = errors.New("the connection was closed early")
	}
	return err
}

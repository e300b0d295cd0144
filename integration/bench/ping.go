// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// pingCommand and pongCommand are the first arguments that make this program one that sends a byte to and fro, or the other end of that: processes of their
// own, with blocking system calls, so that nothing else of this process is in their times.
const (
	pingCommand = "ping"
	pongCommand = "pong"
)

// pingPong sends one byte to and fro for some time and returns how long each round trip took, sorted.
func pingPong(ctx context.Context, c *contender, length time.Duration) (times []time.Duration, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	pong, err := c.to.Start(lab.Command{Path: self, Args: []string{pongCommand, "-at", netip.AddrPortFrom(c.addr, 0).String()}, Stdout: w})
	err = errors.Join(err, w.Close())
	if err != nil {
		return nil, err
	}
	defer pong.Kill()
	if err := r.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	at, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the other end of pings at %v: %w", c.addr, err)
	}
	ctx, cancel := context.WithTimeout(ctx, length+within)
	defer cancel()
	res, err := c.from.Run(ctx, lab.Command{Path: self, Args: []string{pingCommand, "-to", at[:len(at)-1], "-length", length.String()}})
	switch {
	case err != nil:
		return nil, err
	case res.Code != 0:
		return nil, fmt.Errorf("pinging %v: %s", c.addr, res.Stderr)
	}
	if err := json.Unmarshal([]byte(res.Stdout), &times); err != nil {
		return nil, fmt.Errorf("pinging %v: %w", c.addr, err)
	}
	slices.Sort(times)
	return times, nil
}

// pong is the program of the other end. It says where it listens, and serves one connection.
func pong(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(pongCommand, flag.ContinueOnError)
	flags.SetOutput(stderr)
	at := flags.String("at", "", "address and port")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := serve(*at, stdout); err != nil {
		fmt.Fprintf(stderr, "bench pong: %v\n", err)
		return 1
	}
	return 0
}

func serve(at string, stdout io.Writer) error {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	if _, err := fmt.Fprintln(stdout, l.Addr()); err != nil {
		return err
	}
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	return blocking(conn, func(fd int) error {
		for b := make([]byte, 1); ; {
			if err := receive(fd, b); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if _, err := unix.Write(fd, b); err != nil {
				return err
			}
		}
	})
}

// ping is the program that sends first. It prints how long each round trip took, in nanoseconds.
func ping(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(pingCommand, flag.ContinueOnError)
	flags.SetOutput(stderr)
	to := flags.String("to", "", "address and port")
	length := flags.Duration("length", time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	times, err := ask(*to, *length)
	return report(pingCommand, times, err, stdout, stderr)
}

func ask(to string, length time.Duration) (times []time.Duration, err error) {
	conn, err := net.DialTimeout("tcp", to, within)
	if err != nil {
		return nil, err
	}
	err = blocking(conn, func(fd int) error {
		b := make([]byte, 1)
		for start := time.Now(); time.Since(start) < length; {
			sent := time.Now()
			if _, err := unix.Write(fd, b); err != nil {
				return err
			}
			if err := receive(fd, b); err != nil {
				return err
			}
			times = append(times, time.Since(sent))
		}
		return nil
	})
	if err == nil && len(times) == 0 {
		err = errSilent
	}
	return times, err
}

// blocking calls f with the descriptor of a connection, in blocking mode, on a thread of its own, and closes the connection.
func blocking(conn net.Conn, f func(fd int) error) error {
	file, err := unwatched(conn)
	_ = conn.Close()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return f(int(file.Fd()))
}

// receive reads one byte; io.EOF says that there will be none.
func receive(fd int, b []byte) error {
	for {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && n == 0:
			return io.EOF
		default:
			return err
		}
	}
}

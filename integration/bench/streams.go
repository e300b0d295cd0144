// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// sourceCommand and drainCommand are the first arguments that make this program one end of a stream, which is its standard input: processes of their own, with
// blocking system calls, as the programs are that people use a network for. Ends of one process would wake each other up by way of its scheduler.
const (
	sourceCommand = "source"
	drainCommand  = "drain"
)

// errSilent says that a stream stood still all the time.
var errSilent = errors.New("nothing arrived")

// streaming is TCP connections over which as much is sent as they take.
type streaming struct {
	drains []*os.File // the receivers' ends
	ends   []*lab.Process
}

// startStreams starts n of them, and returns when they are warm. The caller stops them.
func startStreams(ctx context.Context, c *contender, n int) (*streaming, error) {
	clients, servers, err := connect(ctx, c.from, c.to, c.addr, n)
	if err != nil {
		return nil, err
	}
	defer closeAll(clients, servers)
	s := &streaming{}
	for i := range n {
		if err := s.start(c, clients[i], servers[i]); err != nil {
			s.stop()
			return nil, err
		}
	}
	if err := sleep(ctx, warmUp); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// start starts the two ends of a connection, and keeps the receiver's.
func (s *streaming) start(c *contender, client, server net.Conn) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	from, err := unwatched(client)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := unwatched(server)
	if err != nil {
		return err
	}
	s.drains = append(s.drains, to)
	for _, end := range []struct {
		in      *lab.Namespace
		command string
		file    *os.File
	}{{c.to, drainCommand, to}, {c.from, sourceCommand, from}} {
		p, err := end.in.Start(lab.Command{Path: self, Args: []string{end.command}, Stdin: end.file})
		if err != nil {
			return err
		}
		s.ends = append(s.ends, p)
	}
	return nil
}

// unwatched returns a descriptor of the connection, in blocking mode, for which the runtime does not wait: net.TCPConn.File returns one that
// wakes this process up for each packet. conn is to be closed, as it is watched; the descriptor, too.
func unwatched(conn net.Conn) (f *os.File, err error) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	dup := -1
	cerr := raw.Control(func(fd uintptr) {
		if dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(dup, false)
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		if dup >= 0 {
			_ = unix.Close(dup)
		}
		return nil, os.NewSyscallError("duplicating a connection", err)
	}
	return os.NewFile(uintptr(dup), "connection"), nil
}

// received returns how many bytes the programs have read so far.
func (s *streaming) received() (sum int64, err error) {
	for _, f := range s.drains {
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, err
		}
		var n int64
		if cerr := raw.Control(func(fd uintptr) { n, err = hasRead(int(fd)) }); cerr != nil || err != nil {
			return 0, errors.Join(cerr, err)
		}
		sum += n
	}
	return sum, nil
}

// hasRead returns how many bytes have been read from a TCP connection: what has arrived less what waits (tcp(7), SIOCINQ).
func hasRead(fd int) (int64, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	waits, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return 0, os.NewSyscallError("ioctl SIOCINQ", err)
	}
	return int64(info.Bytes_received) - int64(waits), nil
}

// stop ends the programs.
func (s *streaming) stop() {
	for _, p := range s.ends {
		p.Kill()
	}
	for _, f := range s.drains {
		_ = f.Close()
	}
}

// stream sends over n connections as fast as they take it, and counts what arrives.
func stream(ctx context.Context, c *contender, n int, length time.Duration) (f flow, err error) {
	s, err := startStreams(ctx, c, n)
	if err != nil {
		return f, err
	}
	defer s.stop()
	cpu, err := cpuSeconds(c.pids())
	if err != nil {
		return f, err
	}
	whole, err := readProcessors()
	if err != nil {
		return f, err
	}
	before, err := s.received()
	if err != nil {
		return f, err
	}
	start := time.Now()
	if err := sleep(ctx, length); err != nil {
		return f, err
	}
	after, err := s.received()
	if err != nil {
		return f, err
	}
	f.gbit = float64(after-before) * 8 / 1e9
	f.rate = f.gbit / time.Since(start).Seconds()
	end, err := readProcessors()
	if err != nil {
		return f, err
	}
	f.machine = end.seconds(whole)
	used, err := cpuSeconds(c.pids())
	f.cpu = used - cpu
	if err == nil && f.gbit == 0 {
		err = errSilent
	}
	return f, err
}

// source is the program that writes to its standard input until the other end is gone.
func source(args []string, _, stderr io.Writer) int {
	return end(sourceCommand, args, unix.Write, stderr)
}

// drain is the program that reads from its standard input until the other end is gone.
func drain(args []string, _, stderr io.Writer) int { return end(drainCommand, args, unix.Read, stderr) }

func end(name string, args []string, do func(fd int, b []byte) (int, error), stderr io.Writer) int {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	if err := flags.Parse(args); err != nil {
		return 2
	}
	for b := make([]byte, block); ; {
		switch n, err := do(syscall.Stdin, b); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), err == nil && n == 0:
			return 0
		case err != nil:
			fmt.Fprintf(stderr, "bench %s: its standard input is not an end of a stream: %v\n", name, err)
			return 1
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// floodCommand is the first argument that makes this program a sender of UDP datagrams, in a process of its own.
const floodCommand = "flood"

const (
	floodBatch = 32                     // datagrams of one sendmmsg(2) at most
	floodTick  = 100 * time.Microsecond // how often a paced sender wakes up
)

// sent is what a flood answers when it ends.
type sent struct {
	Datagrams int64   `json:"datagrams"`
	Seconds   float64 `json:"seconds"`
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// messages are n buffers of size bytes for sendmmsg and recvmmsg.
func messages(n, size int) []mmsghdr {
	hdrs, iovs := make([]mmsghdr, n), make([]unix.Iovec, n)
	for i := range hdrs {
		buf := make([]byte, size)
		iovs[i].Base = &buf[0]
		iovs[i].SetLen(size)
		hdrs[i].hdr.Iov = &iovs[i]
		hdrs[i].hdr.SetIovlen(1)
	}
	return hdrs
}

// mmsg calls sendmmsg or recvmmsg, which may block, and returns how many messages it sent or got.
func mmsg(call uintptr, fd int, m []mmsghdr, flags uintptr) (int, error) {
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// flood is the program of the sender: plain datagrams over a connected socket, as many as the kernel takes or rate a second,
// none of them joined by the sender (no UDP_SEGMENT).
func flood(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(floodCommand, flag.ContinueOnError)
	flags.SetOutput(stderr)
	to := flags.String("to", "", "address and port")
	size := flags.Int("size", 64, "bytes of payload")
	rate := flags.Float64("rate", 0, "datagrams a second; 0: no limit")
	length := flags.Duration("length", time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	addr, err := netip.ParseAddrPort(*to)
	var s sent
	if err == nil {
		s, err = sendFlood(addr, *size, *rate, *length)
	}
	return report(floodCommand, s, err, stdout, stderr)
}

func sendFlood(to netip.AddrPort, size int, rate float64, length time.Duration) (sent, error) {
	if size <= 0 || rate < 0 {
		return sent{}, errors.New("size must be positive and rate not negative")
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return sent{}, err
	}
	f, err := conn.File() // in blocking mode, as a plain sender's
	_ = conn.Close()
	if err != nil {
		return sent{}, err
	}
	defer func() { _ = f.Close() }()
	fd := int(f.Fd())
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	m := messages(floodBatch, size)
	var n int64
	start := time.Now()
	for {
		elapsed := time.Since(start)
		if elapsed >= length {
			return sent{n, elapsed.Seconds()}, nil
		}
		due := int64(floodBatch)
		if rate > 0 {
			if due = min(due, int64(rate*elapsed.Seconds())-n); due <= 0 {
				time.Sleep(floodTick)
				continue
			}
		}
		k, err := mmsg(unix.SYS_SENDMMSG, fd, m[:due], 0)
		switch {
		case err == nil:
			n += int64(k)
		// A full queue, and the port unreachable of a receiver that is not there yet, are losses.
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		default:
			return sent{}, fmt.Errorf("sending to %v: %w", to, err)
		}
	}
}

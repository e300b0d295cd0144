// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// answerPatience is how many seconds the kernel may take to answer. The answers are there when it has taken the requests.
	answerPatience = 10
	// answerSize is more than the kernel puts into one datagram (NLMSG_GOODSIZE, and what it makes of dumps: 32 KiB).
	answerSize = 64 << 10
	// kernelPort is the address of the kernel on a netlink socket.
	kernelPort = 0
)

// A line is a netlink socket of one namespace by which several requests go to the kernel at once: one system call, and one turn for
// the lock of the kernel's network configuration after the other, with nobody to wake in between. It is not for concurrent use.
type line struct {
	fd    int
	seq   uint32
	buf   []byte
	heard int // bytes of answers
}

// line opens a line, which the caller closes.
func (n namespace) line() (*line, error) {
	l := &line{fd: -1}
	err := n.visit(func() (err error) {
		l.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		err = unix.SetsockoptTimeval(l.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerPatience})
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return l, nil
}

func (l *line) close() {
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
	}
}

// An answer is what the kernel says to one request.
type answer struct {
	messages [][]byte // without their headers; of a dump there may be many
	err      error    // an errno, or netlink.ErrDumpInterrupted

	asked    uint16 // flags of the request
	complete bool
}

// do makes the kernel carry out all of the requests, in their order, whatever becomes of those before. The error is of the line
// itself, which is of no more use then.
func (l *line) do(requests ...*nl.NetlinkRequest) ([]answer, error) {
	first := l.seq + 1
	var out []byte
	for _, r := range requests {
		l.seq++
		r.Seq = l.seq
		out = append(out, r.Serialize()...)
		out = append(out, make([]byte, align(len(out))-len(out))...)
	}
	if err := unix.Sendto(l.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("asking the kernel: %w", err)
	}
	if l.buf == nil {
		l.buf = make([]byte, answerSize)
	}
	answers := make([]answer, len(requests))
	for i, r := range requests {
		answers[i].asked = r.Flags
	}
	for left := len(requests); left > 0; {
		n, _, flags, from, err := unix.Recvmsg(l.fd, l.buf, nil, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if sender, ok := from.(*unix.SockaddrNetlink); err == nil && (!ok || sender.Pid != kernelPort) {
			continue // a process of the workload's may send to the socket, too
		}
		if err == nil && flags&unix.MSG_TRUNC != 0 {
			err = unix.EMSGSIZE
		}
		if err != nil {
			return nil, fmt.Errorf("waiting for the kernel's answer: %w", err)
		}
		l.heard += n
		complete, ok := sortOut(l.buf[:n], first, answers)
		if !ok {
			return nil, errors.New("the kernel's answer makes no sense")
		}
		left -= complete
	}
	return answers, nil
}

// sortOut adds the messages in b to the answers that they belong to, of which the first is to the request of that number, and says how many are
// complete by that. What it keeps is copied. It is false if b makes no sense.
func sortOut(b []byte, first uint32, answers []answer) (complete int, ok bool) {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return complete, false
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return complete, false
		}
		kind, flags, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:])
		if i := seq - first; i < uint32(len(answers)) && !answers[i].complete {
			if answers[i].take(kind, flags, b[unix.SizeofNlMsghdr:size]) {
				complete++
			}
		}
		b = b[min(len(b), align(size)):]
	}
	return complete, true
}

// take adds a message to an answer, and says whether that is complete.
func (a *answer) take(kind, flags uint16, body []byte) bool {
	dump := a.asked&unix.NLM_F_DUMP == unix.NLM_F_DUMP
	if dump && flags&unix.NLM_F_DUMP_INTR != 0 {
		a.err = netlink.ErrDumpInterrupted
	}
	switch kind {
	case unix.NLMSG_ERROR, unix.NLMSG_DONE:
		if len(body) >= 4 {
			if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
				a.err = unix.Errno(-code)
			}
		}
		a.complete = true
	default:
		a.messages = append(a.messages, bytes.Clone(body))
		a.complete = !dump && a.asked&unix.NLM_F_ACK == 0
	}
	return a.complete
}

// failed returns the first error among the answers.
func failed(answers []answer) error {
	for _, a := range answers {
		if a.err != nil {
			return a.err
		}
	}
	return nil
}

// visit runs f in the namespace, as run does, but on a thread that goes back to its own namespace afterwards and lives on. If it
// cannot go back, it ends.
func (n namespace) visit(f func() error) error {
	if n == here {
		return f()
	}
	done := make(chan error, 1)
	go func() { done <- n.visited(f) }()
	return <-done
}

// visited is visit's goroutine, which ends next.
func (n namespace) visited(f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() { // see enter
		defer runtime.UnlockOSThread()
		return n.visit(f)
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("looking for the way back from a network namespace: %w; is /proc mounted?", err)
	}
	defer func() { _ = own.Close() }() // opened for reading
	if err := unix.Setns(int(n), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering a network namespace: %w; CAP_SYS_ADMIN is needed", err)
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// answerPatience is how many seconds the kernel may take to answer a dump.
	answerPatience = 10
	// answerSize is more than the kernel puts into one datagram.
	answerSize = 256 << 10
	// kernelPort is the address of the kernel on a netlink socket.
	kernelPort = 0
)

// A conn is a netlink socket to netfilter. It is not for concurrent use.
type conn struct {
	fd   int
	port uint32 // its own address
	seq  uint32
	room int // of the send buffer, in bytes
	buf  []byte

	committed func() // called after each transaction, in whatever it has ended; may be nil
}

// inside runs f in a network namespace, 0 for that of the process.
func inside(netns int, f func() error) error {
	if netns == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() { done <- visit(netns, f) }()
	return <-done
}

// visit is a goroutine that ends next; its thread goes back to its own namespace and lives on, or ends, too.
func visit(netns int, f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() { // the first thread's namespace is the process's
		defer runtime.UnlockOSThread()
		return inside(netns, f)
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("looking for the way back from a network namespace: %w; is /proc mounted?", err)
	}
	defer func() { _ = own.Close() }() // opened for reading
	if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering a network namespace: %w; CAP_SYS_ADMIN is needed", err)
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// dial opens a socket in a namespace. Groups are bits of those to listen to; protocol is unix.NETLINK_*.
func dial(netns, protocol int, groups uint32) (*conn, error) {
	c := &conn{fd: -1}
	err := inside(netns, func() (err error) {
		c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if err == nil {
		err = unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(c.fd)
	}
	if a, ok := name.(*unix.SockaddrNetlink); ok {
		c.port = a.Pid
	}
	if err == nil {
		err = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerPatience})
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return c, nil
}

func (c *conn) close() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
		c.fd = -1
	}
}

// receive reads one datagram of the kernel's, which is valid until the next call.
func (c *conn) receive(flags int) ([]byte, error) {
	if c.buf == nil {
		c.buf = make([]byte, answerSize)
	}
	for {
		n, _, got, from, err := unix.Recvmsg(c.fd, c.buf, nil, flags)
		switch sender, ok := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case !ok || sender.Pid != kernelPort: // anybody may send to the socket
		case got&unix.MSG_TRUNC != 0:
			return nil, unix.EMSGSIZE
		default:
			return c.buf[:n], nil
		}
	}
}

var errNonsense = errors.New("the kernel's answer makes no sense")

// errInterrupted is that what was read has changed meanwhile.
var errInterrupted = errors.New("it changes all the time")

// ask sends one request and calls do with each message of the answer, which is valid until do returns.
func (c *conn) ask(request buffer, dump bool, do func(h header, body []byte) error) error {
	c.seq++
	flags := binary.NativeEndian.Uint16(request[6:])
	if dump {
		flags |= unix.NLM_F_DUMP
	} else {
		flags |= unix.NLM_F_ACK
	}
	binary.NativeEndian.PutUint16(request[6:], flags)
	binary.NativeEndian.PutUint32(request[8:], c.seq)
	if err := unix.Sendto(c.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	var result error
	for done := false; !done; {
		b, err := c.receive(0)
		if err != nil {
			return err
		}
		ok := messages(b, func(h header, body []byte) bool {
			if h.seq != c.seq || done {
				return true
			}
			if h.flags&unix.NLM_F_DUMP_INTR != 0 {
				result = errInterrupted
			}
			switch h.kind {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				done = true
				if len(body) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
						result = unix.Errno(-code)
					}
				}
				return true
			}
			if err := do(h, body); err != nil && result == nil {
				result = err
			}
			return true
		})
		if !ok {
			return errNonsense
		}
	}
	return result
}

// commit makes the kernel carry out the messages of nftables in b as one transaction, or none of them.
func (c *conn) commit(b buffer) error {
	if c.committed != nil {
		defer c.committed()
	}
	var out buffer
	out = make(buffer, 0, len(b)+64)
	out.end(out.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	out = append(out, b...)
	out.end(out.begin(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	first, last, lastAt := c.seq+1, c.seq, 0
	for at := 0; at < len(out); {
		c.seq++
		binary.NativeEndian.PutUint32(out[at+8:], c.seq)
		if binary.NativeEndian.Uint16(out[at+4:]) != unix.NFNL_MSG_BATCH_END {
			last, lastAt = c.seq, at
		}
		at += align(int(binary.NativeEndian.Uint32(out[at:])))
	}
	binary.NativeEndian.PutUint16(out[lastAt+6:], binary.NativeEndian.Uint16(out[lastAt+6:])|unix.NLM_F_ACK)
	if err := c.makeRoom(len(out)); err != nil {
		return err
	}
	for {
		if _, err := c.receive(unix.MSG_DONTWAIT); err != nil {
			break // nothing of an earlier one is left
		}
	}
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sending %d bytes: %w", len(out), err)
	}
	// All answers are there when the kernel has taken the transaction.
	var result, overflow error
	acknowledged := false
	for {
		got, err := c.receive(unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if errors.Is(err, unix.ENOBUFS) { // more errors than fit
			overflow = err
			continue
		}
		if err != nil {
			return errors.Join(result, err)
		}
		ok := messages(got, func(h header, body []byte) bool {
			if h.kind != unix.NLMSG_ERROR || len(body) < 4 || h.seq-first > last-first {
				return true
			}
			code := int32(binary.NativeEndian.Uint32(body))
			acknowledged = acknowledged || h.seq == last && code == 0
			if code != 0 && result == nil {
				result = fmt.Errorf("%s: %w", out.describe(h.seq-first), unix.Errno(-code))
			}
			return true
		})
		if !ok {
			return errNonsense
		}
	}
	if result == nil && !acknowledged {
		result = errors.Join(errors.New("the kernel did not answer"), overflow)
	}
	return result
}

// makeRoom makes the send buffer large enough for one message of a size.
func (c *conn) makeRoom(size int) error {
	const spare = 64 << 10
	if size += spare; size <= c.room {
		return nil
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size); err != nil {
		err = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
		if err != nil {
			return err
		}
	}
	have, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	c.room = have
	if err == nil && have < size {
		return fmt.Errorf("a transaction of %d bytes is more than net.core.wmem_max allows: CAP_NET_ADMIN in the first user namespace is needed", size)
	}
	return err
}

// describe names the message of that number.
func (b buffer) describe(n uint32) string {
	for at := 0; at < len(b); n-- {
		size := int(binary.NativeEndian.Uint32(b[at:]))
		if n > 0 {
			at += align(size)
			continue
		}
		names := map[uint16]string{
			unix.NFT_MSG_NEWTABLE: "adding table", unix.NFT_MSG_DELTABLE: "deleting table", unix.NFT_MSG_NEWSET: "adding set",
			unix.NFT_MSG_NEWCHAIN: "adding chain", unix.NFT_MSG_DELCHAIN: "deleting chain", unix.NFT_MSG_NEWRULE: "adding a rule to",
			unix.NFT_MSG_DELRULE: "deleting rules of", unix.NFT_MSG_NEWSETELEM: "adding elements to", unix.NFT_MSG_DELSETELEM: "deleting elements of",
		}
		kind := binary.NativeEndian.Uint16(b[at+4:])
		if kind>>8 != unix.NFNL_SUBSYS_NFTABLES {
			return "committing"
		}
		var parts []string
		attributes(b[at+unix.SizeofNlMsghdr+4:at+size], func(kind uint16, v []byte) bool {
			if kind <= 3 && len(v) > 1 && v[len(v)-1] == 0 && len(parts) < 2 {
				parts = append(parts, stringOf(v))
			}
			return true
		})
		return fmt.Sprint(names[kind&0xff], " ", parts)
	}
	return "committing"
}

// grace waits until no packet is judged any more by what was current before the last transaction.
func grace() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 20e6}, nil) // a packet takes microseconds
	}
}

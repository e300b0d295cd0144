// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxBatch is how many datagrams one system call moves at most. Longer batches
// are allowed and take several.
const MaxBatch = 128

// Message is one datagram.
type Message struct {
	// Buf is where Recv puts the datagram, and what Send sends. It is the caller's and
	// not kept beyond the call.
	Buf []byte
	// N is set by Recv: the length of the datagram, which is more than len(Buf) if
	// the rest was cut off. Send ignores it.
	N int
	// Addr is where it came from, or shall go to. IPv4 is never IPv4-mapped
	// when received and may be when sent.
	Addr netip.AddrPort
}

// Conn is one UDP socket. Recv and Send may be used by one goroutine each,
// everything else by any number. Nothing here blocks.
type Conn struct {
	family int
	port   uint16

	mu     sync.RWMutex // held for reading during a system call, so that the descriptor cannot become another file's
	fd     int
	closed bool

	rx, tx batch
	zones  zones // of received link-local addresses; used by Recv
}

// batch is the memory that recvmmsg or sendmmsg works on.
type batch struct {
	headers [MaxBatch]mmsghdr
	vectors [MaxBatch]unix.Iovec
	names   [MaxBatch]unix.RawSockaddrInet6 // also for IPv4, which is shorter
}

// mmsghdr is struct mmsghdr (recvmmsg(2)).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// FD returns the descriptor, to wait for it to become readable or writable. It belongs
// to the Conn and is not valid after Close.
func (c *Conn) FD() int { return c.fd }

// Port returns the local port.
func (c *Conn) Port() uint16 { return c.port }

// IPv6 tells whether the socket reaches IPv6 hosts too.
func (c *Conn) IPv6() bool { return c.family == unix.AF_INET6 }

// Recv fills the first n of ms and returns n, which is 0 without an error if nothing has arrived.
// An error that matches os.ErrClosed is final; any other is a passing one.
func (c *Conn) Recv(ms []Message) (int, error) {
	ms = ms[:min(len(ms), MaxBatch)]
	if len(ms) == 0 {
		return 0, nil
	}
	for i := range ms {
		c.rx.set(i, ms[i].Buf, unix.SizeofSockaddrInet6)
	}
	// MSG_TRUNC makes the kernel tell the true length of what it cuts off.
	n, errno := c.call(unix.SYS_RECVMMSG, &c.rx, len(ms), unix.MSG_DONTWAIT|unix.MSG_TRUNC)
	switch errno {
	case 0:
	case unix.EAGAIN:
		return 0, nil
	default:
		return 0, c.explain("receiving", errno)
	}
	for i := range n {
		ms[i].N = int(c.rx.headers[i].len)
		ms[i].Addr = c.zones.decode(&c.rx.names[i])
	}
	return n, nil
}

// Send sends ms in order and returns how many are done. n < len(ms) without an error
// means that the socket is full: wait until it is writable. An error concerns
// ms[n] alone, which was not sent, unless it matches os.ErrClosed, which is final.
func (c *Conn) Send(ms []Message) (n int, err error) {
	for n < len(ms) {
		part := ms[n:min(len(ms), n+MaxBatch)]
		ready := 0
		for ready < len(part) {
			size, errno := encode(&c.tx.names[ready], c.family, part[ready].Addr)
			if errno != 0 {
				if ready == 0 {
					return n, errno
				}
				break // send those before it first
			}
			c.tx.set(ready, part[ready].Buf, size)
			ready++
		}
		sent, errno := c.call(unix.SYS_SENDMMSG, &c.tx, ready, unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			n += sent
		case unix.EAGAIN:
			return n, nil
		default:
			return n, c.explain("sending", errno)
		}
	}
	return n, nil
}

// SendTo sends one datagram, for those who do not own the Conn. A full socket
// is an error (EAGAIN). It does not allocate unless it returns an error.
func (c *Conn) SendTo(b []byte, to netip.AddrPort) error {
	var name unix.RawSockaddrInet6
	size, errno := encode(&name, c.family, to)
	if errno != 0 {
		return errno
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return c.explain("sending", unix.EBADF)
	}
	for {
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&name)), uintptr(size))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return c.explain("sending", errno)
		}
	}
}

// Close closes the socket. It may be called at any time and more than once; calls that
// follow return an error that matches os.ErrClosed. A thread that waits for the descriptor is not woken by it.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if err := unix.Close(c.fd); err != nil {
		return fmt.Errorf("closing UDP port %d: %w", c.port, err)
	}
	return nil
}

// set makes entry i of the batch refer to buf.
func (b *batch) set(i int, buf []byte, nameSize uint32) {
	v := &b.vectors[i]
	v.Base = unsafe.SliceData(buf)
	v.SetLen(len(buf))
	h := &b.headers[i].hdr
	h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
	h.Namelen = nameSize
	h.Iov = v
	h.SetIovlen(1)
	h.Flags = 0
}

// call makes the system call without telling the Go scheduler: the socket is non-blocking, so the
// call is short, and handing the processor on and back would cost more than it.
func (c *Conn) call(number uintptr, b *batch, n int, flags uintptr) (int, unix.Errno) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return 0, unix.EBADF
	}
	for {
		done, _, errno := unix.RawSyscall6(number, uintptr(c.fd), uintptr(unsafe.Pointer(&b.headers[0])), uintptr(n), flags, 0, 0)
		if errno != unix.EINTR {
			return int(done), errno
		}
	}
}

// explain turns an error number into an error; those that come and go with the
// network stay as they are.
func (c *Conn) explain(doing string, errno unix.Errno) error {
	if errno == unix.EBADF {
		return fmt.Errorf("%s on UDP port %d: %w", doing, c.port, os.ErrClosed)
	}
	return errno
}

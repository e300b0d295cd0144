// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"errors"
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

// Message is one datagram, or a run of datagrams of equal size, of which only the last may be shorter, that have
// the same sender and receiver; see Cut.
type Message struct {
	// Buf is where Recv puts the datagrams, and what Send sends. It is the caller's and
	// not kept beyond the call. 64 KiB have room for any run.
	Buf []byte
	// N is set by Recv: the length of all together, which is more than len(Buf) if
	// the rest was cut off. Send ignores it.
	N int
	// Segment is the size of each datagram; 0, or len(Buf) and more, means that there is only one. Send takes at most
	// MaxSegments of at most MaxMessage bytes together.
	Segment int
	// Addr is where it came from, or shall go to. IPv4 is never IPv4-mapped
	// when received and may be when sent.
	Addr netip.AddrPort
	// TOS is the type of service of the IPv4 header, or the traffic class of the IPv6 header, of all of them: as received, or to be sent.
	TOS uint8
	// Fragment makes Send leave it to the network to fragment what is too large for a link: hosts and routers for IPv4, this
	// host for IPv6, as far as it knows the path from ICMP. Else it is sent whole or not at all.
	Fragment bool
}

// Conn is one UDP socket, or two where ListenApart has made it: one for light datagrams, which only receives. Recv, RecvLight and Send may be used by one goroutine each,
// everything else by any number. Nothing here blocks.
type Conn struct {
	family int
	port   uint16

	mu     sync.RWMutex // held for reading during a system call, so that the descriptor cannot become another file's
	fd     int
	closed bool

	gso *gso
	gro bool // fixed by Listen

	// Of the socket that ListenApart adds; fixed by it.
	first     byte // of its datagrams
	fragments bool // all that it sends may be fragmented

	light *Conn // nil: none; fixed by ListenApart, which tells of it

	// mode is held for writing while the socket lets datagrams be fragmented, for reading while one is sent that must not be.
	// Other datagrams may get into such a moment: they lose their don't-fragment bit and nothing else.
	mode sync.RWMutex

	rx, tx batch
	zones  zones // of received link-local addresses; used by Recv
}

// batch is the memory that recvmmsg or sendmmsg works on.
type batch struct {
	headers  [MaxBatch]mmsghdr
	vectors  [MaxBatch]unix.Iovec
	names    [MaxBatch]unix.RawSockaddrInet6 // also for IPv4, which is shorter
	controls [MaxBatch]control
	entries  [MaxBatch]entry // used by Send
}

// entry is what a part of a batch is to Send.
type entry struct {
	run  bool // several datagrams
	last bool // the message ends with it
}

// mmsghdr is struct mmsghdr (recvmmsg(2)).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// FD returns the descriptor, to wait for it to become readable or writable. It belongs
// to the Conn and is not valid after Close.
func (c *Conn) FD() int { return c.fd }

// LightFD is FD for RecvLight; -1 if the Conn has no second queue.
func (c *Conn) LightFD() int {
	if c.light == nil {
		return -1
	}
	return c.light.fd
}

// RecvLight is Recv for light datagrams, those whose type of service has LightTOS and no other bit of the DSCP. They are in a queue of their own, and so
// wait for no others, if LightFD is not -1; else there are none, as Recv returns all.
func (c *Conn) RecvLight(ms []Message) (int, error) {
	if c.light == nil {
		return 0, nil
	}
	return c.light.Recv(ms)
}

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
		c.rx.wantControl(i)
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
		ms[i].Segment, ms[i].TOS = c.rx.told(i)
	}
	return n, nil
}

// Send sends ms in order and returns how many are done. n < len(ms) without an error
// means that the socket is full: wait until it is writable. An error concerns what is left of
// ms[n] alone, which was not sent, unless it matches os.ErrClosed, which is final. Of a run that was sent in part,
// Buf is moved on to the rest.
//
// A run goes to the kernel as one, unless it may be fragmented and goes by IPv4. Where the link is too narrow for its datagrams or the device cannot do it, it goes
// one by one; a device that cannot is not asked again. A datagram that is larger than the link of this host, and must not be
// fragmented, is an error that matches unix.EMSGSIZE. What the kernel has heard by ICMP of the path behind it is ignored.
func (c *Conn) Send(ms []Message) (n int, err error) {
	apart := false // ms[n] goes one by one
	for n < len(ms) {
		ready, errno := c.load(ms[n:], apart)
		if errno != 0 {
			return n, errno
		}
		sent, errno := c.transmit(ready, ms[n].Fragment)
		switch {
		case errno == 0:
			for i := range sent {
				if c.tx.entries[i].last {
					n, apart = n+1, false
				} else {
					_, ms[n].Buf = Cut(ms[n].Buf, ms[n].Segment)
				}
			}
		case errno == unix.EAGAIN:
			return n, nil
		case c.tx.entries[0].run && c.gso.refused(errno):
			apart = true
		default:
			return n, c.explain("sending", errno)
		}
	}
	return n, nil
}

// load fills the batch from ms and returns the number of its entries, or an error that concerns ms[0]. The first
// message is loaded one by one if apart, and so is every run to an IPv4 address that may be fragmented: the kernel reserves one
// identification for a run, so that those of its datagrams are used again at once, and fragments of different ones would be joined.
func (c *Conn) load(ms []Message, apart bool) (ready int, errno unix.Errno) {
	whole := c.gso.on.Load()
	for i := 0; i < len(ms) && ready < MaxBatch && ms[i].Fragment == ms[0].Fragment; i++ {
		m := &ms[i]
		size, errno := encode(&c.tx.names[ready], c.family, m.Addr)
		if errno != 0 {
			if i == 0 {
				return 0, errno
			}
			return ready, 0 // send those before it first
		}
		run := m.Segment > 0 && m.Segment < len(m.Buf)
		if !run || whole && !apart && !(m.Fragment && m.Addr.Addr().Unmap().Is4()) {
			c.tx.set(ready, m.Buf, size)
			if m.TOS != 0 {
				c.tx.setTOS(ready, m.TOS)
			}
			if run {
				c.tx.setSegment(ready, m.Segment)
			}
			c.tx.entries[ready] = entry{run: run, last: true}
			ready++
			continue
		}
		apart = false
		name := c.tx.names[ready]
		for first, rest := Cut(m.Buf, m.Segment); ready < MaxBatch; first, rest = Cut(rest, m.Segment) {
			c.tx.names[ready] = name
			c.tx.set(ready, first, size)
			if m.TOS != 0 {
				c.tx.setTOS(ready, m.TOS)
			}
			c.tx.entries[ready] = entry{last: len(rest) == 0}
			ready++
			if len(rest) == 0 {
				break
			}
		}
	}
	return ready, 0
}

// SendTo sends one datagram with that type of service or traffic class, for those who do not own the Conn. It may be fragmented
// on its way. A full socket is an error (EAGAIN). It does not allocate unless it returns an error.
func (c *Conn) SendTo(b []byte, to netip.AddrPort, tos uint8) error {
	if len(b) <= alwaysWhole || c.fragments {
		return c.sendTo(b, to, tos)
	}
	c.mode.Lock()
	defer c.mode.Unlock()
	c.allowFragments(true)
	defer c.allowFragments(false)
	return c.sendTo(b, to, tos)
}

// SendWhole is SendTo for a datagram that is lost on its way rather than fragmented. One that is larger than the link of this host is an
// error that matches unix.EMSGSIZE. Its type of service is 0.
func (c *Conn) SendWhole(b []byte, to netip.AddrPort) error {
	c.mode.RLock()
	defer c.mode.RUnlock()
	return c.sendTo(b, to, 0)
}

func (c *Conn) sendTo(b []byte, to netip.AddrPort, tos uint8) error {
	var name unix.RawSockaddrInet6
	size, errno := encode(&name, c.family, to)
	if errno != 0 {
		return errno
	}
	vector := unix.Iovec{Base: unsafe.SliceData(b)}
	vector.SetLen(len(b))
	h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&name)), Namelen: size, Iov: &vector}
	h.SetIovlen(1)
	var control controlMessage
	if tos != 0 {
		control.putTOS(&name, tos)
		h.Control = (*byte)(unsafe.Pointer(&control))
		h.SetControllen(controlSpace)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return c.explain("sending", unix.EBADF)
	}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT)
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
	err := unix.Close(c.fd)
	if err != nil {
		err = fmt.Errorf("closing UDP port %d: %w", c.port, err)
	}
	if c.light != nil {
		err = errors.Join(err, c.light.Close())
	}
	return err
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
	h.Control = nil
	h.SetControllen(0)
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

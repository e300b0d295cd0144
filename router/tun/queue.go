// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vnetHdrLen is sizeof(struct virtio_net_hdr) of linux/virtio_net.h.
const vnetHdrLen = 10

// Queue is one of the queues of a device, which may be several in the eyes of the kernel; see lanes.go. Read and Write may be
// used by one goroutine each; nothing here blocks.
type Queue struct {
	name     string
	offloads Offloads

	mu     sync.RWMutex // held for reading during a system call, so that the descriptors cannot become other files'
	fd     int          // to wait for: the only lane, or an epoll instance over all
	lanes  []int        // for reading
	out    int          // for writing; the same where there is only one lane in all
	closed bool

	turns  turns // used by Read, as is what follows
	events [maxLanes]unix.EpollEvent
}

// FD returns the descriptor, to wait for it to become readable. It belongs to
// the queue and is not valid after the device was closed.
func (q *Queue) FD() int { return q.fd }

// Offloads returns those of the device. With VNetHdr each packet, read or written, is preceded by a virtio_net_hdr of 10 bytes.
func (q *Queue) Offloads() Offloads { return q.offloads }

// Read reads one packet into b, which should have room for 64 KiB and the header if
// VNetHdr, for the device's MTU otherwise; what does not fit is cut off. It returns 0 and no error
// if there is none now; then the descriptor tells when there is one. An error that matches os.ErrClosed is final: the queue was closed or the
// device deleted. It does not allocate unless it returns an error.
func (q *Queue) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if len(q.lanes) > 1 {
		return q.readLanes(b)
	}
	n, errno := q.call(unix.SYS_READ, q.lanes[0], b)
	switch errno {
	case 0:
		return n, nil
	case unix.EAGAIN:
		return 0, nil
	}
	return 0, q.explain("reading from", errno)
}

// Yield makes the next Read prefer flows that have waited to the one that was read last, which may go on for some hundred kilobytes otherwise:
// in larger portions each costs less. It is for the goroutine that calls Read.
func (q *Queue) Yield() { q.turns.yield() }

// Write gives one packet to the kernel, with the header if VNetHdr. It is
// taken whole or not at all. An error that matches os.ErrClosed is final; any other, like
// that of a device that is down, concerns this packet only. It does not allocate unless
// it returns an error.
func (q *Queue) Write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	_, errno := q.call(unix.SYS_WRITE, q.out, b)
	if errno == 0 {
		return nil
	}
	return q.explain("writing to", errno)
}

// call makes the system call without telling the Go scheduler: the descriptor is non-blocking, so the
// call is short, and handing the processor on and back would cost more than it.
func (q *Queue) call(number uintptr, fd int, b []byte) (int, unix.Errno) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.closed {
		return 0, unix.EBADF
	}
	for {
		n, _, errno := unix.RawSyscall(number, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// explain turns an error number into an error. EIO, ENOBUFS and ENOMEM are common
// and come as they are.
func (q *Queue) explain(doing string, errno unix.Errno) error {
	switch errno {
	case unix.EBADF:
		return fmt.Errorf("%s %s: %w", doing, q.name, os.ErrClosed)
	case unix.EBADFD: // the file is no longer attached to a device
		return &goneError{q.name, errno}
	}
	return errno
}

func (q *Queue) close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.closed = true
	if err := q.closeLanes(); err != nil {
		return fmt.Errorf("closing %s: %w", q.name, err)
	}
	return nil
}

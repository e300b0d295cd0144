// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// MaxSegments is how many datagrams one Message may hold (UDP_MAX_SEGMENTS of linux/udp.h, before Linux 6.9).
	MaxSegments = 64
	// MaxMessage is how many bytes they may have together: what fits an IP packet, with room for its headers.
	MaxMessage = 65000
)

// Options switch offloads off, each for kernels or devices where it is broken. The zero Options
// use what the kernel has.
type Options struct {
	// NoGSO sends datagrams one by one instead of in runs (UDP_SEGMENT, Linux 4.18).
	NoGSO bool
	// NoGRO receives datagrams one by one instead of in runs (UDP_GRO, Linux 5.0).
	NoGRO bool
	// Fallback, if not nil, is told once why GSO was given up: the device below cannot do it. It is called by
	// the goroutine in Send and must not block.
	Fallback func(err error)
	// NotApart, if not nil, is told by ListenApart why there is no socket apart.
	NotApart func(err error)
}

// Cut takes the first datagram off b, which has datagrams of segment bytes each but for the last, which
// may be shorter; 0 means that b is one datagram.
func Cut(b []byte, segment int) (first, rest []byte) {
	if segment <= 0 || segment >= len(b) {
		return b, nil
	}
	return b[:segment:segment], b[segment:]
}

// gso is whether runs are sent as such. The sockets of one Listen share it.
type gso struct {
	on   atomic.Bool
	tell func(err error)
}

// refused tells whether a run that the kernel did not take should be sent one by one. If the device is
// the reason, that is so for all that follow.
func (g *gso) refused(errno unix.Errno) bool {
	switch errno {
	case unix.EINVAL, unix.EMSGSIZE: // the link is too narrow for these datagrams: single ones tell
		return true
	case unix.EIO:
		if g.on.CompareAndSwap(true, false) && g.tell != nil {
			g.tell(fmt.Errorf("sending runs of datagrams: %w: the device below cannot segment; sending them one by one (--no-gso avoids the attempt)", errno))
		}
		return true
	}
	return false
}

// GSO tells whether runs of datagrams are handed to the kernel as one. It may end at any time.
func (c *Conn) GSO() bool { return c.gso.on.Load() }

// GRO tells whether the kernel hands over runs of datagrams as one.
func (c *Conn) GRO() bool { return c.gro }

// probe settles the offloads of the socket. What the kernel does not know is not used.
func (c *Conn) probe(o Options) {
	_, err := unix.GetsockoptInt(c.fd, unix.SOL_UDP, unix.UDP_SEGMENT)
	c.gso.on.Store(err == nil && !o.NoGSO)
	c.gro = !o.NoGRO && unix.SetsockoptInt(c.fd, unix.SOL_UDP, unix.UDP_GRO, 1) == nil
}

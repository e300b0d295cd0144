// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// answerPatience is how long the kernel may take to answer: it does so at once, unless something is very wrong.
const answerPatience = 20 * time.Second

// conn talks to the kernel about one namespace.
type conn struct {
	sockets map[int]*nl.SocketHandle
	port    uint32 // of the socket; notifications of what it has changed bear it
}

// open returns a connection that is usable from every thread.
func (n namespace) open() (*conn, error) {
	var s *nl.NetlinkSocket
	err := n.run(func() (err error) {
		s, err = nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	patience := unix.NsecToTimeval(answerPatience.Nanoseconds())
	port, err := s.GetPid()
	err = errors.Join(err, s.SetReceiveTimeout(&patience), s.SetSendTimeout(&patience))
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	_ = s.SetExtAck(true) // errors are plainer with it (Linux 4.12)
	// The kernel sends what is asked for only (Linux 4.20); otherwise it is sorted out here.
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &conn{sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}, port: port}, nil
}

func (c *conn) close() error {
	c.sockets[unix.NETLINK_ROUTE].Close()
	return nil
}

// do sends one request and returns the messages of that kind that answer it.
func (c *conn) do(kind, flags int, answer uint16, head nl.NetlinkRequestData, attrs ...*nl.RtAttr) ([][]byte, error) {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = c.sockets
	req.AddData(head)
	for _, a := range attrs {
		req.AddData(a)
	}
	return req.Execute(unix.NETLINK_ROUTE, answer)
}

// change sends a request to change something.
func (c *conn) change(kind, flags int, head nl.NetlinkRequestData, attrs ...*nl.RtAttr) error {
	_, err := c.do(kind, flags|unix.NLM_F_ACK, 0, head, attrs...)
	return err
}

// resend sends back, as a request to delete it, what a dump has told.
func (c *conn) resend(kind int, body []byte) error {
	return c.change(kind, 0, rawData(body))
}

// dump asks for all objects of a kind. One that was disturbed by changes is repeated, so that it is never partial.
func (c *conn) dump(kind int, answer uint16, head nl.NetlinkRequestData, attrs ...*nl.RtAttr) ([][]byte, error) {
	const tries = 20
	for i := 1; ; i++ {
		out, err := c.do(kind, unix.NLM_F_DUMP, answer, head, attrs...)
		if errors.Is(err, unix.ENOENT) { // a table that does not exist
			return nil, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) || i == tries {
			return out, err
		}
	}
}

// rawData is a message as it was received.
type rawData []byte

func (d rawData) Len() int          { return len(d) }
func (d rawData) Serialize() []byte { return d }

func attr32(kind int, v uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.Uint32Attr(v)) }

func attrAddr(kind int, a netip.Addr) *nl.RtAttr { return nl.NewRtAttr(kind, a.AsSlice()) }

// attributes calls f for each attribute that follows the first skip bytes of a message; what makes no sense ends it, and returns
// false. (nl.ParseRouteAttr panics if the last one is not padded.)
func attributes(b []byte, skip int, f func(kind uint16, v []byte)) bool {
	if len(b) < skip {
		return false
	}
	for b = b[skip:]; len(b) >= unix.SizeofRtAttr; {
		size, kind := int(nl.NativeEndian().Uint16(b)), nl.NativeEndian().Uint16(b[2:])
		if size < unix.SizeofRtAttr || size > len(b) {
			return false
		}
		f(kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:size])
		b = b[min(len(b), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
	return true
}

// The functions below read values, zero if they are not as long as they should be.

func read32(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return nl.NativeEndian().Uint32(v)
}

func read16be(v []byte) uint16 {
	if len(v) != 2 {
		return 0
	}
	return uint16(v[0])<<8 | uint16(v[1])
}

func read8(v []byte) uint8 {
	if len(v) != 1 {
		return 0
	}
	return v[0]
}

func readAddr(v []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(v)
	return a
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

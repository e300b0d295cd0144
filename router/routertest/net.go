// SPDX-License-Identifier: Apache-2.0

// Package routertest is a network in memory for tests of the router and of what is built on it: UDP
// sockets and TUN queues that a router.Router runs on as it does on real ones, with
// loss, duplication, reordering, partitions and roaming.
//
// Nothing here reads a clock or sleeps except by package time, so all of it runs under
// testing/synctest. Everything is safe for concurrent use. Only tests import it.
package routertest

import (
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/underlay"
)

// ErrUnreachable is what sending to an address that nobody has returns, if the Net is so configured.
var ErrUnreachable = errors.New("network is unreachable")

// depth is how many datagrams or packets wait at most for whoever reads them.
const depth = 4096

// Faults are what a Net does to datagrams, each with a probability from 0 to 1.
type Faults struct {
	Loss      float64
	Duplicate float64
	Late      float64 // held back for up to 20 ms, so that others overtake it
}

// Net is an underlay. The zero value is not usable; see NewNet.
type Net struct {
	mu     sync.Mutex
	rng    *rand.Rand
	conns  map[netip.AddrPort][]*Conn
	faults Faults
	filter func(from, to netip.AddrPort, b []byte) bool
	marks  func(from, to netip.AddrPort, tos uint8) uint8
	width  int // 0: any
	seed   maphash.Seed
}

// NewNet makes a network without faults. The seed decides all that is left to chance.
func NewNet(seed uint64) *Net {
	return &Net{rng: rand.New(rand.NewPCG(seed, 0)), conns: map[netip.AddrPort][]*Conn{}, seed: maphash.MakeSeed()}
}

// SetFaults changes what happens to datagrams from now on.
func (n *Net) SetFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults = f
}

// SetFilter makes every datagram pass f, which drops it by returning false, may copy b but not keep or change it, and
// must not call the Net. nil lets all pass.
func (n *Net) SetFilter(f func(from, to netip.AddrPort, b []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.filter = f
}

// SetMarks makes every datagram pass f, which returns what its type of service becomes, and must not call the Net. nil lets
// it be what it is.
func (n *Net) SetMarks(f func(from, to netip.AddrPort, tos uint8) uint8) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.marks = f
}

// SetWidth makes the network drop datagrams of more than n bytes, silently and also those that may be fragmented, as networks do that
// have no use for fragments. 0 ends that.
func (n *Net) SetWidth(bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.width = bytes
}

// Listen opens a socket. Several on one address share what arrives, by sender, as with SO_REUSEPORT.
func (n *Net) Listen(at netip.AddrPort) *Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &Conn{net: n, addr: at, event: newEvent()}
	n.conns[at] = append(n.conns[at], c)
	return c
}

// ListenApart opens a socket that gets the control datagrams to an address, and only those, which then come to none of the
// others on it: for router.Config.ControlConn.
func (n *Net) ListenApart(at netip.AddrPort) *Conn {
	c := n.Listen(at)
	n.mu.Lock()
	defer n.mu.Unlock()
	c.apart = true
	return c
}

// Inject makes a datagram arrive at to as if from had sent it, whatever the faults and the filter.
func (n *Net) Inject(from, to netip.AddrPort, b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deliver(from, to, underlay.Message{Buf: slices.Clone(b)}, 0)
}

// send does to one datagram what the network does.
func (n *Net) send(from, to netip.AddrPort, b []byte, tos uint8) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.width > 0 && len(b) > n.width || n.filter != nil && !n.filter(from, to, b) || n.rng.Float64() < n.faults.Loss {
		return
	}
	if n.marks != nil {
		tos = n.marks(from, to, tos)
	}
	copies := 1
	if n.rng.Float64() < n.faults.Duplicate {
		copies = 2
	}
	for range copies {
		var delay time.Duration
		if n.rng.Float64() < n.faults.Late {
			delay = time.Duration(n.rng.Int64N(int64(20 * time.Millisecond)))
		}
		n.deliver(from, to, underlay.Message{Buf: slices.Clone(b), TOS: tos}, delay)
	}
}

// deliver hands a datagram to a socket, which shows it after the delay. n.mu is held.
func (n *Net) deliver(from, to netip.AddrPort, m underlay.Message, delay time.Duration) {
	all := slices.Clone(n.conns[to])
	isApart := func(c *Conn) bool { return c.apart }
	apart := len(m.Buf) > 0 && m.Buf[0] == router.ControlType && slices.ContainsFunc(all, isApart)
	all = slices.DeleteFunc(all, func(c *Conn) bool { return c.apart != apart })
	if len(all) == 0 {
		return
	}
	m.Addr = from
	i := maphash.Comparable(n.seed, [2]netip.AddrPort{from, to}) % uint64(len(all))
	all[i].arrive(m, delay)
}

// Conn is a UDP socket of a Net: a router.Conn.
type Conn struct {
	net   *Net
	event event
	apart bool // guarded by net.mu

	mu     sync.Mutex
	addr   netip.AddrPort
	inbox  []underlay.Message
	late   []lateMessage // not in the inbox yet
	full   bool          // nothing can be sent
	link   int           // largest datagram that can leave whole; 0: any
	fail   error
	closed bool
}

// Addr returns the address of the socket.
func (c *Conn) Addr() netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addr
}

// Move gives the socket another address, as when a host changes networks. What is sent to the old one is lost.
func (c *Conn) Move(to netip.AddrPort) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.net.conns[c.addr] = slices.DeleteFunc(c.net.conns[c.addr], func(o *Conn) bool { return o == c })
	c.addr = to
	c.net.conns[to] = append(c.net.conns[to], c)
}

// SetFull makes the socket refuse to send, or send again.
func (c *Conn) SetFull(full bool) {
	c.mu.Lock()
	c.full = full
	c.mu.Unlock()
	c.event.set()
}

// SetLink makes datagrams of more than n bytes fail to leave, with unix.EMSGSIZE, unless they may be fragmented. 0 ends that.
func (c *Conn) SetLink(bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link = bytes
}

// SetSendError makes every datagram fail to leave with the error; nil ends that.
func (c *Conn) SetSendError(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = err
}

// Close makes all calls that follow fail with os.ErrClosed.
func (c *Conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.mu.Lock()
	c.net.conns[c.addr] = slices.DeleteFunc(c.net.conns[c.addr], func(o *Conn) bool { return o == c })
	c.closed = true
	c.mu.Unlock()
	c.event.set()
	return nil
}

// lateMessage is a datagram on its way.
type lateMessage struct {
	underlay.Message
	due time.Time
}

func (c *Conn) arrive(m underlay.Message, delay time.Duration) {
	c.mu.Lock()
	switch {
	case delay > 0:
		c.late = append(c.late, lateMessage{m, time.Now().Add(delay)})
	case len(c.inbox) < depth:
		c.inbox = append(c.inbox, m)
	}
	c.mu.Unlock()
	c.event.set()
}

// Recv is that of router.Conn.
func (c *Conn) Recv(ms []underlay.Message) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, os.ErrClosed
	}
	n := min(len(ms), len(c.inbox))
	for i, m := range c.inbox[:n] {
		copy(ms[i].Buf, m.Buf)
		ms[i].N, ms[i].Addr, ms[i].Segment, ms[i].TOS = len(m.Buf), m.Addr, 0, m.TOS
	}
	c.inbox = slices.Delete(c.inbox, 0, n)
	return n, nil
}

// Send is that of router.Conn.
func (c *Conn) Send(ms []underlay.Message) (int, error) {
	for i, m := range ms {
		c.mu.Lock()
		closed, full, fail, addr, link := c.closed, c.full, c.fail, c.addr, c.link
		c.mu.Unlock()
		switch {
		case closed:
			return i, os.ErrClosed
		case fail != nil:
			return i, fail
		case full:
			return i, nil
		case link > 0 && !m.Fragment && largest(m) > link:
			return i, unix.EMSGSIZE
		}
		for first, rest := underlay.Cut(m.Buf, m.Segment); ; first, rest = underlay.Cut(rest, m.Segment) {
			c.net.send(addr, m.Addr, first, m.TOS)
			if len(rest) == 0 {
				break
			}
		}
	}
	return len(ms), nil
}

// largest returns the size of the first datagram of m.
func largest(m underlay.Message) int {
	first, _ := underlay.Cut(m.Buf, m.Segment)
	return len(first)
}

// SendTo is that of router.Conn.
func (c *Conn) SendTo(b []byte, to netip.AddrPort, tos uint8) error {
	return c.sendOne(underlay.Message{Buf: b, Addr: to, TOS: tos, Fragment: true})
}

// SendWhole is that of router.Conn.
func (c *Conn) SendWhole(b []byte, to netip.AddrPort) error {
	return c.sendOne(underlay.Message{Buf: b, Addr: to})
}

func (c *Conn) sendOne(m underlay.Message) error {
	n, err := c.Send([]underlay.Message{m})
	if err == nil && n == 0 {
		return unix.EAGAIN
	}
	return err
}

// ready returns what holds now, and how long until another datagram arrives that is on its way;
// -1 if there is none.
func (c *Conn) ready() (e router.Events, later time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	later = -1
	now := time.Now()
	c.late = slices.DeleteFunc(c.late, func(m lateMessage) bool {
		wait := m.due.Sub(now)
		if wait <= 0 {
			c.inbox = append(c.inbox, m.Message)
			return true
		}
		if later < 0 || wait < later {
			later = wait
		}
		return false
	})
	if len(c.inbox) > 0 || c.closed {
		e |= router.ReadUDP
	}
	if !c.full {
		e |= router.WriteUDP
	}
	return e, later
}

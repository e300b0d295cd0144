// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"time"

	"github.com/weftnet/weft/router/tun"
	"github.com/weftnet/weft/router/underlay"
)

// Queue is a shard's way to the packets of this host. *tun.Queue is one.
//
// Read and Write are called by one goroutine, the shard's, and never block. The router does not close it;
// whoever opened it does, after Run has returned. If it is closed or its device deleted
// before, Read and Write return an error that matches os.ErrClosed, and Run ends with it.
type Queue interface {
	// Read reads one packet into b, which has room for the largest, and returns its
	// length; 0 without an error means that there is none now. An error that does not match
	// os.ErrClosed is counted and passed over.
	Read(b []byte) (int, error)
	// Write delivers one packet or superpacket whole or not at all, and keeps nothing of b. An error that does not
	// match os.ErrClosed concerns this packet only.
	Write(b []byte) error
	// Offloads tells whether each packet, read or written, is preceded by a packet.VNetHdr, so that its checksum may
	// be open, and of what protocols there may be superpackets, in either direction. It never changes.
	Offloads() tun.Offloads
}

// yielder is what a Queue may be that has several flows to choose from. *tun.Queue is one.
type yielder interface {
	// Yield makes the next Read prefer flows that have waited to the one that was read last. It is called by the goroutine that calls Read.
	Yield()
}

// Conn is a shard's way to the network between hosts, or that of control datagrams. *underlay.Conn is one.
//
// Recv and Send are called by one goroutine, the shard's or that of control datagrams; SendTo and SendWhole by any. None blocks. Closing is as with Queue.
type Conn interface {
	// Recv fills the first n of ms (see underlay.Message), each with one datagram or a run of them, and returns n; 0
	// without an error means that nothing has arrived. An error that does not match os.ErrClosed is counted and passed over.
	Recv(ms []underlay.Message) (n int, err error)
	// Send sends ms in order and returns how many are done. n < len(ms) without an error means
	// that there is no room now; an error that does not match os.ErrClosed concerns ms[n] only, and matches unix.EMSGSIZE if that
	// must not be fragmented (underlay.Message) and is too large. Of a run that it has sent in part it moves Buf on to the rest. It keeps nothing of ms.
	Send(ms []underlay.Message) (n int, err error)
	// SendTo sends one datagram, which may be fragmented, with that type of service or traffic class, or returns why not, and keeps nothing of b.
	SendTo(b []byte, to netip.AddrPort, tos uint8) error
	// SendWhole sends one datagram that must not be fragmented, or returns why not: an error that matches unix.EMSGSIZE if it is larger
	// than the link of this host, unix.EAGAIN if there is no room now. It keeps nothing of b.
	SendWhole(b []byte, to netip.AddrPort) error
}

// lightConn is what a Conn may be that keeps light datagrams, those with underlay.LightTOS, apart from others. *underlay.Conn is one.
type lightConn interface {
	// RecvLight is Recv for light datagrams, which Recv does not return then.
	RecvLight(ms []underlay.Message) (n int, err error)
	// LightFD is a descriptor that is readable when there are any, -1 if there never are.
	LightFD() int
}

// Events are what a shard waits for.
type Events uint8

// The events.
const (
	ReadTUN   Events = 1 << iota // the queue has a packet, or an error to tell
	ReadUDP                      // the conn has a datagram, or an error to tell
	WriteUDP                     // the conn has room again
	ReadLight                    // the conn, a lightConn, has a light datagram, or an error to tell
)

// Poller is where a shard waits for its Queue and its Conn, or the goroutine of control datagrams for its Conn. Readiness is a level: an
// event that still holds is reported again.
type Poller interface {
	// Wait returns those of want that hold now or, if none does, waits for one; for the timeout at
	// longest, for ever if that is negative. It returns 0 when the time is over or Wake was called. An error
	// ends the shard. It is called by the one who waits only.
	Wait(want Events, timeout time.Duration) (Events, error)
	// Wake makes Wait return, the one under way or else the next. Any goroutine may call it.
	Wake()
	// Close frees what the Poller holds. No call of Wait or Wake is under way then or follows.
	Close() error
}

// Queues returns the queues of a TUN device for Config.TUN.
func Queues(d *tun.Device) []Queue {
	var all []Queue
	for _, q := range d.Queues() {
		all = append(all, q)
	}
	return all
}

// Conns returns UDP sockets for Config.Conns.
func Conns(conns []*underlay.Conn) []Conn {
	var all []Conn
	for _, c := range conns {
		all = append(all, c)
	}
	return all
}

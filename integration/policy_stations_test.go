// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/policy"
)

const (
	// icmp4 and icmp6 are the protocols of pings.
	icmp4 policy.Protocol = 1
	icmp6 policy.Protocol = 58
	// sctpHeader is the length of SCTP's header with that of an INIT chunk behind it (RFC 9260).
	sctpHeader = 12 + 20
)

// A town is namespaces that serve the same ports, and try to reach each other. Kernels need no SCTP: what is sent of that is the first packet of an association, by
// raw sockets, and what counts is that it comes.
type town struct {
	mu       sync.Mutex
	arrived  map[uint32]bool // tokens of SCTP
	token    atomic.Uint32
	stations map[netip.Addr]*lab.Namespace
}

// newTown begins a town for the length of the test.
func newTown() *town {
	return &town{arrived: map[uint32]bool{}, stations: map[netip.Addr]*lab.Namespace{}}
}

// settle makes a namespace serve the ports on all of its addresses, TCP by a greeting, UDP by an echo, and know those that are given as its own.
func (w *town) settle(t *testing.T, n *lab.Namespace, ports []uint16, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		w.stations[a] = n
	}
	var serving sync.WaitGroup
	var closers []func() error
	t.Cleanup(func() {
		for _, c := range closers {
			_ = c()
		}
		serving.Wait()
	})
	err := n.Do(func() error {
		for _, port := range ports {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			closers = append(closers, l.Close)
			serving.Go(func() { greet(l) })
			u, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
			if err != nil {
				return err
			}
			closers = append(closers, u.Close)
			serving.Go(func() { echo(u) })
		}
		for _, network := range []string{"ip4:132", "ip6:132"} {
			raw, err := net.ListenIP(network, nil)
			if err != nil {
				return err
			}
			closers = append(closers, raw.Close)
			serving.Go(func() { w.hearSCTP(raw) })
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.Write([]byte{1})
			_ = c.Close()
		}
	}
}

func echo(u *net.UDPConn) {
	buf := make([]byte, 64)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = u.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

func (w *town) hearSCTP(raw *net.IPConn) {
	buf := make([]byte, 256)
	for {
		n, _, err := raw.ReadFromIP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n >= sctpHeader && buf[12] == 1 { // INIT
			w.mu.Lock()
			w.arrived[binary.BigEndian.Uint32(buf[16:])] = true
			w.mu.Unlock()
		}
	}
}

// sctpInit is the first packet of an association.
func sctpInit(from, to uint16, token uint32) []byte {
	b := make([]byte, sctpHeader)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	b[12], b[15] = 1, 20
	binary.BigEndian.PutUint32(b[16:], token)
	binary.BigEndian.PutUint32(b[20:], 1<<16) // window
	b[25], b[27] = 1, 1                       // streams
	binary.BigEndian.PutUint32(b[28:], 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// reaches makes a connection and tells whether it comes to be within that time: TCP and UDP by an answer, SCTP by its arrival.
func (w *town) reaches(c policy.Connection, within time.Duration) (bool, error) {
	n, ok := w.stations[c.Src]
	if !ok {
		return false, fmt.Errorf("nobody has %v", c.Src)
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	switch c.Protocol {
	case policy.TCP:
		return dials(ctx, n, c), nil
	case policy.UDP:
		return echoes(ctx, n, c)
	case policy.SCTP:
		return w.arrives(ctx, n, c)
	case icmp4, icmp6:
		_, err := n.Ping(lab.Ping{From: c.Src, To: c.Dst, Timeout: within})
		return err == nil, nil
	}
	return false, fmt.Errorf("no way to make a connection of protocol %d", c.Protocol)
}

func dials(ctx context.Context, n *lab.Namespace, c policy.Connection) bool {
	return n.Do(func() error {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.Src, 0))}
		conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(c.Dst, c.Port).String())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		deadline, _ := ctx.Deadline()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		_, err = conn.Read(make([]byte, 1))
		return err
	}) == nil
}

// resend is how long to wait for the answer to a datagram before the next one.
const resend = 100 * time.Millisecond

func echoes(ctx context.Context, n *lab.Namespace, c policy.Connection) (bool, error) {
	var u *net.UDPConn
	if err := n.Do(func() (err error) {
		u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.Src, 0)))
		return err
	}); err != nil {
		return false, err
	}
	defer func() { _ = u.Close() }()
	buf := make([]byte, 64)
	for ctx.Err() == nil {
		_, _ = u.WriteToUDPAddrPort([]byte("echo"), netip.AddrPortFrom(c.Dst, c.Port)) // what cannot be sent has no answer
		if err := u.SetReadDeadline(time.Now().Add(resend)); err != nil {
			return false, err
		}
		if _, _, err := u.ReadFromUDPAddrPort(buf); err == nil {
			return true, nil
		}
	}
	return false, nil
}

func (w *town) arrives(ctx context.Context, n *lab.Namespace, c policy.Connection) (bool, error) {
	network := "ip4:132"
	if c.Src.Is6() {
		network = "ip6:132"
	}
	var raw *net.IPConn
	if err := n.Do(func() (err error) {
		raw, err = net.ListenIP(network, &net.IPAddr{IP: c.Src.AsSlice()})
		return err
	}); err != nil {
		return false, err
	}
	defer func() { _ = raw.Close() }()
	token := w.token.Add(1)
	for ctx.Err() == nil {
		_, _ = raw.WriteToIP(sctpInit(uint16(10_000+token%50_000), c.Port, token), &net.IPAddr{IP: c.Dst.AsSlice()})
		select {
		case <-ctx.Done():
		case <-time.After(resend / 4):
		}
		w.mu.Lock()
		there := w.arrived[token]
		w.mu.Unlock()
		if there {
			return true, nil
		}
	}
	return false, nil
}

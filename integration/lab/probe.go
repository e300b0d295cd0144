// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// A Ping says what to ask.
type Ping struct {
	To   netip.Addr
	From netip.Addr // default: the kernel chooses
	// Size is the length of the whole IP packet in bytes; 0 is as short as it gets (28 + 24 for v4, 48 + 24 for v6).
	Size         int
	DontFragment bool
	Timeout      time.Duration // default 1 s
}

// pingTimeout is how long a ping that will be repeated waits for its answer.
const pingTimeout = 200 * time.Millisecond

// cookieLen is the length of the random bytes by which a ping knows its answer.
const cookieLen = 24

// ErrNoAnswer says that nothing came back in time.
var ErrNoAnswer = errors.New("no answer")

// Ping sends one ICMP echo request from inside the namespace and returns the time until its answer.
func (n *Namespace) Ping(p Ping) (time.Duration, error) {
	if p.Timeout == 0 {
		p.Timeout = time.Second
	}
	conn, err := n.icmpSocket(p)
	if err != nil {
		return 0, n.pingError(p, err)
	}
	defer func() { _ = conn.Close() }()
	request, cookie, err := p.request()
	if err != nil {
		return 0, n.pingError(p, err)
	}
	sent := time.Now()
	if err := conn.SetDeadline(sent.Add(p.Timeout)); err != nil {
		return 0, n.pingError(p, err)
	}
	if _, err := conn.WriteTo(request, &net.IPAddr{IP: p.To.AsSlice(), Zone: p.To.Zone()}); err != nil {
		return 0, n.pingError(p, err)
	}
	buf := make([]byte, 64<<10)
	for {
		size, _, err := conn.ReadFrom(buf)
		switch {
		case isTimeout(err):
			return 0, n.pingError(p, ErrNoAnswer)
		case err != nil:
			return 0, n.pingError(p, err)
		case p.answeredBy(buf[:size], cookie):
			return time.Since(sent), nil
		}
	}
}

func (n *Namespace) pingError(p Ping, err error) error {
	return fmt.Errorf("ping %v from %s: %w", p.To, n.name, err)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// icmpSocket opens a raw socket of the right family inside the namespace.
func (n *Namespace) icmpSocket(p Ping) (*net.IPConn, error) {
	network, from := "ip4:icmp", netip.IPv4Unspecified()
	if p.To.Is6() {
		network, from = "ip6:ipv6-icmp", netip.IPv6Unspecified()
	}
	if p.From.IsValid() {
		from = p.From
	}
	var conn *net.IPConn
	err := n.Do(func() (err error) {
		conn, err = net.ListenIP(network, &net.IPAddr{IP: from.AsSlice()})
		return err
	})
	if err != nil || !p.DontFragment {
		return conn, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			if p.To.Is6() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			}
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// request builds the message, and the cookie that the answer brings back.
func (p Ping) request() (msg, cookie []byte, err error) {
	headers, kind := 20+8, icmp.Type(ipv4.ICMPTypeEcho)
	if p.To.Is6() {
		headers, kind = 40+8, ipv6.ICMPTypeEchoRequest
	}
	if p.Size != 0 && p.Size < headers+cookieLen {
		return nil, nil, fmt.Errorf("a packet of %d bytes is too short, at least %d", p.Size, headers+cookieLen)
	}
	data := make([]byte, max(cookieLen, p.Size-headers))
	cookie = data[:cookieLen]
	if _, err := rand.Read(cookie); err != nil {
		return nil, nil, err
	}
	// The kernel fills in the checksum of ICMPv6.
	m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: int(binary.BigEndian.Uint16(cookie)), Seq: 1, Data: data}}
	msg, err = m.Marshal(nil)
	return msg, cookie, err
}

func (p Ping) answeredBy(msg, cookie []byte) bool {
	proto, want := 1, icmp.Type(ipv4.ICMPTypeEchoReply)
	if p.To.Is6() {
		proto, want = 58, ipv6.ICMPTypeEchoReply
	}
	m, err := icmp.ParseMessage(proto, msg)
	if err != nil || m.Type != want {
		return false
	}
	echo, ok := m.Body.(*icmp.Echo)
	return ok && len(echo.Data) >= cookieLen && string(echo.Data[:cookieLen]) == string(cookie)
}

// Reach pings an address until an answer comes, at most for the given time, and returns how long it took from the first
// request on.
func (n *Namespace) Reach(to netip.Addr, within time.Duration) (time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for {
		once := time.Now()
		_, err := n.Ping(Ping{To: to, Timeout: min(pingTimeout, within)})
		if err == nil {
			return time.Since(start), nil
		}
		// An error may come at once (no route yet): do not spin.
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w within %v", err, within)
		case <-time.After(50*time.Millisecond - time.Since(once)):
		}
	}
}

// Latency pings an address count times, one after the other, and returns the median of the answers' times.
func (n *Namespace) Latency(to netip.Addr, count int) (time.Duration, error) {
	times := make([]time.Duration, 0, count)
	for range count {
		d, err := n.Ping(Ping{To: to})
		if err != nil {
			return 0, err
		}
		times = append(times, d)
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

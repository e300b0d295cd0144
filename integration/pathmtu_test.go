// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// way is an underlay: two hosts on links of one MTU, and routers with another one between them; without hop it is a switch instead, on
// which the other host may have a link of its own MTU.
type way struct {
	link, hop, other int
	v6               bool
}

func (w way) String() string {
	family := "v4"
	if w.v6 {
		family = "v6"
	}
	switch {
	case w.other != 0:
		return fmt.Sprintf("%d and %d, %s", w.link, w.other, family)
	case w.hop == 0:
		return fmt.Sprintf("%d, %s", w.link, family)
	}
	return fmt.Sprintf("%d by a hop of %d, %s", w.link, w.hop, family)
}

// inner returns the largest packet of the overlay that fits into an underlay of mtu bytes: less IP, UDP, and what the seal adds, which pads to 16.
func inner(mtu int, v6 bool) int {
	if v6 {
		mtu -= 20
	}
	return (mtu - 20 - 8 - 32) &^ 15
}

// links returns the MTUs of both hosts' links.
func (w way) links() [2]int {
	if w.other != 0 {
		return [2]int{w.link, w.other}
	}
	return [2]int{w.link, w.link}
}

// configured is the MTU of the workloads over a link: what an IPv6 underlay leaves, but what IPv6 needs at least.
func configured(link int) int { return max(inner(link, true), 1280) }

// path is what of that arrives.
func (w way) path() int {
	least := min(w.links()[0], w.links()[1])
	mtu := least
	if w.hop != 0 {
		mtu = w.hop
	}
	return min(configured(least), inner(mtu, w.v6))
}

// pathLab is two hosts at the ends of a way, with a workload each.
type pathLab struct {
	*lab.Lab
	a, b   *lab.Host
	w1, w2 *lab.Workload
	hops   []*lab.Link // at both ends of the hop
	routes []*lab.Router
}

func newPathLab(t *testing.T, w way) *pathLab {
	t.Helper()
	l := &pathLab{Lab: lab.New(t)}
	family := lab.OnlyV4
	if w.v6 {
		family = lab.OnlyV6
	}
	left := l.Switch("left")
	right := left
	if w.hop != 0 {
		middle := l.Switch("middle")
		right = l.Switch("right")
		r1, r2 := l.Router("r1", left, middle), l.Router("r2", middle, right)
		r1.Route(right, r2, middle)
		r1.Link(left).SetMTU(w.link)
		r2.Link(right).SetMTU(w.link)
		l.hops = []*lab.Link{r1.Link(middle), r2.Link(middle)}
		l.routes = []*lab.Router{r1, r2}
		l.setHop(w.hop)
	}
	l.a, l.b = l.Host("a", left, family, lab.MTU(w.links()[0])), l.Host("b", right, family, lab.MTU(w.links()[1]))
	l.a.Launch("--range", lab.DefaultRange)
	if err := l.a.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	l.b.Join(l.a.Token(), []*lab.Host{l.a}, "--range", lab.DefaultRange)
	if err := l.b.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	l.w1, l.w2 = l.a.Workload("w1"), l.b.Workload("w2")
	l.w1.Attach()
	l.w2.Attach()
	allReach(t, patience, l.w1, l.w2)
	return l
}

func (l *pathLab) setHop(mtu int) {
	for _, h := range l.hops {
		h.SetMTU(mtu)
	}
}

// pathMTU returns what a host says of the way to its only peer.
func pathMTU(t *testing.T, h *lab.Host) (mtu int, confirmed bool) {
	t.Helper()
	peers := ask[[]struct {
		PathMTU   int  `json:"path_mtu"`
		Confirmed bool `json:"path_mtu_confirmed"`
	}](t, h, "peers")
	if len(peers) != 1 {
		t.Fatalf("%s has %d peers", h.Name(), len(peers))
	}
	return peers[0].PathMTU, peers[0].Confirmed
}

func wantPathMTU(t *testing.T, h *lab.Host, within time.Duration, want int) {
	t.Helper()
	eventually(t, within, func() error {
		if got, ok := pathMTU(t, h); got != want || !ok {
			return fmt.Errorf("%s says a path MTU of %d, confirmed %v, want %d", h.Name(), got, ok, want)
		}
		return nil
	})
}

// TestPathMTU sends everything that there is over underlays of all kinds.
func TestPathMTU(t *testing.T) {
	for _, w := range []way{
		{link: 1280},
		{link: 1400},
		{link: 1500},
		{link: 9000},
		{link: 9000, hop: 1500},
		{link: 9000, hop: 1400},
		{link: 1500, hop: 1280},
		{link: 9000, other: 1500},
		{link: 1280, v6: true},
		{link: 1400, v6: true},
		{link: 1500, v6: true},
		{link: 9000, v6: true},
		{link: 9000, hop: 1500, v6: true},
		{link: 9000, hop: 1400, v6: true},
		{link: 1500, hop: 1280, v6: true},
	} {
		t.Run(w.String(), func(t *testing.T) {
			t.Parallel() // most of it is waiting
			l := newPathLab(t, w)
			for i, h := range []*lab.Host{l.a, l.b} {
				if s := ask[status](t, h, "status"); s.MTU != configured(w.links()[i]) {
					t.Errorf("%s has MTU %d, want %d", h.Name(), s.MTU, configured(w.links()[i]))
				}
				wantPathMTU(t, h, patience, w.path())
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for i, x := range [][2]*lab.Workload{{l.w1, l.w2}, {l.w2, l.w1}} {
				from, to := x[0], x[1]
				mtu := configured(w.links()[i])
				for _, addr := range to.Addrs() {
					fits := w.path()
					if addr.Is6() {
						fits = max(fits, 1280)
					}
					if _, err := l.Transfer(ctx, from.Namespace, to.Namespace, addr, 4<<20); err != nil {
						t.Error(err)
					}
					for _, size := range []int{100, fits, 4000, 20000} {
						// The kernels of both workloads learn the path MTU by ICMP, each at the cost of a packet.
						eventually(t, patience, func() error {
							_, err := from.Ping(lab.Ping{To: addr, Size: size, DontFragment: size == fits, Timeout: silence})
							return err
						})
					}
					for _, fragment := range []bool{false, true} {
						exchangeUDP(t, from, to, addr, fits, mtu, fragment)
					}
					if fits == mtu {
						continue
					}
					eventually(t, patience, func() error {
						_, err := from.Ping(lab.Ping{To: addr, Size: fits + 1, DontFragment: true, Timeout: silence})
						if !errors.Is(err, unix.EMSGSIZE) {
							return fmt.Errorf("a packet of %d bytes that must not be fragmented: %w", fits+1, err)
						}
						return nil
					})
				}
			}
			for _, h := range []*lab.Host{l.a, l.b} {
				wantPathMTU(t, h, patience, w.path())
				if n := strings.Count(h.Log(), "reach a peer"); w.path() == configured(w.link) && n > 0 || n > 3 {
					t.Errorf("%s says %d times that the path MTU changed", h.Name(), n)
				}
			}
		})
	}
}

// exchangeUDP sends datagrams: with don't-fragment up to the path MTU, which is known to be fits; without it, up to much larger than
// the interface of the workload, which hands packets of up to mtu bytes to Weft then.
func exchangeUDP(t *testing.T, from, to *lab.Workload, addr netip.Addr, fits, mtu int, fragment bool) {
	t.Helper()
	headers, level, option, mode := 28, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if addr.Is6() {
		headers, level, option, mode = 48, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	sizes := []int{1, fits - headers}
	if fragment {
		// Without believing what the kernel has learned of the path, so that Weft gets to see them as they are. IPv6 has to believe.
		mode, sizes = unix.IP_PMTUDISC_OMIT, []int{mtu - headers, 3000, 9000}
		if addr.Is6() {
			mode = unix.IPV6_PMTUDISC_DONT
		}
	}
	open := func(w *lab.Workload) (c *net.UDPConn) {
		err := w.Do(func() (err error) {
			c, err = net.ListenUDP("udp", nil)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	in, out := open(to), open(from)
	defer func() { _ = in.Close() }()
	defer func() { _ = out.Close() }()
	raw, err := out.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, mode) }), err); err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(in.LocalAddr().String()).Port()
	b := make([]byte, 64<<10)
	for _, size := range sizes {
		payload := bytes.Repeat([]byte{byte(size)}, size)
		for try := 1; ; try++ { // datagrams may get lost where the machine is busy
			if _, err := out.WriteToUDPAddrPort(payload, netip.AddrPortFrom(addr, port)); err != nil {
				t.Fatalf("%d bytes to %v: %v", size, addr, err)
			}
			if err := in.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := in.Read(b)
			if err == nil && bytes.Equal(b[:n], payload) {
				break
			}
			if try == 5 {
				t.Errorf("a datagram of %d bytes to %v, fragmented %v: got %d bytes, %v", size, addr, fragment, n, err)
				break
			}
		}
	}
}

// TestBlackHole narrows the hop between two hosts under a running stream, and nobody tells them. The stream goes on within 5 s; when the
// hop is wide again, that is noticed, too.
func TestBlackHole(t *testing.T) {
	for _, c := range []struct {
		name        string
		v6          bool
		noFragments bool
		narrow      int
	}{
		{"v4", false, false, 1400},
		{"v4 without fragments", false, true, 1400},
		{"v6", true, false, 1400},
		{"v6, narrowest", true, true, 1280},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := way{link: 1500, hop: 1500, v6: c.v6}
			l := newPathLab(t, w)
			for _, r := range l.routes {
				r.KeepQuiet()
			}
			if c.noFragments {
				l.a.DropFragments()
				l.b.DropFragments()
			}
			to := l.w2.Addrs()[0]
			if c.v6 {
				to = l.w2.Addrs()[1]
			}
			s := startStream(t, l.w1, l.w2, to)
			time.Sleep(3 * time.Second)
			wantPathMTU(t, l.a, patience, w.path())
			s.longest.Store(0)
			l.setHop(c.narrow)
			start := time.Now()
			narrow := way{link: 1500, hop: c.narrow, v6: c.v6}.path()
			wantPathMTU(t, l.a, 10*time.Second, narrow)
			found := time.Since(start)
			time.Sleep(7*time.Second - found)
			gap := time.Duration(s.longest.Load())
			t.Logf("the stream stood still for %v; the path MTU of %d was shown after %v", gap.Round(time.Millisecond), narrow, found.Round(time.Millisecond))
			if gap > 5*time.Second || s.idle() > time.Second {
				t.Errorf("the stream stood still for %v, and does for %v", gap, s.idle())
			}
			l.setHop(1500)
			wantPathMTU(t, l.a, 40*time.Second, w.path())
			s.stop()
		})
	}
}

// stream is a TCP connection on which data flow until it is stopped, at a moderate rate.
type stream struct {
	t       *testing.T
	conns   [2]net.Conn
	done    chan error
	last    atomic.Int64 // when something arrived, in ns
	longest atomic.Int64 // time without anything, in ns
	ending  atomic.Bool
}

func startStream(t *testing.T, from, to *lab.Workload, addr netip.Addr) *stream {
	t.Helper()
	s := &stream{t: t, done: make(chan error, 2)}
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	err = from.Do(func() (err error) {
		s.conns[0], err = net.DialTimeout("tcp", listener.Addr().String(), patience)
		return err
	})
	if err == nil {
		s.conns[1], err = listener.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	s.last.Store(time.Now().UnixNano())
	go func() { s.done <- s.write() }()
	go func() { s.done <- s.read() }()
	return s
}

func (s *stream) write() error {
	b := make([]byte, 32<<10)
	for !s.ending.Load() {
		if _, err := s.conns[0].Write(b); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

func (s *stream) read() error {
	b := make([]byte, 64<<10)
	for {
		if _, err := s.conns[1].Read(b); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		now := time.Now().UnixNano()
		s.longest.Store(max(s.longest.Load(), now-s.last.Swap(now)))
	}
}

// idle returns for how long nothing has arrived.
func (s *stream) idle() time.Duration { return time.Duration(time.Now().UnixNano() - s.last.Load()) }

// stop ends the stream. Once is enough.
func (s *stream) stop() {
	s.t.Helper()
	if s.ending.Swap(true) {
		return
	}
	err := <-s.done // of the writer, unless the reader has failed
	_ = s.conns[0].Close()
	if err := errors.Join(err, <-s.done); err != nil {
		s.t.Errorf("stream: %v", err)
	}
	_ = s.conns[1].Close()
}

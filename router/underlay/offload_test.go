// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func listenWith(t *testing.T, o Options) *Conn {
	t.Helper()
	conns, err := Listen(0, 1, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conns[0].Close(); err != nil {
			t.Error(err)
		}
	})
	return conns[0]
}

// collect receives n datagrams, from runs or singly, and returns them and the most that came together.
func collect(t *testing.T, c *Conn, n int) (all [][]byte, most int) {
	t.Helper()
	in := messages(4, 1<<16)
	for len(all) < n {
		await(t, c)
		k, err := c.Recv(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range in[:k] {
			count := 0
			for first, rest := Cut(m.Buf[:m.N], m.Segment); ; first, rest = Cut(rest, m.Segment) {
				all = append(all, bytes.Clone(first))
				count++
				if len(rest) == 0 {
					break
				}
			}
			most = max(most, count)
		}
	}
	return all, most
}

// runs are messages of one datagram and of many, and the datagrams in them.
func runs(to netip.AddrPort) (ms []Message, want [][]byte) {
	for i, r := range []struct{ segment, size int }{
		{0, 300}, {100, 100}, {200, 100}, {1000, 64 * 1000}, {1000, 2001}, {1440, 45 * 1440}, {1, 64}, {0, 0}, {500, 900},
	} {
		b := bytes.Repeat([]byte{byte(i + 1)}, r.size)
		for j := range b {
			b[j] += byte(j / 7)
		}
		ms = append(ms, Message{Buf: b, Segment: r.segment, Addr: to})
		for first, rest := Cut(b, r.segment); ; first, rest = Cut(rest, r.segment) {
			want = append(want, first)
			if len(rest) == 0 {
				break
			}
		}
	}
	return ms, want
}

func TestCut(t *testing.T) {
	for _, c := range []struct{ n, segment, first, rest int }{
		{0, 0, 0, 0}, {5, 0, 5, 0}, {5, 5, 5, 0}, {5, 6, 5, 0}, {5, 4, 4, 1}, {0, 3, 0, 0}, {5, -1, 5, 0},
	} {
		first, rest := Cut(make([]byte, c.n), c.segment)
		if len(first) != c.first || len(rest) != c.rest {
			t.Errorf("%d bytes by %d: %d and %d", c.n, c.segment, len(first), len(rest))
		}
	}
}

func TestRuns(t *testing.T) {
	for _, from := range []Options{{}, {NoGSO: true}} {
		for _, at := range []Options{{}, {NoGRO: true}} {
			for _, host := range []netip.Addr{loop4, loop6} {
				t.Run(fmt.Sprint(from.NoGSO, at.NoGRO, host), func(t *testing.T) {
					a, b := listenWith(t, from), listenWith(t, at)
					if a.GSO() == from.NoGSO || b.GRO() == at.NoGRO {
						t.Fatalf("GSO %v, GRO %v", a.GSO(), b.GRO())
					}
					ms, want := runs(netip.AddrPortFrom(host, b.Port()))
					if n, err := a.Send(ms); n != len(ms) || err != nil {
						t.Fatal(n, err)
					}
					got, most := collect(t, b, len(want))
					for i := range want {
						if !bytes.Equal(got[i], want[i]) {
							t.Fatalf("datagram %d: %d bytes, want %d", i, len(got[i]), len(want[i]))
						}
					}
					if together := most > 1; together != (a.GSO() && b.GRO()) {
						t.Errorf("%d datagrams came as one", most)
					}
				})
			}
		}
	}
}

// A socket that fills up in the middle of a run goes on there.
func TestRunsOverFullSocket(t *testing.T) {
	for _, o := range []Options{{}, {NoGSO: true}} {
		a, b := listenWith(t, o), listenWith(t, Options{})
		if err := unix.SetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
			t.Fatal(err)
		}
		ms, want := runs(netip.AddrPortFrom(loop4, b.Port()))
		var got [][]byte
		for n := 0; n < len(ms); {
			k, err := a.Send(ms[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += k
			if n < len(ms) {
				if _, err := unix.Poll([]unix.PollFd{{Fd: int32(a.FD()), Events: unix.POLLOUT}}, 5000); err != nil {
					t.Fatal(err)
				}
			}
		}
		got, _ = collect(t, b, len(want))
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("datagram %d: %d bytes, want %d", i, len(got[i]), len(want[i]))
			}
		}
	}
}

// inNamespace runs f in a network namespace of its own whose loopback device is up.
func inNamespace(t *testing.T, f func(lo netlink.Link)) {
	t.Helper()
	done := make(chan bool)
	go func() {
		ok := false
		defer func() { done <- ok }()
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := netns.New()
		if err != nil {
			t.Errorf("making a network namespace: %v (this test needs root)", err)
			return
		}
		defer func() { _ = ns.Close() }()
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Error(err)
			return
		}
		f(lo)
		ok = true
	}()
	if !<-done {
		t.FailNow()
	}
}

// Where a link is too narrow for the datagrams of a run they are fragmented if they may be.
func TestRunsOverNarrowLink(t *testing.T) {
	inNamespace(t, func(lo netlink.Link) {
		if err := netlink.LinkSetMTU(lo, 1300); err != nil {
			t.Error(err)
			return
		}
		a, b := listenWith(t, Options{}), listenWith(t, Options{})
		for _, host := range []netip.Addr{loop4, loop6} {
			ms, want := runs(netip.AddrPortFrom(host, b.Port()))
			for i := range ms {
				ms[i].Fragment = true
			}
			if n, err := a.Send(ms); n != len(ms) || err != nil {
				t.Errorf("%v: %d, %v", host, n, err)
				return
			}
			got, _ := collect(t, b, len(want))
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Errorf("datagram %d: %d bytes, want %d", i, len(got[i]), len(want[i]))
				}
			}
			if !a.GSO() {
				t.Error("one narrow link switched runs off for all")
			}
		}
	})
}

// tunnel makes a TUN device with the address 10.9.0.1/24 and returns its descriptor, which does not block.
func tunnel(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = func() error {
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.9.0.1/24")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
	}()
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Datagrams that may be fragmented have identifications of their own, so that no fragments of two are joined.
func TestIdentifications(t *testing.T) {
	inNamespace(t, func(netlink.Link) {
		fd, err := tunnel("ids0")
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		a := listenWith(t, Options{})
		for _, addr := range []string{"10.9.0.2", "::ffff:10.9.0.2"} {
			to := netip.AddrPortFrom(netip.MustParseAddr(addr), 9)
			var ms []Message
			const each, messages = 10, 8
			for range messages {
				ms = append(ms, Message{Buf: make([]byte, each*1000), Segment: 1000, Addr: to, Fragment: true})
			}
			if n, err := a.Send(ms); n != len(ms) || err != nil {
				t.Errorf("%d, %v", n, err)
				return
			}
			seen := map[uint16]bool{}
			got, b := 0, make([]byte, 65536)
			for {
				n, err := unix.Read(fd, b)
				if err != nil {
					break
				}
				if n != 1028 || b[0] != 0x45 || b[9] != unix.IPPROTO_UDP {
					continue // not ours
				}
				got++
				if b[6]&0x40 != 0 {
					t.Error("a datagram must not be fragmented")
				}
				seen[binary.BigEndian.Uint16(b[4:])] = true
			}
			if got != each*messages || len(seen) != got {
				t.Errorf("%d datagrams have %d identifications", got, len(seen))
			}
		}
	})
}

// What must not be fragmented and does not fit is an error, time and again; the rest passes as ever.
func TestWholeOverNarrowLink(t *testing.T) {
	inNamespace(t, func(lo netlink.Link) {
		if err := netlink.LinkSetMTU(lo, 1300); err != nil {
			t.Error(err)
			return
		}
		a, b := listenWith(t, Options{}), listenWith(t, Options{})
		for _, host := range []netip.Addr{loop4, loop6} {
			to := netip.AddrPortFrom(host, b.Port())
			fits, large := 1300-28, 1300-27
			if host.Is6() {
				fits, large = 1300-48, 1300-47
			}
			for range 2 {
				ms := []Message{
					{Buf: make([]byte, 10*fits), Segment: fits, Addr: to},
					{Buf: make([]byte, 10*large), Segment: large, Addr: to},
					{Buf: make([]byte, 2*large), Segment: large, Addr: to, Fragment: true},
					{Buf: make([]byte, large), Addr: to},
					{Buf: make([]byte, fits), Addr: to},
				}
				var failed []int
				for at := 0; at < len(ms); {
					n, err := a.Send(ms[at:])
					if at += n; err != nil {
						if !errors.Is(err, unix.EMSGSIZE) {
							t.Error(err)
						}
						failed = append(failed, at)
						at++
					}
				}
				if fmt.Sprint(failed) != "[1 3]" {
					t.Errorf("%v: messages %v failed", host, failed)
				}
				got, most := collect(t, b, 13)
				for i, d := range got {
					want := fits
					if i == 10 || i == 11 {
						want = large
					}
					if len(d) != want {
						t.Errorf("datagram %d has %d bytes, want %d", i, len(d), want)
					}
				}
				if most != 10 || !a.GSO() {
					t.Errorf("at most %d came together, GSO %v", most, a.GSO())
				}
				if err := a.SendWhole(make([]byte, large), to); !errors.Is(err, unix.EMSGSIZE) {
					t.Errorf("SendWhole: %v", err)
				}
				for _, err := range []error{a.SendTo(make([]byte, large), to, 0), a.SendWhole(make([]byte, fits), to)} {
					if err != nil {
						t.Error(err)
					}
				}
				if got, _ := collect(t, b, 2); len(got[0]) != large || len(got[1]) != fits {
					t.Errorf("%d and %d bytes", len(got[0]), len(got[1]))
				}
			}
		}
	})
}

// A device that cannot segment is not asked again, by any socket, and that is said once.
func TestGivesUpGSO(t *testing.T) {
	var told []string
	conns, err := Listen(0, 2, Options{Fallback: func(err error) {
		if !errors.Is(err, unix.EIO) {
			t.Error(err)
		}
		told = append(told, err.Error())
	}})
	if err != nil {
		t.Fatal(err)
	}
	b := listenWith(t, Options{})
	for _, errno := range []unix.Errno{unix.EINVAL, unix.EMSGSIZE} {
		if !conns[0].gso.refused(errno) || !conns[0].GSO() {
			t.Errorf("%v: GSO %v", errno, conns[0].GSO())
		}
	}
	if conns[0].gso.refused(unix.ENETUNREACH) || !conns[0].GSO() {
		t.Error("an error of the network was taken for one of the device")
	}
	for _, c := range conns {
		if !c.gso.refused(unix.EIO) || c.GSO() {
			t.Error("GSO is still on")
		}
		ms, want := runs(netip.AddrPortFrom(loop4, b.Port()))
		if n, err := c.Send(ms); n != len(ms) || err != nil {
			t.Fatal(n, err)
		}
		got, most := collect(t, b, len(want))
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("datagram %d: %d bytes, want %d", i, len(got[i]), len(want[i]))
			}
		}
		if most > 1 {
			t.Errorf("%d datagrams came as one", most)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(told) != 1 || !strings.Contains(told[0], "--no-gso") {
		t.Errorf("told %q", told)
	}
}

func TestRunsDoNotAllocate(t *testing.T) {
	for _, o := range []Options{{}, {NoGSO: true}} {
		a, b := listenWith(t, o), listenWith(t, Options{})
		whole, want := runs(netip.AddrPortFrom(loop4, b.Port()))
		ms := make([]Message, len(whole))
		in := messages(len(want), 1<<16)
		if n := testing.AllocsPerRun(20, func() {
			copy(ms, whole)
			if n, err := a.Send(ms); n != len(ms) || err != nil {
				t.Fatal(n, err)
			}
			for range 10 {
				if _, err := b.Recv(in); err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations", o.NoGSO, n)
		}
	}
}

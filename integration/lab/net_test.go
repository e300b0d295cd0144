// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const soon = 10 * time.Second

// reaches says whether a ping is answered; where it should be, it gets more time than where it should not.
func reaches(t *testing.T, from *Namespace, to netip.Addr, want bool) {
	t.Helper()
	if want {
		if _, err := from.Reach(to, soon); err != nil {
			t.Error(err)
		}
	} else if _, err := from.Ping(Ping{To: to, Timeout: 80 * time.Millisecond}); err == nil {
		t.Errorf("%s reaches %v", from.Name(), to)
	}
}

func TestSwitch(t *testing.T) {
	l := New(t)
	s := l.Switch("lan")
	a, b := l.Host("a", s), l.Host("b", s)
	only4, only6 := l.Host("c", s, OnlyV4), l.Host("d", s, OnlyV6)
	for _, to := range []netip.Addr{b.Link().V4(), b.Link().V6(), only4.Link().V4(), only6.Link().V6()} {
		reaches(t, a.Namespace, to, true)
	}
	if only4.Link().V6().IsValid() || only6.Link().V4().IsValid() {
		t.Error("a host has an address that it should not have")
	}
	reaches(t, only6.Namespace, b.Link().V4(), false)
	reaches(t, a.Namespace, netip.MustParseAddr("198.51.100.1"), false) // swallowed by the gateway
	if _, err := a.Latency(b.Link().V4(), 5); err != nil {
		t.Error(err)
	}
	if !s.V4().Contains(a.Link().V4()) || !s.V6().Contains(a.Link().V6()) {
		t.Errorf("%v and %v are not in %v and %v", a.Link().V4(), a.Link().V6(), s.V4(), s.V6())
	}
}

func TestLinkDown(t *testing.T) {
	l := New(t)
	s := l.Switch("lan")
	a, b, c := l.Host("a", s), l.Host("b", s), l.Host("c", s)
	reaches(t, a.Namespace, b.Link().V6(), true)
	b.Link().Down()
	reaches(t, a.Namespace, b.Link().V4(), false)
	reaches(t, a.Namespace, b.Link().V6(), false)
	reaches(t, a.Namespace, c.Link().V4(), true)
	b.Link().Up()
	reaches(t, a.Namespace, b.Link().V4(), true)
	reaches(t, a.Namespace, b.Link().V6(), true)
}

func TestPartition(t *testing.T) {
	l := New(t)
	s := l.Switch("lan")
	a, b, c := l.Host("a", s), l.Host("b", s), l.Host("c", s)
	check := func(ab, ac, bc bool) {
		t.Helper()
		for _, x := range []struct {
			from, to *Host
			want     bool
		}{{a, b, ab}, {b, a, ab}, {a, c, ac}, {c, a, ac}, {b, c, bc}, {c, b, bc}} {
			reaches(t, x.from.Namespace, x.to.Link().V4(), x.want)
			reaches(t, x.from.Namespace, x.to.Link().V6(), x.want)
		}
	}
	check(true, true, true)
	s.Partition([]*Link{c.Link()})
	check(true, false, false)
	s.Heal()
	check(true, true, true)
	s.Cut(a.Link(), c.Link()) // b still reaches both
	check(true, false, true)
	s.Partition([]*Link{a.Link()}, []*Link{b.Link()}, []*Link{c.Link()})
	check(false, false, false)
	s.Heal()
	check(true, true, true)
}

func TestLoss(t *testing.T) {
	l := New(t)
	s := l.Switch("lan")
	a, b, c := l.Host("a", s), l.Host("b", s), l.Host("c", s)
	reaches(t, a.Namespace, b.Link().V4(), true) // neighbours are known
	reaches(t, a.Namespace, c.Link().V4(), true)
	answers := func(to *Host) (n int) {
		for range 100 {
			if _, err := a.Ping(Ping{To: to.Link().V4(), Timeout: 20 * time.Millisecond}); err == nil {
				n++
			} else if !errors.Is(err, ErrNoAnswer) {
				t.Fatal(err)
			}
		}
		return n
	}
	b.Link().Lose(0.3) // there and back: about half of the answers come
	if n := answers(b); n < 20 || n > 80 {
		t.Errorf("%d of 100 pings answered at 30%% loss in each direction", n)
	}
	reaches(t, a.Namespace, c.Link().V4(), true)
	s.Heal() // does not end losses
	b.Link().Lose(1)
	if n := answers(b); n != 0 {
		t.Errorf("%d of 100 pings answered at full loss", n)
	}
	b.Link().Lose(0)
	reaches(t, a.Namespace, b.Link().V4(), true)
}

func TestMTU(t *testing.T) {
	l := New(t)
	s := l.Switch("lan")
	a, b := l.Host("a", s), l.Host("b", s, MTU(1400))
	ping := func(from *Host, to netip.Addr, size int) error {
		_, err := from.Ping(Ping{To: to, Size: size, DontFragment: true, Timeout: 80 * time.Millisecond})
		return err
	}
	for _, v := range []struct {
		name string
		of   func(*Host) netip.Addr
	}{{"v4", func(h *Host) netip.Addr { return h.Link().V4() }}, {"v6", func(h *Host) netip.Addr { return h.Link().V6() }}} {
		t.Run(v.name, func(t *testing.T) {
			reaches(t, a.Namespace, v.of(b), true)
			if err := ping(a, v.of(b), 1400); err != nil {
				t.Error(err)
			}
			if err := ping(a, v.of(b), 1405); !errors.Is(err, ErrNoAnswer) {
				t.Errorf("too long for the link behind the switch: %v", err)
			}
			if err := ping(b, v.of(a), 1401); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("too long for the host's own link: %v", err)
			}
			if err := ping(a, v.of(b), 10); err == nil {
				t.Error("a packet shorter than its headers was sent")
			}
		})
	}
	b.Link().SetMTU(1500)
	if err := ping(a, b.Link().V4(), 1500); err != nil {
		t.Error(err)
	}
}

func TestRouter(t *testing.T) {
	l := New(t)
	lan1, wan, lan2 := l.Switch("lan1"), l.Switch("wan"), l.Switch("lan2")
	r1 := l.Router("r1", lan1, wan)
	r2 := l.Router("r2", lan2, wan)
	r1.Route(lan2, r2, wan)
	a, b := l.Host("a", lan1), l.Host("b", lan2)
	reaches(t, a.Namespace, b.Link().V4(), true)
	reaches(t, b.Namespace, a.Link().V6(), true)
	if r1.Link(lan2) != nil {
		t.Error("r1 has a link to lan2")
	}

	// A router tells the sender that a packet is too long, unlike a switch.
	r1.Link(wan).SetMTU(1300)
	var err error
	for range 3 {
		_, err = a.Ping(Ping{To: b.Link().V4(), Size: 1301, DontFragment: true, Timeout: 200 * time.Millisecond})
	}
	if !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a packet too long for the path: %v", err)
	}
}

// udpSocket opens a UDP socket inside the namespace.
func udpSocket(t *testing.T, n *Namespace, port uint16) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv4Unspecified(), port)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t *testing.T, c *net.UDPConn, to netip.AddrPort) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte("x"), to); err != nil {
		t.Fatal(err)
	}
}

func receive(c *net.UDPConn, timeout time.Duration) (netip.AddrPort, error) {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return netip.AddrPort{}, err
	}
	_, from, err := c.ReadFromUDPAddrPort(make([]byte, 16))
	return from, err
}

func TestNAT(t *testing.T) {
	for _, tt := range []struct {
		name string
		kind NATKind
	}{{"keep", KeepPorts}, {"random", RandomPorts}} {
		t.Run(tt.name, func(t *testing.T) {
			l := New(t)
			home, wan := l.Switch("home"), l.Switch("wan")
			r := l.Router("nat", home, wan)
			r.NAT(wan, tt.kind)
			inside, p1, p2 := l.Host("inside", home), l.Host("p1", wan), l.Host("p2", wan)
			outer := r.Link(wan).V4()
			reaches(t, inside.Namespace, p1.Link().V4(), true)
			reaches(t, inside.Namespace, p1.Link().V6(), true)
			reaches(t, p1.Namespace, inside.Link().V4(), false)

			c, s1, s2 := udpSocket(t, inside.Namespace, 6783), udpSocket(t, p1.Namespace, 6783), udpSocket(t, p2.Namespace, 6783)
			// Nobody gets in before something went out, and asking does not spoil what follows.
			for _, port := range []uint16{6783, 40000} {
				send(t, s1, netip.AddrPortFrom(outer, port))
			}
			send(t, c, netip.AddrPortFrom(p1.Link().V4(), 6783))
			send(t, c, netip.AddrPortFrom(p2.Link().V4(), 6783))
			from1, err1 := receive(s1, soon)
			from2, err2 := receive(s2, soon)
			if err1 != nil || err2 != nil || from1.Addr() != outer || from2.Addr() != outer {
				t.Fatalf("seen from %v, %v; errors %v, %v", from1, from2, err1, err2)
			}
			if kept := from1.Port() == 6783 && from2.Port() == 6783; kept != (tt.kind == KeepPorts) {
				t.Errorf("outer ports are %d and %d", from1.Port(), from2.Port())
			}
			send(t, s1, from1)
			if from, err := receive(c, soon); err != nil || from.Addr() != p1.Link().V4() {
				t.Errorf("the answer came from %v, %v", from, err)
			}
			other := udpSocket(t, p1.Namespace, 7777)
			send(t, other, from1)
			if from, err := receive(c, 150*time.Millisecond); err == nil {
				t.Errorf("a packet of %v came in through the mapping for another port", from)
			}
		})
	}
}

func TestTransferAndCapture(t *testing.T) {
	l := New(t)
	s := l.Switch("lan")
	a, b := l.Host("a", s), l.Host("b", s)
	marker := []byte(l.Marker())
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	a.Link().Segmented()
	all, little := l.Capture(a.Namespace, "eth0", 0), l.Capture(b.Namespace, "eth0", 20_000)
	const size = 3<<20 + 11
	for _, addr := range []netip.Addr{b.Link().V4(), b.Link().V6()} {
		got, err := l.TransferSum(ctx, a.Namespace, b.Namespace, addr, size)
		if err != nil {
			t.Fatal(err)
		}
		if got.Bytes != size || got.BitsPerSecond() <= 0 || len(got.Checksum) != 64 {
			t.Errorf("transfer over %v: %+v", addr, got)
		}
	}
	all.Stop()
	little.Stop()
	all.Stop() // again
	if all.Missed() != 0 {
		t.Errorf("missed %d frames", all.Missed())
	}
	// Cut to the MTU, each transfer fills more than 2,000 frames, and all of them hold the marker.
	if n := all.Count(marker); n < 2*size/1500 {
		t.Errorf("the marker is in %d frames of %d", n, len(all.Frames()))
	}
	if n := all.Count([]byte("not in the payload")); n != 0 {
		t.Errorf("%d frames with bytes that nobody sent", n)
	}
	for _, f := range all.Frames() {
		if len(f.Data) > 1514 {
			t.Errorf("a frame of %d bytes", len(f.Data))
			break
		}
	}
	if little.Missed() == 0 {
		t.Error("a capture of 20,000 bytes holds everything")
	}
	var file bytes.Buffer
	if err := all.WritePCAP(&file); err != nil {
		t.Fatal(err)
	}
	want := 24
	for _, f := range all.Frames() {
		want += 16 + len(f.Data)
	}
	if file.Len() != want || binary.LittleEndian.Uint32(file.Bytes()) != 0xa1b23c4d || binary.LittleEndian.Uint32(file.Bytes()[20:]) != linkEthernet {
		t.Errorf("%d bytes of pcap, want %d, header % x", file.Len(), want, file.Bytes()[:24])
	}

	// What cannot work ends with an error and leaves nothing waiting.
	s.Cut(a.Link(), b.Link())
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if _, err := l.Transfer(short, a.Namespace, b.Namespace, b.Link().V4(), size); !isTimeout(err) {
		t.Errorf("transfer over a cut link: %v", err)
	}
	if _, err := l.Transfer(ctx, a.Namespace, b.Namespace, netip.MustParseAddr("198.51.100.1"), size); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("transfer to an address that nobody has: %v", err)
	}
}

func TestPayload(t *testing.T) {
	l := &Lab{marker: "weft-lab-marker-0123456789abcdef"}
	r := &repeater{block: l.payload()}
	stream := make([]byte, 3*blockLen)
	if n, err := r.Read(stream); n != blockLen || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	for i := blockLen; i < len(stream); {
		n, err := r.Read(stream[i:])
		if err != nil {
			t.Fatal(err)
		}
		i += n
	}
	if n := bytes.Count(stream[:blockLen], []byte(l.marker)); n != blockLen/markerEvery {
		t.Errorf("%d markers in a block", n)
	}
	check := &repeater{block: l.payload()}
	for i := 0; i < len(stream); i += 777 {
		if at, ok := check.match(stream[i:min(i+777, len(stream))]); !ok {
			t.Fatalf("differs at %d", i+at)
		}
	}
	bad := bytes.Clone(stream)
	bad[2*blockLen+5] ^= 1
	if at, ok := (&repeater{block: l.payload()}).match(bad); ok || at != 2*blockLen+5 {
		t.Errorf("a wrong byte at %d found at %d, %v", 2*blockLen+5, at, !ok)
	}
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// TestUnderlaySeesNothing captures everything between two hosts from the first packet on, and looks for the payload and for
// what gossip carries.
func TestUnderlaySeesNothing(t *testing.T) {
	l := lab.New(t)
	lan := l.Switch("lan")
	a, b := l.Host("founder-of-the-mesh", lan), l.Host("joiner-of-the-mesh", lan)
	below := l.Capture(a.Namespace, a.Link().Device(), 256<<20)
	a.Launch("--range", lab.DefaultRange)
	if err := a.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	secret := a.Token()
	b.Join(secret, []*lab.Host{a}, "--range", lab.DefaultRange)
	if err := b.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	w1, w2 := a.Workload("w1"), b.Workload("w2")
	w1.Attach()
	w2.Attach()
	allReach(t, patience, w1, w2)
	above := l.Capture(a.Namespace, "weft0", 256<<20)
	const size = 32 << 20
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, to := range w2.Addrs() {
		if _, err := l.Transfer(ctx, w1.Namespace, w2.Namespace, to, size); err != nil {
			t.Fatal(err)
		}
	}
	below.Stop()
	above.Stop()
	if n := above.Count([]byte(l.Marker())); n == 0 {
		t.Error("the payload is not found before encryption either: this test shows nothing")
	}
	if below.Missed() != 0 {
		t.Errorf("%d frames of the underlay were not recorded", below.Missed())
	}
	var bytes int
	for _, f := range below.Frames() {
		bytes += len(f.Data)
	}
	if bytes < 2*size {
		t.Errorf("%d bytes captured on the underlay, %d bytes of payload sent", bytes, 2*size)
	}
	for _, s := range []string{l.Marker(), secret, a.Name(), b.Name()} {
		if n := below.Count([]byte(s)); n != 0 {
			t.Errorf("%d frames on the underlay hold %q in clear", n, s)
		}
	}
	// Four bytes can occur by chance in so much ciphertext; sixteen cannot.
	noPlaintext(t, below, []netip.Addr{w1.V6, w2.V6})
	onePort(t, below)
}

// onePort checks that what went over the underlay by UDP or TCP went by Weft's port.
func onePort(t *testing.T, c *lab.Capture) {
	t.Helper()
	const ethernet, port = 14, 6783
	for _, f := range c.Frames() {
		if len(f.Data) < ethernet+60 || binary.BigEndian.Uint16(f.Data[12:]) != unix.ETH_P_IP {
			continue
		}
		ip := f.Data[ethernet:]
		if proto := ip[9]; proto != unix.IPPROTO_UDP && proto != unix.IPPROTO_TCP {
			continue
		}
		transport := ip[4*(ip[0]&15):]
		from, to := binary.BigEndian.Uint16(transport), binary.BigEndian.Uint16(transport[2:])
		if from != port && to != port {
			t.Errorf("a packet from port %d to port %d", from, to)
			return
		}
	}
}

// TestOtherToken lets a host with another token knock, again and again.
func TestOtherToken(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 2)
	stranger := m.Host("stranger", m.Segment)
	file := stranger.File("token", token(t, stranger)+"\n", 0o600)
	before := snapshot(t, stranger.Namespace)
	for range 5 {
		r := stranger.RunLaunch("--token-file", file, "--peer", m.Hosts()[0].Link().V4().String(), "--range", lab.DefaultRange)
		refusedLaunch(t, r, "token", m.Hosts()[0].Link().V4().String())
	}
	same(t, "the stranger's host", before, snapshot(t, stranger.Namespace))
	if left := files(t, stranger.DataDir()); left != "" {
		t.Errorf("the stranger's files:\n%s", left)
	}
	// It knocks on the data port, too: with packets of every type that there is.
	conn := udp(t, stranger.Namespace)
	for _, size := range []int{1, 32, 92, 148, 64, 1400} {
		for kind := range 20 {
			packet := make([]byte, size)
			packet[0] = byte(kind)
			if _, err := conn.WriteToUDPAddrPort(packet, netip.AddrPortFrom(m.Hosts()[0].Link().V4(), 6783)); err != nil {
				t.Fatal(err)
			}
		}
	}
	allReach(t, patience, m.Workloads...)
	for _, h := range m.Hosts()[:2] {
		said := map[string]int{}
		for line := range strings.Lines(h.Log()) {
			if _, text, ok := strings.Cut(line, "\t"); ok && strings.Contains(line, stranger.Link().V4().String()) {
				said[text]++
			}
		}
		for text, n := range said {
			if n > 1 {
				t.Errorf("%s says %d times: %s", h.Name(), n, text)
			}
		}
		if tried := h == m.Hosts()[0]; tried != (len(said) > 0) || len(said) > 3 {
			t.Errorf("%s has %d lines about the stranger: %v", h.Name(), len(said), said)
		}
		if s := ask[status](t, h, "status"); s.Nodes.Total != 2 {
			t.Errorf("%s counts %d nodes", h.Name(), s.Nodes.Total)
		}
	}
}

func udp(t *testing.T, n *lab.Namespace) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestForgedSource lets a workload send under the address of another host's workload. Nobody gets it.
func TestForgedSource(t *testing.T) {
	m := lab.Mesh(t, 3)
	allReach(t, patience, m.Workloads...)
	liar, victim, target := m.Workloads[0], m.Workloads[1], m.Workloads[2]
	heard := m.Capture(target.Namespace, "eth0", 0)
	payload := []byte("a forged datagram")
	err := liar.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // with the header included
		if err != nil {
			return err
		}
		packet := datagram(victim.V4, target.V4, payload)
		err = unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: target.V4.As4()})
		return errors.Join(err, unix.Close(fd))
	})
	if err != nil {
		t.Fatal(err)
	}
	// The same datagram from the one whose address it is does arrive.
	conn := udp(t, victim.Namespace)
	if _, err := conn.WriteToUDPAddrPort([]byte("an honest datagram"), netip.AddrPortFrom(target.V4, 9)); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		if heard.Count([]byte("an honest datagram")) == 0 {
			return errors.New("the honest datagram has not arrived")
		}
		return nil
	})
	time.Sleep(silence)
	heard.Stop()
	if heard.Count(payload) != 0 {
		t.Errorf("%s got a datagram of %s under the address of %s", target.Name(), liar.Name(), victim.Name())
	}
}

// datagram builds an IPv4 packet with a UDP datagram without checksum. The kernel fills in the header's checksum and length.
func datagram(from, to netip.Addr, payload []byte) []byte {
	b := []byte{0: 0x45, 8: 64, 9: unix.IPPROTO_UDP, 19: 0}
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	b = binary.BigEndian.AppendUint16(b, 9)
	b = binary.BigEndian.AppendUint16(b, 9)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = binary.BigEndian.AppendUint16(b, 0)
	return append(b, payload...)
}

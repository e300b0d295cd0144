// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stream sends size bytes by TCP from one workload to the other, and fails unless they arrive as they are.
func stream(t *testing.T, from, to *place, a netip.Addr, size int) {
	t.Helper()
	var l net.Listener
	in(t, to.work, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	})
	defer l.Close()
	var c net.Conn
	in(t, from.work, func() (err error) {
		c, err = net.DialTimeout("tcp", l.Addr().String(), patience)
		return err
	})
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(patience)))
	sent, got := sha256.New(), sha256.New()
	var sender sync.WaitGroup
	sender.Go(func() {
		block := make([]byte, 1<<16)
		for i := 0; i < size; i += len(block) {
			for j := range block {
				block[j] = byte(i>>16 + j*j)
			}
			sent.Write(block)
			if _, err := c.Write(block); err != nil {
				t.Errorf("sending: %v", err)
				return
			}
		}
		_ = c.(*net.TCPConn).CloseWrite()
	})
	s, err := l.Accept()
	must(t, err)
	defer s.Close()
	must(t, s.SetDeadline(time.Now().Add(patience)))
	n, err := io.Copy(got, s)
	must(t, err)
	sender.Wait()
	if n < int64(size) || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("of %d bytes %d arrived, the same: %v", size, n, bytes.Equal(sent.Sum(nil), got.Sum(nil)))
	}
}

// Most packets of a stream go around the stacks of both hosts, and every byte arrives.
func TestStreamBypasses(t *testing.T) {
	ps := newPlaces(t)
	for _, a := range []netip.Addr{v4(2, 2), v6(2, 2)} {
		before, there := ps[0].count(t), ps[1].count(t)
		stream(t, ps[0], ps[1], a, 64<<20)
		if n, m := ps[0].count(t)-before, ps[1].count(t)-there; n < 500 || m < 500 {
			t.Errorf("to %v: %d and %d packets went around the stacks", a, n, m)
		}
	}
}

// A flow of UDP datagrams from one workload to the other.
type datagrams struct {
	from, to *net.UDPConn
	ttl      int // of the last one that was received
}

func newDatagrams(t *testing.T, from, to *place, a netip.Addr) *datagrams {
	t.Helper()
	d := &datagrams{}
	in(t, to.work, func() (err error) {
		d.to, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	})
	in(t, from.work, func() (err error) {
		d.from, err = net.DialUDP("udp", nil, d.to.LocalAddr().(*net.UDPAddr))
		return err
	})
	t.Cleanup(func() { _, _ = d.from.Close(), d.to.Close() })
	raw, err := d.to.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		if a.Is4() {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		}
	}))
	must(t, err)
	return d
}

// pass sends one datagram and says whether it arrived, soon if that is to be expected.
func (d *datagrams) pass(t *testing.T, size int) bool {
	t.Helper()
	return d.passWithin(t, size, 200*time.Millisecond)
}

func (d *datagrams) passWithin(t *testing.T, size int, wait time.Duration) bool {
	t.Helper()
	_, _ = d.from.Write(make([]byte, size)) // an error tells of one before
	must(t, d.to.SetReadDeadline(time.Now().Add(wait)))
	b, oob := make([]byte, 1<<16), make([]byte, 128)
	n, on, _, _, err := d.to.ReadMsgUDP(b, oob)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return false
	}
	must(t, err)
	if n != size {
		t.Errorf("%d bytes arrived, not %d", n, size)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:on])
	must(t, err)
	for _, m := range messages {
		if m.Header.Type == unix.IP_TTL || m.Header.Type == unix.IPV6_HOPLIMIT {
			d.ttl = int(m.Data[0])
		}
	}
	return true
}

// warm sends until datagrams go around the stacks of both hosts.
func (d *datagrams) warm(t *testing.T, ps [2]*place) {
	t.Helper()
	eventually(t, "datagrams go around both stacks", func() bool {
		for range 2 * big {
			if !d.pass(t, 100) {
				return false
			}
		}
		before, there := ps[0].count(t), ps[1].count(t)
		return d.pass(t, 100) && ps[0].count(t) > before && ps[1].count(t) > there
	})
}

// Packets that go around the stack are as those that do not, and one of each flow goes through it every second.
func TestDatagramsBypass(t *testing.T) {
	ps := newPlaces(t)
	for _, a := range []netip.Addr{v4(2, 2), v6(2, 2)} {
		d := newDatagrams(t, ps[0], ps[1], a)
		eventually(t, "neighbours are found", func() bool { return d.pass(t, 100) })
		if d.ttl != 62 {
			t.Fatalf("to %v: the first datagram arrived with the TTL %d", a, d.ttl)
		}
		d.warm(t, ps)
		around, all := ps[0].count(t), uint64(0)
		for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); all++ {
			if !d.passWithin(t, 100, patience) || d.ttl != 62 {
				t.Fatalf("to %v: a datagram arrived with the TTL %d, or not at all", a, d.ttl)
			}
		}
		if around = ps[0].count(t) - around; around < all/2 || around > all-2 {
			t.Errorf("to %v: of %d datagrams %d went around the stack", a, all, around)
		}
	}
}

// What the stack does not let pass any more stops within a second, at once if it is to be forgotten.
func TestStackDecides(t *testing.T) {
	ps := newPlaces(t)
	for _, forget := range []bool{false, true} {
		d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
		d.warm(t, ps)
		r := &netlink.Route{Dst: &net.IPNet{IP: v4(2, 2).AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: unix.RTN_BLACKHOLE}
		resume := func() {}
		if forget {
			resume = ps[1].Pause()
		}
		must(t, ps[1].handle.RouteAdd(r))
		resume()
		since := time.Now()
		for d.pass(t, 100) {
			if took := time.Since(since); forget || took > 1500*time.Millisecond {
				t.Fatalf("forget %v: datagrams arrive %v after the route has changed", forget, took)
			}
			time.Sleep(time.Millisecond)
		}
		must(t, ps[1].handle.RouteDel(r))
		eventually(t, "datagrams arrive again", func() bool { return d.pass(t, 100) })
	}
}

// In a pause every packet goes through the stack.
func TestPause(t *testing.T) {
	ps := newPlaces(t)
	d := newDatagrams(t, ps[0], ps[1], v6(2, 2))
	d.warm(t, ps)
	one, two := ps[0].Pause(), ps[0].Pause()
	one()
	before := ps[0].count(t)
	for range 20 {
		if !d.passWithin(t, 100, patience) {
			t.Error("a datagram is lost")
		}
	}
	if n := ps[0].count(t) - before; n != 0 {
		t.Errorf("%d packets went around the stack", n)
	}
	two()
	two()
	d.warm(t, ps)
}

// A packet that is larger than what the stack has let pass goes through it, which says that it is too large.
func TestLargerPackets(t *testing.T) {
	ps := newPlaces(t)
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
	must(t, ps[0].handle.LinkSetMTU(ps[0].vxlan, 1000))
	raw, err := d.from.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}))
	must(t, err)
	_, err = d.from.Write(make([]byte, 1200))
	must(t, err)
	eventually(t, "the sender learns that 1200 bytes are too many", func() bool {
		_, err := d.from.Write(make([]byte, 1200))
		return errors.Is(err, unix.EMSGSIZE)
	})
	d.warm(t, ps)
}

// The programs end with the process, by which nothing is lost, and the next run brings its own.
func TestRunsFollowEachOther(t *testing.T) {
	ps := newPlaces(t)
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
	if now := ps[0].programs(t); len(now) != 5 {
		t.Errorf("the programs %v are there", now)
	}
	ps[0].end()
	if now := ps[0].programs(t); len(now) != 0 {
		t.Errorf("the programs %v are left", now)
	}
	for range 50 {
		if !d.passWithin(t, 100, patience) {
			t.Error("a datagram is lost while no process is there")
		}
	}
	ps[0].start(t)
	d.warm(t, ps)
	for _, held := range ps[0].held() { // somebody removes them: they come again
		if held.in >= 0 { // the link has none
			must(t, detachLink(held.in))
		}
		must(t, detachLink(held.out))
	}
	ps[0].raise()
	d.warm(t, ps)
	ps[0].Remove()
	before := ps[0].count(t)
	for range 2 * big {
		if !d.passWithin(t, 100, patience) {
			t.Error("a datagram is lost when the programs are to go")
		}
	}
	if n := ps[0].count(t) - before; n != 0 {
		t.Errorf("%d packets go around the stack after Remove", n)
	}
	ps[0].end()
	if now := ps[0].programs(t); len(now) != 0 {
		t.Errorf("the programs %v are left", now)
	}
}

// held are the descriptors of the links.
func (b *Bypass) held() map[int]places {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.links)
}

// detachLink makes a link useless, as somebody else with its number can.
func detachLink(link int) error {
	a := [4]uint32{uint32(link)}
	_, err := bpf(unix.BPF_LINK_DETACH, unsafe.Pointer(&a), unsafe.Sizeof(a))
	return err
}

// programs are those of the devices that are served.
func (p *place) programs(t *testing.T) (ids []uint32) {
	t.Helper()
	in(t, p.ns, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, l := range []netlink.Link{p.veth, p.vxlan, link} {
			for _, h := range []hook{hookIn, hookOut} {
				list, err := attached(l.Attrs().Index, h)
				if err != nil {
					return err
				}
				ids = append(ids, list...)
			}
		}
		return nil
	})
	return ids
}

// Where somebody filters what comes in, nothing overtakes that; and where connection tracking minds, nothing bypasses it.
func TestOthersComeFirst(t *testing.T) {
	ps := newPlaces(t)
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
	q := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ps[0].veth.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	must(t, ps[0].handle.QdiscAdd(q))
	ps[0].raise()
	eventually(t, "the workload's packets go through the stack", func() bool {
		before := ps[0].count(t)
		return d.pass(t, 100) && ps[0].count(t) == before
	})
	must(t, ps[0].handle.QdiscDel(q))
	ps[0].raise()
	d.warm(t, ps)

	remove := ps[0].theirs(t, hookIn)
	ps[0].raise()
	eventually(t, "what another program is to see goes through the stack", func() bool {
		before := ps[0].count(t)
		return d.pass(t, 100) && ps[0].count(t) == before
	})
	remove()
	ps[0].raise()
	d.warm(t, ps)
}

// theirs puts a program of somebody else, which leaves all to others, at the workload's device until remove is called.
func (p *place) theirs(t *testing.T, h hook) (remove func()) {
	t.Helper()
	code := newAssembler()
	code.math(mov, r0, resultNext)
	code.exit()
	program, err := code.program()
	must(t, err)
	theirs, err := newProgram("theirs", program)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(theirs)) })
	var link int
	in(t, p.ns, func() (err error) {
		link, err = attach(p.veth.Attrs().Index, theirs, h)
		return err
	})
	return func() {
		t.Helper()
		must(t, unix.Close(link))
	}
}

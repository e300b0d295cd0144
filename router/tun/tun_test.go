// SPDX-License-Identifier: Apache-2.0

package tun_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/tun"
)

// open opens a device in the namespace, and closes it with the test.
func open(t *testing.T, ns *routertest.Namespace, c tun.Config) *tun.Device {
	t.Helper()
	var d *tun.Device
	ns.Do(func() {
		var err error
		if d, err = tun.Open(c); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { closeDevice(t, d) })
	return d
}

func closeDevice(t *testing.T, d *tun.Device) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func exists(ns *routertest.Namespace, name string) (yes bool) {
	ns.Do(func() {
		_, err := netlink.LinkByName(name)
		yes = err == nil
	})
	return yes
}

func TestPersistence(t *testing.T) {
	ns := routertest.NewNamespace(t)
	d := open(t, ns, tun.Config{Name: "weft0", VNetHdr: true, Persist: true})
	if o := d.Offloads(); !o.VNetHdr || !o.TSO {
		t.Fatalf("offloads %+v: this kernel should have more", o)
	}
	ns.Address("weft0", netip.MustParsePrefix("10.32.1.1/16"))
	closeDevice(t, d)
	index := func() (i int) {
		ns.Do(func() {
			link, err := netlink.LinkByName("weft0")
			if err != nil {
				t.Fatal(err)
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			if err != nil || len(addrs) != 1 {
				t.Fatalf("addresses %v, %v", addrs, err)
			}
			i = link.Attrs().Index
		})
		return i
	}
	first := index()
	// Whatever it is reopened with, the device and its addresses stay.
	for _, c := range []tun.Config{
		{VNetHdr: false, Queues: 1}, {VNetHdr: true, Queues: 4}, {VNetHdr: false, Queues: 2}, {VNetHdr: true, Queues: 1},
	} {
		c.Name, c.Persist = "weft0", true
		d := open(t, ns, c)
		if len(d.Queues()) != c.Queues || d.Offloads().VNetHdr != c.VNetHdr || d.Offloads().TSO != c.VNetHdr || d.Queues()[0].Offloads().VNetHdr != c.VNetHdr {
			t.Errorf("%+v gives %v", c, d)
		}
		ping(t, ns, d)
		closeDevice(t, d)
		if index() != first {
			t.Error("the device is another one")
		}
	}
	for _, c := range []tun.Config{{NoTSO: true}, {NoUSO: true}, {NoTSO: true, NoUSO: true}} {
		c.Name, c.Persist, c.VNetHdr = "weft0", true, true
		d := open(t, ns, c)
		if o := d.Offloads(); !o.VNetHdr || o.TSO == c.NoTSO || o.USO && c.NoUSO || d.Queues()[0].Offloads() != o {
			t.Errorf("%+v gives %v", c, d)
		}
		closeDevice(t, d)
	}
	// Not persistent any more.
	d = open(t, ns, tun.Config{Name: "weft0"})
	closeDevice(t, d)
	if exists(ns, "weft0") {
		t.Error("weft0 is still there")
	}
}

// ping sends a datagram into the device from the kernel's side and back from ours.
func ping(t *testing.T, ns *routertest.Namespace, d *tun.Device) {
	t.Helper()
	var c *net.UDPConn
	ns.Do(func() {
		var err error
		if c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 32, 1, 1)}); err != nil {
			t.Fatal(err)
		}
	})
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	// Which queue it comes out of is for the kernel to choose.
	var polls []unix.PollFd
	for _, q := range d.Queues() {
		polls = append(polls, unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN})
	}
	b := make([]byte, 70000)
	for start := time.Now(); ; {
		if time.Since(start) > 10*time.Second {
			t.Fatal("nothing came out of the device")
		}
		// Again and again: the kernel notices some time after a queue was attached that the link works.
		if _, err := c.WriteToUDPAddrPort([]byte("knock knock"), netip.MustParseAddrPort("10.32.2.2:7")); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Poll(polls, 100); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		for _, q := range d.Queues() {
			n, err := q.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				continue
			}
			frame := b[:n]
			if q.Offloads().VNetHdr {
				frame = b[packet.VNetHdrLen:n]
			}
			var p packet.Packet
			if err := p.Parse(frame); err != nil {
				t.Fatal(err)
			}
			if p.Dst != netip.MustParseAddr("10.32.2.2") {
				continue // the kernel's own noise
			}
			// Swapping both ends leaves all sums right but for one that was left open, which UDP may leave out.
			src := [4]byte(frame[12:16])
			copy(frame[12:16], frame[16:20])
			copy(frame[16:20], src[:])
			port := [2]byte(frame[20:22])
			copy(frame[20:22], frame[22:24])
			copy(frame[22:24], port[:])
			frame[26], frame[27] = 0, 0
			if q.Offloads().VNetHdr {
				clear(b[:packet.VNetHdrLen])
			}
			if err := q.Write(b[:n]); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			in := make([]byte, 100)
			if n, _, err := c.ReadFromUDPAddrPort(in); err != nil || !bytes.Equal(in[:n], []byte("knock knock")) {
				t.Fatalf("got %q, %v", in[:n], err)
			}
			return
		}
	}
}

func TestReadWrite(t *testing.T) {
	ns := routertest.NewNamespace(t)
	for _, vnet := range []bool{false, true} {
		d := open(t, ns, tun.Config{Name: "weft0", VNetHdr: vnet})
		q := d.Queues()[0]
		if n, err := q.Read(make([]byte, 2000)); n != 0 || err != nil {
			t.Errorf("reading from an idle device: %d, %v", n, err)
		}
		if n, err := q.Read(nil); n != 0 || err != nil {
			t.Errorf("reading nothing: %d, %v", n, err)
		}
		if err := q.Write(nil); err != nil {
			t.Errorf("writing nothing: %v", err)
		}
		frame := make([]byte, packet.VNetHdrLen+20)
		down := bytes.Clone(frame)
		if !vnet {
			down = down[packet.VNetHdrLen:]
		}
		down[len(down)-20] = 0x45
		if err := q.Write(down); !errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed) {
			t.Errorf("writing to a device that is down: %v", err)
		}
		ns.Address("weft0", netip.MustParsePrefix("10.32.1.1/16"))
		ping(t, ns, d)
		buf := make([]byte, 2000)
		if n := testing.AllocsPerRun(50, func() {
			if _, err := q.Read(buf); err != nil {
				t.Fatal(err)
			}
			_ = q.Write(frame) // not a packet: an error that costs nothing either
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
		closeDevice(t, d)
		if _, err := q.Read(buf); !errors.Is(err, os.ErrClosed) || err.Error() != "reading from weft0: file already closed" {
			t.Errorf("reading from a closed device: %v", err)
		}
		if err := q.Write(frame); !errors.Is(err, os.ErrClosed) {
			t.Errorf("writing to a closed device: %v", err)
		}
	}
}

func TestDeletedWhileOpen(t *testing.T) {
	ns := routertest.NewNamespace(t)
	d := open(t, ns, tun.Config{Name: "weft0", Queues: 2, Persist: true})
	ns.Do(func() {
		if err := tun.Delete("weft0"); err != nil {
			t.Fatal(err)
		}
	})
	for _, q := range d.Queues() {
		_, err := q.Read(make([]byte, 2000))
		for _, err := range []error{err, q.Write(make([]byte, 20))} {
			if !errors.Is(err, os.ErrClosed) || err.Error() != "weft0 was deleted while in use: start again to make a new one" {
				t.Errorf("error %v", err)
			}
		}
	}
}

func TestDelete(t *testing.T) {
	ns := routertest.NewNamespace(t)
	closeDevice(t, open(t, ns, tun.Config{Name: "weft0", Persist: true}))
	other := routertest.NewNamespace(t)
	routertest.Link(ns, other, 1500)
	ns.Do(func() {
		for range 2 { // the second finds nothing, which is fine
			if err := tun.Delete("weft0"); err != nil {
				t.Error(err)
			}
		}
		err := tun.Delete("eth0")
		if !errors.Is(err, tun.ErrKind) || err.Error() != "eth0 is not a TUN device (veth): left alone" {
			t.Errorf("deleting a veth: %v", err)
		}
	})
	if exists(ns, "weft0") || !exists(ns, "eth0") {
		t.Error("the wrong device is gone")
	}
}

func TestProbe(t *testing.T) {
	ns := routertest.NewNamespace(t)
	ns.Do(func() {
		if err := tun.Probe("weft0"); err != nil {
			t.Error(err)
		}
		if err := tun.Probe("a/b"); !errors.Is(err, tun.ErrName) {
			t.Errorf("error %v", err)
		}
	})
	if exists(ns, "weft0") {
		t.Error("Probe made the device")
	}
}

func TestOpenErrors(t *testing.T) {
	ns := routertest.NewNamespace(t)
	other := routertest.NewNamespace(t)
	routertest.Link(ns, other, 1500)
	open(t, ns, tun.Config{Name: "held", Queues: 2, Persist: true})
	ns.Do(func() {
		addForeign(t, "single", netlink.TUNTAP_MODE_TUN)
		addForeign(t, "tap", netlink.TUNTAP_MODE_TAP)
	})
	for _, c := range []struct {
		config tun.Config
		kind   error
		want   string
	}{
		{tun.Config{Name: ""}, tun.ErrName, `"" cannot be the name of a device: use 1 to 15 letters or digits`},
		{tun.Config{Name: "a/b"}, tun.ErrName, `"a/b" cannot be the name of a device: use 1 to 15 letters or digits`},
		{tun.Config{Name: strings.Repeat("x", 16)}, tun.ErrName, `"xxxxxxxxxxxxxxxx" cannot be the name of a device: use 1 to 15 letters or digits`},
		{tun.Config{Name: "weft%d"}, tun.ErrName, `"weft%d" cannot be the name of a device: use 1 to 15 letters or digits`},
		{tun.Config{Name: "weft0", Queues: 129}, nil, "weft0 cannot have 129 queues: choose at most 64"},
		{tun.Config{Name: "held"}, tun.ErrBusy, "held is in use by another process: stop that one or choose another device name"},
		{tun.Config{Name: "single"}, tun.ErrKind, "single exists but is not a multi-queue TUN device: if nobody needs it, remove it (ip link delete single)"},
		{tun.Config{Name: "tap"}, tun.ErrKind, "tap exists but is not a multi-queue TUN device: if nobody needs it, remove it (ip link delete tap)"},
		{tun.Config{Name: "eth0"}, tun.ErrKind, "eth0 exists but is not a multi-queue TUN device: if nobody needs it, remove it (ip link delete eth0)"},
	} {
		ns.Do(func() {
			_, err := tun.Open(c.config)
			var e *tun.Error
			if !errors.As(err, &e) || err.Error() != c.want || c.kind != nil && !errors.Is(err, c.kind) || e.Name != c.config.Name {
				t.Errorf("error %v, want %s", err, c.want)
			}
		})
	}
	for _, name := range []string{"held", "single", "tap", "eth0"} {
		if !exists(ns, name) {
			t.Errorf("%s is gone", name)
		}
	}
	if exists(ns, "weft0") {
		t.Error("a device was left behind")
	}
}

// Without privileges, or without the clone device, Open says which is missing.
func TestMissingMeans(t *testing.T) {
	for _, c := range []struct {
		name   string
		device bool
		mode   uint32
		kind   error
		want   string
	}{
		{"no capability", true, 0o666, tun.ErrPermission, "creating weft0 needs CAP_NET_ADMIN: run as root or grant the capability"},
		{"no access", true, 0o600, tun.ErrPermission, "opening /dev/net/tun is not allowed: run as root or, in a container, pass --device /dev/net/tun"},
		{"no device", false, 0, tun.ErrMissing, "/dev/net/tun is missing: load the tun module (modprobe tun) or, in a container, pass --device /dev/net/tun"},
	} {
		// On a thread with a mount namespace of its own and, at the end, no capabilities.
		routertest.NewNamespace(t).Do(func() {
			check := func(what string, err error) {
				if err != nil {
					t.Fatalf("%s: %s: %v", c.name, what, err)
				}
			}
			check("unshare", unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS))
			check("private mounts", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			check("tmpfs", unix.Mount("test", "/dev/net", "tmpfs", 0, ""))
			if c.device {
				check("mknod", unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))))
				check("chmod", os.Chmod("/dev/net/tun", os.FileMode(c.mode)))
				check("chown", os.Chown("/dev/net/tun", 65534, 65534))
			}
			var none [2]unix.CapUserData // version 3 takes two
			check("capset", unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]))
			_, err := tun.Open(tun.Config{Name: "weft0"})
			for _, err := range []error{err, tun.Probe("weft0")} {
				if !errors.Is(err, c.kind) || err.Error() != c.want {
					t.Errorf("%s: error %v, want %s", c.name, err, c.want)
				}
			}
		})
	}
}

// addForeign adds a device of one queue, such as other programs make, in the namespace of the calling thread.
func addForeign(t *testing.T, name string, mode netlink.TuntapMode) {
	t.Helper()
	l := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: mode}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	for _, f := range l.Fds {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package routertest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace of the kernel that exists as long as its test. It has no name, so nothing is left behind
// even if the test is killed.
type Namespace struct {
	tb     testing.TB
	handle netns.NsHandle
}

// NewNamespace makes a namespace whose loopback device is up. It fails the test where
// that is not allowed.
func NewNamespace(tb testing.TB) *Namespace {
	tb.Helper()
	n := &Namespace{tb: tb}
	onThread(tb, func() {
		var err error
		if n.handle, err = netns.New(); err != nil {
			tb.Fatalf("making a network namespace: %v (these tests need root)", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			tb.Fatalf("loopback: %v", err)
		}
	})
	tb.Cleanup(func() {
		if err := n.handle.Close(); err != nil {
			tb.Error(err)
		}
	})
	return n
}

// Do runs f on a thread in the namespace and returns when f has. f may use tb.Fatal.
func (n *Namespace) Do(f func()) {
	n.tb.Helper()
	onThread(n.tb, func() {
		if err := netns.Set(n.handle); err != nil {
			n.tb.Fatal(err)
		}
		f()
	})
}

// onThread runs f on a thread of its own, which is not used for anything else afterwards.
func onThread(tb testing.TB, f func()) {
	tb.Helper()
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f()
		returned = true
	}()
	<-done
	if !returned {
		tb.FailNow()
	}
}

// Link joins two namespaces by a veth pair called eth0 on either side, with one IPv4 and one IPv6
// address each: .1 and .2 of 192.0.2.0/24, and ::1 and ::2 of 2001:db8::/64. They know each other's link addresses.
func Link(a, b *Namespace, mtu int) {
	a.tb.Helper()
	Pair(a, "eth0", b, "eth0", mtu)
	all := []*Namespace{a, b}
	addrs := func(host int) [2]netip.Addr {
		return [2]netip.Addr{
			netip.AddrFrom4([4]byte{192, 0, 2, byte(host)}),
			netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(host)}),
		}
	}
	for i, n := range all {
		at := addrs(i + 1)
		n.Address("eth0", netip.PrefixFrom(at[0], 24), netip.PrefixFrom(at[1], 64))
	}
	for i, n := range all {
		at := addrs(2 - i)
		n.Know("eth0", all[1-i].LinkAddress("eth0"), at[0], at[1])
		n.AwaitCarrier("eth0")
	}
}

// Pair joins two namespaces by a veth pair without addresses, called so in the one and so in the other.
func Pair(a *Namespace, inA string, b *Namespace, inB string, mtu int) {
	a.tb.Helper()
	a.Do(func() {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: inA, MTU: mtu},
			PeerName:  inB, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(b.handle),
		})
		if err != nil {
			a.tb.Fatalf("veth pair: %v", err)
		}
	})
}

// Address gives a device addresses, usable at once, and brings it up.
func (n *Namespace) Address(device string, addrs ...netip.Prefix) {
	n.tb.Helper()
	n.Do(func() {
		link, err := netlink.LinkByName(device)
		if err != nil {
			n.tb.Fatalf("%s: %v", device, err)
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a.String())
			if err != nil {
				n.tb.Fatal(err)
			}
			if a.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				n.tb.Fatalf("address %v of %s: %v", a, device, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			n.tb.Fatalf("%s: %v", device, err)
		}
		n.awaitAddresses(device, addrs)
	})
}

// awaitAddresses waits for what the kernel does with IPv6 addresses after a device has come up, in its own time: until then it takes no packets
// for them. It is called in the namespace.
func (n *Namespace) awaitAddresses(device string, addrs []netip.Prefix) {
	n.tb.Helper()
	for _, a := range addrs {
		n.await(fmt.Sprintf("address %v of %s to be usable", a, device), func() (bool, error) {
			routes, err := netlink.RouteGet(a.Addr().AsSlice())
			if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
				return false, nil
			}
			return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL, err
		})
	}
}

// AwaitCarrier waits until the kernel has taken notice that both ends of a link are up: until then it drops what is sent there, and says nothing.
func (n *Namespace) AwaitCarrier(device string) {
	n.tb.Helper()
	n.Do(func() {
		n.await("carrier of "+device, func() (bool, error) {
			link, err := netlink.LinkByName(device)
			return err == nil && link.Attrs().OperState == netlink.OperUp, err
		})
	})
}

// await waits until ok, for as long as a machine may be busy.
func (n *Namespace) await(what string, ok func() (bool, error)) {
	n.tb.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		switch done, err := ok(); {
		case err != nil:
			n.tb.Fatalf("waiting for %s: %v", what, err)
		case done:
			return
		case time.Now().After(deadline):
			n.tb.Fatalf("waiting for %s: it did not come within 30 s", what)
		}
	}
}

// Know gives a device permanent entries for the addresses of others, at that link address; nil where the device has none. Without them the kernel
// makes entries as packets are sent, in a table that all namespaces of the machine share and that has room for 1024: while it is full,
// sending fails with EINVAL (IPv6), or what is sent is lost without a word (IPv4).
func (n *Namespace) Know(device string, at net.HardwareAddr, addrs ...netip.Addr) {
	n.tb.Helper()
	n.Do(func() {
		link, err := netlink.LinkByName(device)
		if err != nil {
			n.tb.Fatalf("%s: %v", device, err)
		}
		for _, a := range addrs {
			family := netlink.FAMILY_V4
			if a.Is6() {
				family = netlink.FAMILY_V6
			}
			if err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST, IP: a.AsSlice(), HardwareAddr: at,
			}); err != nil {
				n.tb.Fatalf("neighbour %v of %s: %v", a, device, err)
			}
		}
	})
}

// Learnt returns the neighbours of a device whose entries the kernel has made itself.
func (n *Namespace) Learnt(device string) (addrs []netip.Addr) {
	n.tb.Helper()
	n.Do(func() {
		link, err := netlink.LinkByName(device)
		if err != nil {
			n.tb.Fatalf("%s: %v", device, err)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := netlink.NeighList(link.Attrs().Index, family)
			if err != nil {
				n.tb.Fatalf("neighbours of %s: %v", device, err)
			}
			for _, x := range list {
				a, ok := netip.AddrFromSlice(x.IP)
				if ok && x.State != netlink.NUD_PERMANENT && !a.IsMulticast() && !a.IsLinkLocalUnicast() {
					addrs = append(addrs, a)
				}
			}
		}
	})
	return addrs
}

// LinkAddress returns the link address of a device.
func (n *Namespace) LinkAddress(device string) (at net.HardwareAddr) {
	n.tb.Helper()
	n.Do(func() {
		link, err := netlink.LinkByName(device)
		if err != nil {
			n.tb.Fatalf("%s: %v", device, err)
		}
		at = link.Attrs().HardwareAddr
	})
	return at
}

// SetMTU changes the MTU of a device.
func (n *Namespace) SetMTU(device string, mtu int) {
	n.tb.Helper()
	n.Do(func() {
		link, err := netlink.LinkByName(device)
		if err == nil {
			err = netlink.LinkSetMTU(link, mtu)
		}
		if err != nil {
			n.tb.Fatalf("MTU of %s: %v", device, err)
		}
	})
}

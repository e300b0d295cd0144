// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// briefly is how long Attach waits at each look for what the kernel has usually done by then: others wait for Attach.
	briefly = 10 * time.Millisecond
	// settlePatience is how long Settle waits.
	settlePatience = 5 * time.Second
)

// A SlowError says that the kernel has not brought up in time what Attach has made.
type SlowError struct {
	IfName, Netns string        // the interface, inside
	Waited        time.Duration // for it
}

func (e *SlowError) Error() string {
	return fmt.Sprintf("interface %s in %s is not up after %v; try again", e.IfName, e.Netns, e.Waited)
}

// Settle waits until packets flow, for which the kernel does some work in the background, usually done when Attach returns. After 5 s it gives up
// with a [SlowError], and leaves all as it is. It keeps nobody else waiting. w.Addrs are those that [Host.Attach] has said to be in use.
//
// The queue of the end that was up first, which may be either, starts when the carrier comes, which was when the other went up; asking for the link makes
// it start at once since Linux 6.9. And IPv6 addresses are in use some microseconds after they were added.
func (h *Host) Settle(w Workload) error {
	if w.AddressesOnly {
		return nil
	}
	file, err := openWorkload(w.Netns, h.ns)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // opened for reading
	host, err := h.ns.open()
	if err != nil {
		return err
	}
	defer host.Close()
	inner, err := namespace(file.Fd()).open()
	if err != nil {
		return err
	}
	defer inner.Close()
	if w.IfName == "" {
		w.IfName = DefaultIfName
	}
	end := time.Now().Add(settlePatience)
	settled, outer := true, 0
	for _, x := range []struct {
		c    conn
		name string
	}{{host, HostIf(w.ID)}, {inner, w.IfName}} {
		l, err := x.c.link(x.name)
		if err != nil {
			return err
		}
		settled = settled && l != nil && x.c.running(l, time.Until(end))
		if l != nil && outer == 0 {
			outer = l.Attrs().Index
		}
	}
	for _, a := range w.Addrs {
		settled = settled && inner.settled(a, time.Until(end))
	}
	if !settled {
		return &SlowError{IfName: w.IfName, Netns: w.Netns, Waited: settlePatience}
	}
	host.slim(outer)
	return nil
}

// running waits until a link can send, and says whether it can.
func (c conn) running(l netlink.Link, most time.Duration) bool {
	return eventually(most, func() bool {
		l, err := c.LinkByIndex(l.Attrs().Index)
		return err == nil && carries(l)
	})
}

// carries says whether a link is up at both ends.
func carries(l netlink.Link) bool {
	return l.Attrs().OperState != netlink.OperDown && l.Attrs().OperState != netlink.OperLowerLayerDown
}

// settled waits until an address of the namespace is in use, and says whether it is.
func (c conn) settled(a netip.Addr, most time.Duration) bool {
	return a.Is4() || eventually(most, func() bool {
		r, err := c.RouteGet(a.AsSlice())
		return err == nil && len(r) > 0 && r[0].Type == unix.RTN_LOCAL
	})
}

// eventually says whether done came true within a time.
func eventually(most time.Duration, done func() bool) bool {
	end := time.Now().Add(most)
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if done() {
			return true
		}
		if !time.Now().Add(wait).Before(end) {
			return false
		}
		time.Sleep(wait)
	}
}

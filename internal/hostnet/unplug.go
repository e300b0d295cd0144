// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/fault"
)

// maxFreeing bounds how many interfaces are being freed, each by a thread that the kernel holds; Detach waits for its turn.
const maxFreeing = 64

// unplug removes an interface that may be gone already, and returns when nobody can see it any more. Its memory is freed later: the kernel
// lets who asks for the removal wait until no processor can be looking at it, which takes ten times as long as the removal, and
// a goroutine does that waiting.
func (h *Host) unplug(l *line, link netlink.Link, addrs []netip.Addr) error {
	fault.Point("unplug")
	index := link.Attrs().Index
	freed := make(chan error, 1)
	h.freeing.Go(func() error {
		freed <- h.ns.free(index, addrs)
		return nil
	})
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, time.Millisecond) {
		again := time.NewTimer(wait)
		select {
		case err := <-freed:
			again.Stop()
			if err != nil {
				return fmt.Errorf("removing interface %s: %w", link.Attrs().Name, err)
			}
			return nil
		case <-again.C:
		}
		// The kernel answers when it has the lock that the removal holds.
		if left, err := l.link("", index); err != nil || left == nil {
			return err
		}
	}
}

// free removes an interface, and returns when the kernel has nothing left of it. Its IPv4 routes to addrs go first, each by itself: for those that are there still
// the kernel would go through all routes of the host.
func (n namespace) free(index int, addrs []netip.Addr) error {
	l, err := n.line()
	if err != nil {
		return err
	}
	defer l.close()
	var requests []*nl.NetlinkRequest
	for _, a := range addrs {
		if a.Is4() {
			requests = append(requests, delRoute(a, index))
		}
	}
	answers, err := l.do(append(requests, delLink(index))...)
	if err == nil {
		err = answers[len(requests)].err
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// delRoute asks to remove Weft's route to an IPv4 address by a link.
func delRoute(a netip.Addr, index int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_DELROUTE, unix.NLM_F_ACK)
	msg := nl.NewRtDelMsg()
	msg.Family, msg.Protocol, msg.Dst_len = unix.AF_INET, RouteProtocol, uint8(a.BitLen())
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
	r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return r
}

// link is that of conn, by name or by index.
func (l *line) link(name string, index int) (netlink.Link, error) {
	answers, err := l.do(getLink(name, index))
	if err == nil {
		err = failed(answers)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for interface %s: %w", name, err)
	}
	return netlink.LinkDeserialize(nil, answers[0].messages[0])
}

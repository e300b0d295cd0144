// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	netlinkconn "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/netns"
	"github.com/weftnet/weft/router/fastpath/netspace"
)

// A namespace is a network namespace: an open descriptor, or [here].
type namespace int

// here is the namespace that the process runs in.
const here namespace = netspace.Here

// run runs f in the namespace, on a thread of its own if that is another one.
func (n namespace) run(f func() error) error { return netspace.Run(int(n), f) }

// id tells the namespace from others.
func (n namespace) id() (netns.ID, error) {
	if n == here {
		// Not /proc/self: that is the main thread.
		return netns.At("/proc/thread-self/ns/net")
	}
	return netns.At(fmt.Sprintf("/proc/self/fd/%d", int(n)))
}

// nftables returns a connection that needs no closing.
func (n namespace) nftables(options ...nftables.ConnOption) (*nftables.Conn, error) {
	// A table with many elements is one write, and the kernel answers each of its messages.
	const buffer = 8 << 20
	room := nftables.WithSockOptions(func(c *netlinkconn.Conn) error {
		return errors.Join(c.SetWriteBuffer(buffer), c.SetReadBuffer(buffer))
	})
	options = append(options, room)
	if n != here {
		options = append(options, nftables.WithNetNSFd(int(n)))
	}
	return nftables.New(options...)
}

// open returns a connection for links, addresses and routes, usable from every thread.
func (n namespace) open() (conn, error) {
	var c conn
	err := n.run(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("opening a netlink socket: %w", err)
		}
		c.Handle = h
		return nil
	})
	return c, err
}

// openWorkload opens the namespace of a workload, which must not be the host's. The caller closes the file.
func openWorkload(path string, host namespace) (*os.File, error) {
	f, target, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	own, err := host.id()
	if err == nil && target == own {
		err = fmt.Errorf("%s is the host's own network namespace, which needs no attaching; give that of a workload", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// conn talks to the kernel about one namespace.
type conn struct{ *netlink.Handle }

// link returns the interface of that name, nil if there is none.
func (c conn) link(name string) (netlink.Link, error) {
	l, err := c.LinkByName(name)
	var absent netlink.LinkNotFoundError
	switch {
	case errors.As(err, &absent), errors.Is(err, unix.ENODEV):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking for interface %s: %w", name, err)
	}
	return l, nil
}

// remove deletes an interface that may be gone already.
func (c conn) remove(l netlink.Link) error {
	if err := c.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing interface %s: %w", l.Attrs().Name, err)
	}
	return nil
}

func (c conn) links() ([]netlink.Link, error) {
	l, err := dump(c.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	return l, nil
}

// addrs lists the addresses of a link, or of all if l is nil.
func (c conn) addrs(l netlink.Link, family int) ([]netlink.Addr, error) {
	a, err := dump(func() ([]netlink.Addr, error) { return c.AddrList(l, family) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	return a, nil
}

// routes lists the routes of the main table.
func (c conn) routes(family int) ([]netlink.Route, error) {
	r, err := dump(func() ([]netlink.Route, error) { return c.RouteList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	return r, nil
}

func (c conn) neighbours(family int) ([]netlink.Neigh, error) {
	n, err := dump(func() ([]netlink.Neigh, error) { return c.NeighList(0, family) })
	if err != nil {
		return nil, fmt.Errorf("listing neighbours: %w", err)
	}
	return n, nil
}

// dump repeats a listing that was disturbed by changes, so that it is never partial.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 20
	for i := 1; ; i++ {
		l, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || i == tries {
			return l, err
		}
	}
}

// families of netlink, by the address.
func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// watchSettle is how long it must be quiet before changed is called: who flushes routes sends many messages.
	watchSettle = 50 * time.Millisecond
	// watchPatience is how long changes that never end are waited for.
	watchPatience = 300 * time.Millisecond
	// watchBuffer holds what comes while a burst is being read, in bytes.
	watchBuffer = 4 << 20
)

// Watch calls changed when somebody else may have changed what the last Apply has made, or an interface or address that it
// needs, and when the hardware address of the hop of a direct path is found or is another; until ctx ends, which is no error. A
// burst of changes is one call; there may be calls without any change. changed is called by one goroutine at a time, and what
// happens meanwhile is told afterwards. What Apply and Reconcile do themselves is not told, devices perhaps apart.
func (k *Kernel) Watch(ctx context.Context, changed func()) (err error) {
	f, err := k.ns.listen()
	if err != nil {
		return err
	}
	news := make(chan struct{}, 1)
	failed := make(chan error, 1)
	var done sync.WaitGroup
	done.Go(func() { failed <- k.listenTo(f, news) })
	defer func() {
		err = errors.Join(err, f.Close()) // ends the reader
		done.Wait()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-news:
		}
		settle(ctx, news)
		if ctx.Err() != nil {
			return nil
		}
		changed()
	}
}

// settle returns when there was no news for a while, or for too long.
func settle(ctx context.Context, news <-chan struct{}) {
	late := time.NewTimer(watchPatience)
	defer late.Stop()
	for {
		quiet := time.NewTimer(watchSettle)
		select {
		case <-news:
			quiet.Stop()
			continue
		case <-quiet.C:
		case <-late.C:
		case <-ctx.Done():
		}
		quiet.Stop()
		return
	}
}

// listen opens a socket that gets a message for each change in the namespace.
func (n namespace) listen() (*os.File, error) {
	var f *os.File
	err := n.run(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "netlink")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer); err != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer) // less will do: what is lost is told as a change
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil { // first: it would end all memberships
			return err
		}
		for _, group := range []int{
			unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
			unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		} {
			if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return nil, fmt.Errorf("watching kernel paths: %w", err)
	}
	return f, nil
}

// listenTo raises news for what is read of f that concerns kernel paths, until f is closed.
func (k *Kernel) listenTo(f *os.File, news chan<- struct{}) error {
	b := make([]byte, 64<<10)
	watched := &watcher{macs: map[hopKey]mac{}}
	for {
		n, err := f.Read(b)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS): // some have been dropped, of whatever kind
		case err != nil:
			return fmt.Errorf("watching kernel paths: %w", err)
		case !watched.concerns(k.seen.Load(), b[:n]):
			continue
		}
		select {
		case news <- struct{}{}:
		default:
		}
	}
}

// A hopKey is a hop of direct paths.
type hopKey struct {
	index int
	addr  netip.Addr
}

// A view is what Watch knows of a Kernel. It does not change.
type view struct {
	port    uint32 // of the connection that makes changes
	want    objects
	links   map[int]link
	names   map[string]bool // of all interfaces that are needed, whether they are there or not
	hops    map[hopKey]bool
	sources map[netip.Addr]bool
}

// show has Watch know how things should be from now on.
func (k *Kernel) show() {
	v := &view{
		want: k.want, links: map[int]link{}, names: map[string]bool{}, hops: map[hopKey]bool{}, sources: map[netip.Addr]bool{},
	}
	if k.conn != nil {
		v.port = k.conn.port
	}
	for _, l := range k.links {
		v.links[l.index] = l
	}
	for name := range k.want.devices {
		v.names[name] = true
	}
	for key, r := range k.want.routes {
		if r.device == "" {
			continue
		}
		v.names[r.device] = true
		v.sources[r.src] = true
		if l, ok := k.links[r.device]; ok && key.table == TableDirect {
			v.hops[hopKey{l.index, r.via}] = true
		}
	}
	k.seen.Store(v)
}

// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// watchSettle is how long the network must be quiet before changed is called: an address that is replaced is two changes.
	watchSettle = 100 * time.Millisecond
	// watchPatience is how long a network that is never quiet is waited for.
	watchPatience = time.Second
)

// Watch calls changed when the addresses of this host, its default routes or the state of its interfaces may have changed,
// until ctx ends, which is no error. A burst of changes is one call; there may be calls although nothing has changed that
// [Egress] looks at. changed is called by one goroutine at a time, and what happens meanwhile is told afterwards.
func Watch(ctx context.Context, changed func()) error { return here.watch(ctx, changed) }

func (n namespace) watch(ctx context.Context, changed func()) error {
	f, err := n.listen()
	if err != nil {
		return err
	}
	return attend(ctx, f, listenTo, func(news <-chan struct{}) {
		settle(ctx, news)
		if ctx.Err() == nil {
			changed()
		}
	})
}

// attend calls heard whenever listen, which reads f until that is closed, has raised news, until ctx ends, which is no error. It closes f.
func attend(ctx context.Context, f *os.File, listen func(*os.File, chan<- struct{}) error, heard func(news <-chan struct{})) (err error) {
	news := make(chan struct{}, 1)
	failed := make(chan error, 1)
	var done sync.WaitGroup
	done.Go(func() { failed <- listen(f, news) })
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
		heard(news)
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
		return unix.Bind(fd, &unix.SockaddrNetlink{
			Family: unix.AF_NETLINK,
			Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE,
		})
	})
	if err != nil {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return nil, fmt.Errorf("watching the host's network: %w", err)
	}
	return f, nil
}

// listenTo raises news for what is read of f that concerns the way out of the host, until f is closed.
func listenTo(f *os.File, news chan<- struct{}) error {
	b := make([]byte, 64<<10)
	for {
		n, err := f.Read(b)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS): // too many to keep: some have been dropped, of whatever kind
		case err != nil:
			return fmt.Errorf("watching the host's network: %w", err)
		case !concernsExit(b[:n]):
			continue
		}
		select {
		case news <- struct{}{}:
		default:
		}
	}
}

// ofWorkload says whether the interface that a message is about is that of a workload on the host: they come and go by the hundred.
func ofWorkload(body []byte) bool {
	for b := body[min(len(body), unix.SizeofIfInfomsg):]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return false
		}
		if binary.NativeEndian.Uint16(b[2:]) == unix.IFLA_IFNAME {
			return isHostIf(unix.ByteSliceToString(b[unix.SizeofRtAttr:size]))
		}
		b = b[min(len(b), align(size)):]
	}
	return false
}

// concernsExit tells whether one of the netlink messages in b is about an interface, an address that others could reach, or a
// default route. What is cut off or makes no sense may be.
func concernsExit(b []byte) bool {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return true
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true
		}
		body := b[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if !ofWorkload(body) {
				return true
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR: // family, prefix length, flags, scope
			if len(body) < unix.SizeofIfAddrmsg || body[3] < unix.RT_SCOPE_LINK {
				return true
			}
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE: // family, length of the destination's prefix
			if len(body) < unix.SizeofRtMsg || body[1] == 0 {
				return true
			}
		}
		b = b[min(len(b), align(size)):]
	}
	return false
}

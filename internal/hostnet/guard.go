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

	"github.com/google/nftables"
	netlinkconn "github.com/mdlayher/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// guardPause is the time between two repairs, if somebody keeps on changing the table.
	guardPause = 100 * time.Millisecond
	// ownFor is how long after a transaction of this process its messages are taken for its own.
	ownFor = time.Second
)

// Guard makes the nftables table again, with all elements, as soon as somebody has removed or changed it, until ctx ends, which is no
// error. After each repair it calls repaired with what [Host.Apply] would have returned as Result.Repaired, and will not any
// more. Before the first Apply there is nothing to guard. One Guard at a time.
func (h *Host) Guard(ctx context.Context, repaired func(lines []string)) error {
	f, err := h.ns.listenNftables()
	if err != nil {
		return err
	}
	return attend(ctx, f, h.own.listenTo, func(<-chan struct{}) {
		lines := h.repair()
		if len(lines) == 0 {
			return
		}
		repaired(lines)
		select {
		case <-ctx.Done():
		case <-time.After(guardPause):
		}
	})
}

// repair puts the table right if it is not, and says what was wrong.
func (h *Host) repair() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.table == nil {
		return nil
	}
	have, _ := h.look()
	if h.inspect(have); len(h.repaired) == 0 {
		return nil
	}
	if err := h.table.put(h, have); err != nil {
		h.log.Warn("nftables cannot be put right; the next attempt is in half a minute", zap.Error(err))
		return nil // the next Apply tells
	}
	lines := h.repaired
	h.repaired = nil
	return lines
}

// listenNftables opens a socket that gets a message for each change of nftables in the namespace.
func (n namespace) listenNftables() (*os.File, error) {
	var f *os.File
	err := n.run(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "netlink")
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	})
	if err != nil {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return nil, fmt.Errorf("watching nftables: %w", err)
	}
	return f, nil
}

// ports are the netlink addresses that this process has changed nftables from. Its own changes need no look.
type ports struct {
	mu   sync.Mutex
	used map[uint32]time.Time
}

// writer returns a connection whose changes are known to be of this process.
func (h *Host) writer() (*nftables.Conn, error) {
	return h.ns.nftables(nftables.WithSockOptions(func(c *netlinkconn.Conn) error {
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var name unix.Sockaddr
		if cerr := raw.Control(func(fd uintptr) { name, err = unix.Getsockname(int(fd)) }); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
		if a, ok := name.(*unix.SockaddrNetlink); ok {
			h.own.add(a.Pid, time.Now())
		}
		return nil
	}))
}

func (p *ports) add(port uint32, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used == nil {
		p.used = map[uint32]time.Time{}
	}
	for old, at := range p.used {
		if now.Sub(at) > ownFor {
			delete(p.used, old)
		}
	}
	p.used[port] = now
}

func (p *ports) has(port uint32, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.used[port]
	return ok && now.Sub(at) <= ownFor
}

// listenTo raises news for what is read of f that is about the table and was done by somebody else, until f is closed.
func (p *ports) listenTo(f *os.File, news chan<- struct{}) error {
	b := make([]byte, 64<<10)
	for {
		n, err := f.Read(b)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS): // too many to keep: some have been dropped
		case err != nil:
			return fmt.Errorf("watching nftables: %w", err)
		case !concernsTable(b[:n], func(port uint32) bool { return p.has(port, time.Now()) }):
			continue
		}
		select {
		case news <- struct{}{}:
		default:
		}
	}
}

// concernsTable tells whether one of the netlink messages in b is about a change of Weft's table that was not made from one of the
// process's own ports. What is cut off or makes no sense may be.
func concernsTable(b []byte, own func(port uint32) bool) bool {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return true
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true
		}
		kind, port := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[12:])
		if kind>>8 == unix.NFNL_SUBSYS_NFTABLES && kind&0xff != unix.NFT_MSG_NEWGEN && !own(port) && aboutTable(b[unix.SizeofNlMsghdr:size]) {
			return true
		}
		b = b[min(len(b), align(size)):]
	}
	return false
}

// aboutTable tells whether the body of a message of nftables names Weft's table. In all of them attribute 1 is the name of the
// table.
func aboutTable(b []byte) bool {
	const header, nested = 4, unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
	if len(b) < header {
		return true
	}
	if b[0] != byte(nftables.TableFamilyINet) {
		return false
	}
	for b = b[header:]; len(b) > 0; {
		if len(b) < unix.SizeofNlAttr {
			return true
		}
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return true
		}
		if binary.NativeEndian.Uint16(b[2:])&^nested == unix.NFTA_TABLE_NAME {
			return string(b[unix.SizeofNlAttr:size]) == tableName+"\x00"
		}
		b = b[min(len(b), align(size)):]
	}
	return true
}

// align rounds up to where the next netlink message or attribute begins.
func align(size int) int { return (size + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

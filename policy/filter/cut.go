// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

const (
	// cutAfter is how long after a change connections are looked through: changes come in bursts.
	cutAfter = 50 * time.Millisecond
	// cutAgain is when they are looked through once more: a packet that was judged before the change may have made a connection after the first time.
	cutAgain = time.Second
	// cutShare is how many times as long as the last walk took there is none.
	cutShare = 4
)

// cut looks through the host's connections after each change, and deletes those that are not allowed any more.
func (f *Filter) cut(ctx context.Context) error {
	for {
		again := time.NewTimer(cutAgain)
		began := time.Now()
		if err := f.walk(ctx); err != nil {
			again.Stop()
			return err
		}
		pause(ctx, cutShare*time.Since(began))
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-again.C:
			if err := f.walk(ctx); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-f.changed:
			}
		case <-f.changed:
			again.Stop()
		}
		pause(ctx, cutAfter)
		select {
		case <-f.changed:
		default:
		}
	}
}

// walk deletes the connections that are not allowed.
func (f *Filter) walk(ctx context.Context) error {
	f.mu.Lock()
	idle := f.model == nil || f.model.empty()
	f.mu.Unlock()
	if idle || ctx.Err() != nil {
		return nil
	}
	own, err := hostAddrs(f.config.NetNS)
	if err != nil {
		return fmt.Errorf("reading the host's addresses: %w", err)
	}
	c, err := dial(f.config.NetNS, unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return err
	}
	defer c.close()
	var doomed []buffer
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		var b buffer
		b.end(b.begin(conntrack(ctGet), 0, family, 0))
		err := c.ask(b, true, func(_ header, body []byte) error {
			var t tracked
			if !t.decode(body) || !f.forbids(&t, own) {
				return nil
			}
			doomed = append(doomed, t.deletion(family))
			return nil
		})
		// What an interrupted dump leaves out is for the second walk.
		if err != nil && !errors.Is(err, errInterrupted) {
			return fmt.Errorf("reading connections: %w; use a kernel with CONFIG_NF_CT_NETLINK", err)
		}
	}
	cut := 0
	for _, b := range doomed {
		switch err := c.ask(b, false, func(header, []byte) error { return nil }); {
		case err == nil:
			cut++
		case !errors.Is(err, unix.ENOENT):
			return fmt.Errorf("deleting a connection: %w", err)
		}
	}
	if cut > 0 {
		f.log.Info("network policy: connections that are not allowed any more were cut", zap.Int("connections", cut))
	}
	return nil
}

// forbids says whether the model does not allow a connection.
func (f *Filter) forbids(t *tracked, own map[netip.Addr]bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.model
	if m == nil || f.dirty { // the kernel may have the state before: what to cut is known when it has this one
		return false
	}
	_, leaves := m.sides[compile.Side{Addr: t.conn.Src, Direction: policy.Egress}]
	_, arrives := m.sides[compile.Side{Addr: t.conn.Dst, Direction: policy.Ingress}]
	return (leaves || arrives) && !m.allows(t.conn, func(a netip.Addr) bool { return own[a] })
}

// A tracked connection is an entry of connection tracking.
type tracked struct {
	conn policy.Connection // as it was judged: after destination NAT, before source NAT
	// What names it, as the kernel wrote it; valid as long as the message is.
	original, zone, id []byte
}

// Attributes and messages of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	subsysConntrack = 1
	ctGet           = 1
	ctDelete        = 2

	ctaOriginal = 1
	ctaReply    = 2
	ctaID       = 12
	ctaZone     = 18

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaV4Src      = 1
	ctaV6Src      = 3
	ctaProtoNum   = 1
	ctaSrcPort    = 2
)

func conntrack(message uint16) uint16 { return subsysConntrack<<8 | message }

// decode reads an entry; false if it is none that can be judged.
func (t *tracked) decode(body []byte) bool {
	if len(body) < 4 {
		return false
	}
	var src, replySrc netip.Addr
	ok := attributes(body[4:], func(kind uint16, v []byte) bool {
		switch kind {
		case ctaOriginal:
			t.original = v
			var p tuple
			if !p.decode(v) {
				return false
			}
			src, t.conn.Protocol = p.src, p.protocol
		case ctaReply:
			var p tuple
			if !p.decode(v) {
				return false
			}
			replySrc, t.conn.Port = p.src, p.port
		case ctaZone:
			t.zone = v
		case ctaID:
			t.id = v
		}
		return true
	})
	t.conn.Src, t.conn.Dst = src, replySrc
	return ok && src.IsValid() && replySrc.IsValid() && src.Is4() == replySrc.Is4()
}

// A tuple is one direction of an entry, as far as it matters.
type tuple struct {
	src      netip.Addr
	protocol policy.Protocol
	port     uint16 // of the source
}

func (p *tuple) decode(b []byte) bool {
	return attributes(b, func(kind uint16, v []byte) bool {
		switch kind {
		case ctaTupleIP:
			return attributes(v, func(kind uint16, v []byte) bool {
				if kind == ctaV4Src && len(v) == 4 || kind == ctaV6Src && len(v) == 16 {
					p.src, _ = netip.AddrFromSlice(v)
				}
				return true
			})
		case ctaTupleProto:
			return attributes(v, func(kind uint16, v []byte) bool {
				switch {
				case kind == ctaProtoNum && len(v) == 1:
					p.protocol = policy.Protocol(v[0])
				case kind == ctaSrcPort && len(v) == 2:
					p.port = binary.BigEndian.Uint16(v)
				}
				return true
			})
		}
		return true
	})
}

// deletion is the request that deletes the entry, and no other one that has taken its place.
func (t *tracked) deletion(family byte) buffer {
	var b buffer
	at := b.begin(conntrack(ctDelete), 0, family, 0)
	b.attr(ctaOriginal|unix.NLA_F_NESTED, bytes.Clone(t.original))
	if t.zone != nil {
		b.attr(ctaZone, t.zone)
	}
	if t.id != nil {
		b.attr(ctaID, t.id)
	}
	b.end(at)
	return b
}

// hostAddrs returns the addresses of a namespace itself.
func hostAddrs(netns int) (map[netip.Addr]bool, error) {
	c, err := dial(netns, unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, err
	}
	defer c.close()
	all := map[netip.Addr]bool{}
	var b buffer
	at := b.begin(unix.RTM_GETADDR, 0, unix.AF_UNSPEC, 0)
	b = append(b, make([]byte, unix.SizeofIfAddrmsg-4)...)
	b.end(at)
	err = c.ask(b, true, func(_ header, body []byte) error {
		if len(body) < unix.SizeofIfAddrmsg {
			return errNonsense
		}
		var local, address netip.Addr
		attributes(body[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) bool {
			switch kind {
			case unix.IFA_LOCAL:
				local, _ = netip.AddrFromSlice(v)
			case unix.IFA_ADDRESS:
				address, _ = netip.AddrFromSlice(v)
			}
			return true
		})
		if local.IsValid() {
			address = local
		}
		all[address] = true
		return nil
	})
	if errors.Is(err, errInterrupted) {
		err = nil // they are read again with the next walk
	}
	return all, err
}

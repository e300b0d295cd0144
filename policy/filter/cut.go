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
)

const (
	// cutAfter is how long after a change connections are looked through: changes come in bursts.
	cutAfter = 50 * time.Millisecond
	// cutAgain is when they are looked through once more: a packet that was judged before the change may have made a connection after the first time.
	cutAgain = time.Second
	// cutShare is how many times as long as the last walk took there is none.
	cutShare = 4
	// cutRetry is how long after a failure the next attempt follows, cutLatest after several.
	cutRetry, cutLatest = 500 * time.Millisecond, 8 * time.Second
)

// cut looks through the host's connections after each change, and deletes those that are not allowed any more. What it cannot do it tries again.
func (f *Filter) cut(ctx context.Context) error {
	w := newWarden(f)
	var (
		walk   = time.NewTimer(0)
		look   = time.NewTicker(barredLook)
		at     time.Time // when it fires, zero if it does not
		rested = f.calm  // when the next walk may be
		eased  time.Time // when what is barred may be looked at for a change alone
		second bool      // the next walk is the second one after a change
		wait   time.Duration
		said   string // which failure
	)
	defer walk.Stop()
	defer look.Stop()
	due := func(after time.Duration) {
		next := time.Now().Add(after)
		if next.Before(rested) {
			next = rested
		}
		if at.IsZero() || next.Before(at) {
			at = next
			walk.Reset(time.Until(next))
		}
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-f.changed:
			second = false
			due(cutAfter)
			if began := time.Now(); !w.idle() && began.After(eased) { // what is allowed again does not wait for a walk
				err = f.survey(w)
				eased = time.Now().Add(cutShare * time.Since(began))
			}
		case <-look.C:
			if !w.idle() {
				err = f.survey(w)
			}
		case <-walk.C:
			began := time.Now()
			at = time.Time{}
			err = f.walk(ctx, w)
			rested = time.Now().Add(cutShare * time.Since(began))
			if err != nil {
				break
			}
			wait, said = 0, ""
			f.health.cutting(nil)
			if f.health.lacking() { // or it did, when that was tried
				f.tryCutting()
			}
			if second = !second; second {
				due(cutAgain)
			}
		}
		if err == nil {
			continue
		}
		wait = min(max(2*wait, cutRetry), cutLatest)
		if text := err.Error(); text != said {
			said = text
			f.log.Warn("network policy: cutting connections fails; the next attempts follow in a few seconds", zap.Error(err))
		}
		f.health.cutting(err)
		second = false
		rested = time.Now().Add(wait)
		eased = rested
		due(wait)
	}
}

// survey lifts the bars of what is allowed, and puts back those that somebody has taken away.
func (f *Filter) survey(w *warden) error {
	if !f.told() {
		return nil
	}
	c, own, err := f.host()
	if err != nil {
		return err
	}
	defer c.close()
	return w.settle(c, own)
}

// host opens a way to ask for the host's connections, which the caller closes, and returns its addresses.
func (f *Filter) host() (c *conn, own map[netip.Addr]bool, err error) {
	if own, err = hostAddrs(f.config.NetNS); err != nil {
		return nil, nil, fmt.Errorf("reading the host's addresses: %w", err)
	}
	if c, err = dial(f.config.NetNS, unix.NETLINK_NETFILTER, 0); err == nil {
		c.committed = f.judgedAnew
	}
	return c, own, err
}

// told says whether the Filter has been given a state.
func (f *Filter) told() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.model != nil
}

// walk deletes the connections that are not allowed, and bars those of them that could go on without their entry. What it cannot do keeps it from nothing else.
func (f *Filter) walk(ctx context.Context, w *warden) error {
	if !f.told() {
		return nil
	}
	c, own, err := f.host()
	if err != nil {
		return err
	}
	defer c.close()
	barred := w.settle(c, own) // what is allowed does not wait for the rest
	f.mu.Lock()
	idle := f.model == nil || f.model.empty()
	f.mu.Unlock()
	if idle || ctx.Err() != nil {
		return barred
	}
	doomed, err := f.doomed(c, w, own)
	if err != nil {
		return both(barred, err)
	}
	// First the bars, so that no packet comes in between.
	barred = w.settle(c, own)
	w.report()
	cut, err := c.sever(doomed)
	if cut > 0 {
		f.judgedAnew()
		f.log.Info("network policy: connections that are not allowed any more were cut", zap.Int("connections", cut))
	}
	return both(barred, err)
}

// both puts two errors, of which either may be nil, into one line.
func both(a, b error) error {
	if a == nil || b == nil {
		return errors.Join(a, b)
	}
	return fmt.Errorf("%w; %w", a, b)
}

// sever makes requests that delete connections, all of them, and says how many are gone by them. That one is gone already is no error.
func (c *conn) sever(doomed []buffer) (cut int, err error) {
	left := 0
	for _, b := range doomed {
		switch failed := c.ask(b, false, func(header, []byte) error { return nil }); {
		case failed == nil:
			cut++
		case !errors.Is(failed, unix.ENOENT):
			left++
			if err == nil {
				err = failed
			}
		}
	}
	return cut, undeleted(left, err)
}

// undeleted says that connections are left, of which the first could not be deleted for that reason, and what to do; nil if none is.
func undeleted(left int, err error) error {
	hint := "the next attempt follows"
	switch {
	case left == 0:
		return nil
	case errors.Is(err, unix.EBUSY):
		hint = "a flowtable hands their packets on, past all policies: nft list flowtables shows it; take workloads' interfaces out of it"
	case errors.Is(err, unix.EPERM):
		hint = "CAP_NET_ADMIN is needed"
	}
	return fmt.Errorf("connections that are not allowed any more go on: %d could not be deleted: %w; %s", left, err, hint)
}

// doomed returns the requests that delete the connections which are not allowed, of which the warden takes up those that are to be barred.
func (f *Filter) doomed(c *conn, w *warden, own map[netip.Addr]bool) (requests []buffer, err error) {
	now := time.Now()
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		var b buffer
		b.end(b.begin(conntrack(ctGet), 0, family, 0))
		err := c.ask(b, true, func(_ header, body []byte) error {
			var t tracked
			if !t.decode(body) {
				return nil
			}
			if allowed, known := f.judge(t.conn, own); allowed || !known {
				return nil
			}
			if x, ok := barOf(t.conn, t.port); ok {
				w.add(x, now)
			}
			requests = append(requests, t.deletion(family))
			return nil
		})
		// What an interrupted dump leaves out is for the second walk.
		if err != nil && !errors.Is(err, errInterrupted) {
			return nil, unread("reading connections", err)
		}
	}
	return requests, nil
}

// judge says whether the model allows a connection; it is not known as long as the kernel may have another state than the model.
func (f *Filter) judge(c policy.Connection, own map[netip.Addr]bool) (allowed, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.model
	if m == nil || f.dirty {
		return false, false
	}
	return m.allows(c, func(a netip.Addr) bool { return own[a] }), true
}

// A tracked connection is an entry of connection tracking.
type tracked struct {
	conn policy.Connection // as it was judged: after destination NAT, before source NAT
	port uint16            // of its source, likewise
	// What names it, as the kernel wrote it; valid as long as the message is.
	original, zone, id []byte
}

// Attributes and messages of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	subsysConntrack = 1
	ctGet           = 1
	ctDelete        = 2
	ctStats         = 5

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
			src, t.port, t.conn.Protocol = p.src, p.port, p.protocol
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

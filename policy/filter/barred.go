// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
)

// A flow that is not TCP has no beginning that could be told from its middle. When its entry of connection tracking is deleted because policies forbid
// it, the next datagram of the other end may be the first of a connection in the other direction, which they allow, and what is forbidden would go on as
// the replies to it. So such a flow is barred: the table that barredTable makes drops what both ends send, before anything else is asked. It is
// lifted as soon as policies allow the connection again, and ends by itself when the end that must not begin it has sent nothing for barredFor: what
// the other end begins then is its own. Neither end is kept from beginning another flow, from or to another port, which is judged like any other.
//
// ICMP needs none of this: its replies begin nothing.

const (
	// barredFor is how long a flow stays barred after the last packet in the direction in which it is forbidden.
	barredFor = 3 * time.Minute
	// barredLook is the time between two looks at what is barred, as long as something is.
	barredLook = 4 * time.Second
	// barredSlack is how much earlier than it was said to an element may be gone: clocks differ, and the kernel collects what has run out now and then.
	barredSlack = 3 * time.Second
)

// A bar says what is barred: all packets of a protocol from one address to another, and back; where it has ports, with them.
type bar struct {
	breadth
	src, dst     netip.Addr // as they are between destination NAT and source NAT
	protocol     policy.Protocol
	sport, dport uint16
}

// A breadth is how much a bar bars.
type breadth byte

const (
	barFlow    breadth = iota // what has both ports
	barService                // what has the port of the destination, which is all that policies look at: as there are too many flows
	barPair                   // all of a protocol without ports
)

// breadths are all of them, with the set of each, and how many bars of a family there may be.
func breadths() []struct {
	breadth
	set  string
	most int
} {
	return []struct {
		breadth
		set  string
		most int
	}{
		{barFlow, "flows", 16384}, // more would take the kernel long to list
		{barService, "services", 4096},
		{barPair, "pairs", 4096},
	}
}

// barOf returns the bar of a flow with these ports, none if it needs none.
func barOf(c policy.Connection, sport uint16) (bar, bool) {
	b := bar{src: c.Src, dst: c.Dst, protocol: c.Protocol}
	switch {
	case c.Protocol == policy.TCP, c.Protocol == unix.IPPROTO_ICMP, c.Protocol == unix.IPPROTO_ICMPV6:
		return bar{}, false
	case slices.Contains(ported(), byte(c.Protocol)):
		b.sport, b.dport = sport, c.Port
	default:
		b.breadth = barPair
	}
	return b, true
}

// ported are the protocols, but TCP, whose headers begin with ports, the most frequent one first.
func ported() []byte {
	return []byte{unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE, unix.IPPROTO_DCCP}
}

// wider is the bar of all flows that policies cannot tell from this one.
func (b bar) wider() bar {
	b.breadth, b.sport = barService, 0
	return b
}

func (b bar) connection() policy.Connection {
	return policy.Connection{Src: b.src, Dst: b.dst, Protocol: b.protocol, Port: b.dport}
}

// A warden keeps flows barred. It belongs to the goroutine that cuts, and knows what the kernel has from what it has read: that stays while no
// program runs, and what others take away from it is put back.
type warden struct {
	f       *Filter
	looked  bool              // the kernel has been asked what an earlier run has left
	until   map[bar]time.Time // when each ends, unless packets come
	counted map[place]int     // of until
	lost    int               // flows that could not be barred since the last report
}

// A place is where bars of a kind and a family are.
type place struct {
	breadth
	v4 bool
}

func (b bar) place() place { return place{b.breadth, b.src.Is4()} }

func newWarden(f *Filter) *warden {
	return &warden{f: f, until: map[bar]time.Time{}, counted: map[place]int{}}
}

// idle says whether there is nothing to look after.
func (w *warden) idle() bool { return w.looked && len(w.until) == 0 }

// add takes a bar up, a wider one if there are too many. settle tells the kernel.
func (w *warden) add(b bar, now time.Time) {
	if w.take(b, now) || b.breadth == barFlow && w.take(b.wider(), now) {
		return
	}
	w.lost++
}

func (w *warden) take(b bar, now time.Time) bool {
	if _, ok := w.until[b]; !ok {
		if w.counted[b.place()] >= breadths()[b.breadth].most {
			return false
		}
		w.counted[b.place()]++
	}
	w.until[b] = now.Add(barredFor)
	return true
}

func (w *warden) forget(b bar) {
	if _, ok := w.until[b]; ok {
		delete(w.until, b)
		w.counted[b.place()]--
	}
}

// settle lifts the bars of what is allowed, takes up how long the others last, and makes the kernel have these.
func (w *warden) settle(c *conn, own map[netip.Addr]bool) error {
	var err error
	for range 3 { // one may run out, or somebody may change the table, between the look and the transaction
		if err = w.settleOnce(c, own); err == nil || !passing(err) && !errors.Is(err, errInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("keeping flows cut by nftables table inet %s: %w", CutTable, err)
	}
	return nil
}

func (w *warden) settleOnce(c *conn, own map[netip.Addr]bool) error {
	have, err := c.lookBarred()
	if err != nil {
		return err
	}
	w.looked = true
	now := time.Now()
	for b, left := range have.left {
		if _, ok := w.until[b]; !ok {
			w.counted[b.place()]++
		}
		w.until[b] = now.Add(left)
	}
	var kept, added, lifted []bar
	for b, until := range w.until {
		_, there := have.left[b]
		allowed, known := w.f.judge(b.connection(), own)
		switch {
		case known && allowed && there:
			lifted = append(lifted, b)
		case known && allowed, !there && until.Before(now.Add(barredSlack)):
			w.forget(b)
		case there:
			kept = append(kept, b)
		default:
			added = append(added, b)
		}
	}
	service := func(b bar) bool { return b.breadth == barService }
	wide := slices.ContainsFunc(kept, service) || slices.ContainsFunc(added, service)
	intact := have.intact && (have.wide || !wide)
	var b buffer
	switch {
	case len(kept)+len(added) == 0 && !have.present, intact && len(kept) > 0 && len(added)+len(lifted) == 0:
		return nil
	case len(kept)+len(added) == 0:
		b.composeRemoval(CutTable, newContents())
	case !intact:
		if have.present {
			b.composeRemoval(CutTable, newContents())
		}
		b.composeBarredTable(CutTable, wide)
		b.composeBars(append(kept, added...), unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
	default:
		b.composeBars(lifted, unix.NFT_MSG_DELSETELEM, 0)
		b.composeBars(added, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
	}
	if err := c.commit(b); err != nil {
		return err
	}
	for _, x := range lifted {
		w.forget(x)
	}
	return nil
}

// unbar removes the table of what is barred: everything is open.
func (f *Filter) unbar() error {
	have, err := f.conn.look(CutTable, skeleton)
	if err == nil && have != nil {
		var b buffer
		b.composeRemoval(CutTable, newContents())
		err = f.conn.commit(b)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("network policy: removing nftables table inet %s: %w", CutTable, err)
	}
	return nil
}

// report logs what could not be barred.
func (w *warden) report() {
	if w.lost > 0 {
		w.f.log.Warn("network policy: too many flows were cut to keep all of them cut; some may go on if the other end sends first", zap.Int("flows", w.lost))
		w.lost = 0
	}
}

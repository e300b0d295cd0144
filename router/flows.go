// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/underlay"
)

// A packet of a request that comes behind some hundred kilobytes of a stream waits for all of that to be opened at the other host. So the sender tells
// the datagrams of light flows from the rest, and who receives has a queue for each sort (underlay.LightTOS).
//
// Packets of a flow must not overtake each other. What is light comes sooner than what is not: a flow may become heavy at any time, and light
// again only when none of its packets can be on the way any more.

const (
	// flowBurst is what a flow may send at once and stay light, and flowRate what it may send for ever, in bytes and bytes per second; each packet counts
	// flowCost besides. Requests and answers one after the other are light, and so are calls and terminals; a stream is not, at the latest after flowBurst.
	flowBurst = 64 << 10
	flowRate  = 8 << 20
	flowCost  = 512
	// All light flows of a shard together have lightBurst and lightRate: a flood from many ports is heavy.
	lightBurst = 512 << 10
	lightRate  = 64 << 20
	// flowQuiet is after what time without a packet a heavy flow is light again: more than full buffers on the way hold for, and for longer
	// than a host is likely to wait for a processor while others run.
	flowQuiet = 250 * time.Millisecond
	// flowSlots is how many flows are told apart. Those that share one are taken for one flow.
	flowSlots = 1 << 10
)

// flows judges the flows that a shard sends. It is the shard's.
type flows struct {
	start time.Time
	seed  uint64
	all   allowance
	slots [flowSlots]allowance
}

// allowance is a token bucket.
type allowance struct {
	at   time.Duration // since start
	left int64         // bytes; none: heavy, if it is that of a flow
}

func newFlows(now time.Time) *flows {
	f := &flows{start: now.Add(-flowQuiet), seed: rand.Uint64()}
	f.all.left = lightBurst
	return f
}

// light reports whether the packet or superpacket p of len(b) bytes, which is sent now, belongs to a light flow.
func (f *flows) light(b []byte, p *packet.Packet, now time.Time) bool {
	t := now.Sub(f.start)
	n := int64(len(b)) + flowCost
	flow := &f.slots[f.hash(b, p)%flowSlots]
	switch idle := t - flow.at; {
	case idle >= flowQuiet:
		flow.at, flow.left = t, flowBurst
	case flow.left == 0:
		flow.at = t
		return false
	default:
		flow.refill(t, flowRate, flowBurst)
	}
	f.all.refill(t, lightRate, lightBurst)
	if flow.left <= n || f.all.left < n {
		flow.left = 0
		return false
	}
	flow.left -= n
	f.all.left -= n
	return true
}

// refill adds what the time has brought. Within a second that is the whole burst, and more cannot be multiplied without an overflow.
func (a *allowance) refill(t time.Duration, rate, burst int64) {
	passed := min(max(t-a.at, 0), time.Second)
	a.left = min(a.left+int64(passed)*rate/int64(time.Second), burst)
	a.at = t
}

// hash returns the same number for all packets of a flow: addresses, protocol and, where they are in every packet, ports.
func (f *flows) hash(b []byte, p *packet.Packet) uint64 {
	h := f.seed ^ uint64(p.Proto)
	if p.Src.Is4() {
		h = mix(h, binary.NativeEndian.Uint64(b[12:20]))
	} else {
		for at := 8; at < 40; at += 8 {
			h = mix(h, binary.NativeEndian.Uint64(b[at:at+8]))
		}
	}
	switch p.Proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE, unix.IPPROTO_DCCP:
		if at := p.HeaderLen; !p.Fragment && len(b) >= at+4 {
			h = mix(h, uint64(binary.NativeEndian.Uint32(b[at:])))
		}
	}
	return h
}

// mix stirs x into h: the halves of a product of 128 bits depend on all bits of both.
func mix(h, x uint64) uint64 {
	hi, lo := bits.Mul64(h^x, 0x9e3779b97f4a7c15)
	return hi ^ lo
}

// weigh finds out whether the packet at hand is light. If it is not, light ones go first: sealing it takes a while.
func (s *shard) weigh(b []byte, p *packet.Packet, now time.Time) error {
	out := &s.out
	if s.flows != nil && s.flows.light(b, p, now) {
		out.mark, out.light = underlay.LightTOS, true
		s.haste.passes(b, p)
		return nil
	}
	var err error
	if out.light && !out.heavy {
		err = s.flush()
	}
	out.mark, out.heavy = 0, true
	return err
}

// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

const (
	// fresh is how long what the stack decided about a flow is repeated, in nanoseconds.
	fresh = 1_000_000_000
	// big is how many packets the stack must have seen of a flow within the time [fresh] before it is asked for; each weightShift-th power of two of bytes counts for one
	// more: 64 KiB are as good.
	big, weightShift = 32, 11
	// quiet is how long no packet of a flow must have been queued at a workload's device before others are taken past that queue, in nanoseconds: the processor has
	// emptied it by then, as it looks at all queues by turns.
	quiet = 500_000
	// askAgain is how long after having asked for a flow it is not asked for again, in nanoseconds.
	askAgain = 2_000_000_000
)

// Offsets in the packet's context, struct __sk_buff (linux/bpf.h).
const (
	ctxLen      = 0
	ctxType     = 4
	ctxMark     = 8
	ctxProtocol = 16
	ctxVLAN     = 20
	ctxPriority = 32
	ctxIngress  = 36 // device by which it came in
	ctxDevice   = 40
	// ctxIndex is a number that traffic control may attach to a packet. No rule looks at it, but whoever has sent the packet may have set it in its own namespace.
	ctxIndex   = 44
	ctxData    = 76
	ctxEnd     = 80
	ctxCut     = 164 // into how many segments it will be cut, else 0
	ctxSegment = 176 // of what will be cut: bytes of payload in each segment, else 0
)

// Helpers (linux/bpf.h, __BPF_FUNC_MAPPER).
const (
	callLookup   = 1
	callUpdate   = 2
	callTime     = 5 // ktime_get_ns
	callStore    = 9 // skb_store_bytes
	callRedirect = 23
	callChecksum = 40  // csum_update
	callRoom     = 50  // skb_adjust_room
	callOutput   = 130 // ringbuf_output
	callPeer     = 155 // redirect_peer
	callClock    = 160 // ktime_get_coarse_ns
)

// Results of a program (linux/bpf.h, enum tcx_action_base).
const (
	resultNext     = -1 // others decide
	resultDrop     = 2
	resultRedirect = 7
)

// tunnelRoom is what the helper is told that makes room for the headers of VXLAN over IPv4 (linux/bpf.h, BPF_F_ADJ_ROOM_*): segments stay as large as they are, and what
// is ahead of the inner ethernet header, of 14 bytes, is UDP and IPv4.
const tunnelRoom = 1<<0 | 1<<1 | 1<<4 | 1<<6 | ethernet<<56

// Offsets in a packet of VXLAN over IPv4 (RFC 7348, 5), from the ethernet header on.
const (
	outerIP     = ethernet
	outerLen    = outerIP + 2
	outerID     = outerIP + 4
	outerFlags  = outerIP + 6
	outerTTL    = outerIP + 8
	outerProto  = outerIP + 9
	outerSum    = outerIP + 10
	outerUDP    = outerIP + 20
	outerUDPLen = outerUDP + 4
	outerUDPSum = outerUDP + 6
	outerVXLAN  = outerUDP + 8
	innerHeader = outerVXLAN + 8
	outerSize   = innerHeader + ethernet // all that is ahead of the inner IP header
)

// A note is what the entry leaves to the exit about the packet that it lets pass: one for each processor, since a packet stays on one until it leaves, or
// the number in it is another by then.
const (
	noteNumber  = 0  // is with the packet as well
	noteEpoch   = 4  //
	noteLen     = 8  // with the ethernet header
	noteSegment = 12 // see flowSegment
	noteTTL     = 16 //
	noteClass   = 20 // type of service, or traffic class and flow label
	noteMAC     = 24 // of the sender, 6 bytes
	noteFamily  = 32 // form.l4
	noteKey     = 40 //
	noteTCP     = 84 // sequence number and acknowledgment
	noteTunnel  = 92 // the number of the packet if it goes on in a tunnel, and has been looked at
	noteSize    = 96
)

// A flow is what the exit has seen of one that was admitted: made by [Bypass.admit], which leaves all but the epoch empty, filled by the exit, and ended by whoever takes its epoch
// from it. Only the user's side deletes it, as the room of what is deleted is used again while somebody may still read it.
const (
	flowTime     = 0  // 8 bytes, nanoseconds of the kernel's coarse clock; 0: the exit has seen nothing
	flowEpoch    = 8  // for which it was admitted; 0: it has ended
	flowDevice   = 12 // by which it leaves
	flowSegment  = 16 // what of the packet a link carries at once, in bytes from the network header on
	flowPriority = 20 //
	flowHeader   = 24 // ethernet, its first 12 bytes
	flowMAC      = 36 // of the sender, 6 bytes

	// Of one that goes on in a tunnel: what the exit has seen at the device by which that leaves the host.
	flowOuterTime   = 48 // 8 bytes, as flowTime. It counts if it is not before that: the same packet was seen at both
	flowOuterDevice = 56 // by which it leaves
	flowOuterClass  = 60 // noteClass of the packet: the outer header depends on it
	flowOuterID     = 64 // the next identification
	flowOuter       = 72 // all that was ahead of the inner IP header, outerSize bytes

	// Of one that leaves by the device of a workload.
	flowStraight = 68  // not 0: into the workload's namespace, past the queue between the two ends of the device
	flowQueued   = 136 // 8 bytes, nanoseconds of the kernel's finest clock: when a packet of it was queued there last; 0: long ago
	flowSize     = 144
)

// A candidate is what the exit counts of a flow that is not admitted.
const (
	candidateBegan  = 0  // 8 bytes, as flowTime: when counting has begun
	candidateAsked  = 8  // 8 bytes, as flowTime: when it was asked for
	candidateCount  = 16 //
	candidateEpoch  = 20 // in which all of that was
	candidateDevice = 24 // by which it leaves
	candidateSize   = 32
)

// A request is what the exit says of a flow that is to be admitted, behind which follows its key.
const (
	requestEpoch  = 0
	requestFamily = 4 // form.l4
	requestKey    = 8
)

const (
	ethernet = 14
	keyMax   = 44

	// On the stack of the programs.
	stackKey     = -48
	stackRequest = stackKey - requestKey
	stackOther   = stackRequest - candidateSize
	stackZero    = stackOther - 8 // index of a map with one value
	stackSize    = stackZero - 8  // noteSegment of the packet
	stackTCP     = stackSize - 8  // noteTCP of the packet, 0 if it is no TCP
	stackEnds    = stackTCP - 8   // those flags of it that begin or end a connection
	stackHead    = stackEnds - 32
	stackOuter   = stackHead - outerSize - 16 // the head of a packet in a tunnel
)

// form is how packets of a family are laid out, from the ethernet header on, and the keys of their flows: addresses, ports, device, protocol.
type form struct {
	name                       string // for labels
	index                      int    // among forms
	v6                         bool
	ethertype                  uint16
	src, dst, proto, ttl, l4   int
	addr                       int // size of an address
	keyPorts, keyDev, keyProto int
	keySize                    int
}

func forms() [2]form {
	out := [2]form{
		{name: "4", index: 0, ethertype: 0x0800, src: 26, dst: 30, proto: 23, ttl: 22, addr: 4, l4: 34},
		{name: "6", index: 1, v6: true, ethertype: 0x86dd, src: 22, dst: 38, proto: 20, ttl: 21, addr: 16, l4: 54},
	}
	for i := range out {
		f := &out[i]
		f.keyPorts = 2 * f.addr
		f.keyDev = f.keyPorts + 4
		f.keyProto = f.keyDev + 4
		f.keySize = f.keyProto + 4
	}
	return out
}

// before is what stands between the twentieth byte and the TTL.
func (f form) before() size {
	if f.v6 {
		return word8
	}
	return word16
}

// carried are the forms of the families that the universe has.
func carried(universe []netip.Prefix) (list []form) {
	for _, f := range forms() {
		if slices.ContainsFunc(universe, func(p netip.Prefix) bool { return p.Addr().Is6() == f.v6 }) {
			list = append(list, f)
		}
	}
	return list
}

// tables are the descriptors of the maps that the programs use.
type tables struct {
	epoch      int // 4 bytes; 0: pause
	notes      int
	counts     int // 8 bytes for each processor: packets that went around the stack
	requests   int // ring
	flows      [2]int
	candidates [2]int
}

// loaded16 and loaded32 are what a program loads where b stands in a packet. Weft runs on little-endian processors only.
func loaded16(v uint16) int64 {
	return int64(binary.LittleEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)))
}

func loaded32(b []byte) int64 { return int64(binary.LittleEndian.Uint32(b)) }

// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"sync/atomic"

	"github.com/weftnet/weft/router/session"
)

// Reason is why a packet or datagram went no further.
type Reason uint8

// The reasons. In: datagrams, until they are packets; then packets from peers. Out: packets of this host.
const (
	DropShort              Reason = iota // in: too short for its type
	DropLong                             // in: longer than any datagram of ours
	DropType                             // in: of an unknown type
	DropControl                          // in: gossip or an answer to a probe, and nobody here to take it
	DropControlForm                      // in: control datagram that is malformed
	DropControlKey                       // in: control datagram that was sealed with a key that we do not have
	DropControlAuth                      // in: control datagram that does not authenticate
	DropControlSource                    // in: control datagram that bears our own ID as its source; out: one to ourselves
	DropControlDestination               // in: control datagram for another node
	DropControlRelay                     // in: control datagram to be passed on, which we do not, or cannot as the next hop is not reached directly
	DropControlLimit                     // in: control datagram to be passed on, beyond the limit
	DropControlLost                      // in: control datagram that the kernel has dropped: sealed with a key that we do not have, or one too many
	DropControlForged                    // in: ping, pong or punch that a member has sealed, but not the one that it names as its source
	DropControlStorm                     // in: control datagram that was not opened, as there were too many, of its sender or of all
	DropStray                            // in: came with control datagrams, and there were too many of those
	DropSuite                            // in: suite unknown, or not that of its session
	DropMAC1                             // in: handshake that was not made for our key
	DropUnknownPeer                      // in: handshake by a key that is no peer's
	DropReplay                           // in: seen before, or too old to tell
	DropFlood                            // in: handshakes beyond what one sender may do
	DropUnderLoad                        // in: handshake put off by a cookie
	DropIndex                            // in: for a session that we do not have; after a restart there are some
	DropAuth                             // in: does not authenticate
	DropExpired                          // in: sealed by a key that is too old
	DropMalformed                        // in: authentic, but no IP packet
	DropSource                           // in: the inner source does not belong to the sender
	DropTransit                          // in: the inner destination is neither on this host nor reached by it alone
	DropECN                              // in: marked as congested on the way, and its transport does not understand marks (RFC 6040)
	DropWrite                            // in: the TUN device did not take it
	DropReceive                          // in: an error of the socket; how many datagrams it cost is not known
	DropRelayFrame                       // in: a frame to be relayed that is malformed, not from whom it says, or not for this host
	DropRelayRefused                     // in: to be relayed, which this host does not do
	DropRelayRoute                       // in: to be relayed to a node that is not reached directly; out: by such a relay
	DropRelayLimit                       // in: to be relayed, beyond what this host relays
	DropRead                             // out: an error of the TUN device
	DropLocal                            // out: no IP packet, or an offload that is not known
	DropNoise                            // out: multicast, link-local and the like
	DropNoRoute                          // out: nobody owns the destination
	DropNoWorkload                       // out: the destination is ours, but not in use
	DropTooBig                           // out: larger than the way to the peer, and not to be fragmented
	DropNoEndpoint                       // out: nothing is known about where the peer is
	DropQueue                            // out: too many packets waited for a key
	DropStale                            // out: waited too long for a key
	DropSend                             // out: refused by the network
	DropFull                             // out: the socket was full
	reasons                              // how many there are
)

var reasonNames = [reasons]string{
	"short", "long", "type", "control", "control-form", "control-key", "control-auth", "control-source", "control-destination",
	"control-relay", "control-limit", "control-lost", "control-forged", "control-storm", "stray", "suite", "mac1", "unknown-peer", "replay", "flood", "under-load", "index", "auth", "expired",
	"malformed", "source", "transit", "ecn", "tun-write", "receive", "relay-frame", "relay-refused", "relay-route", "relay-limit", "tun-read", "local", "noise", "no-route", "no-workload", "too-big",
	"no-endpoint", "queue", "stale", "send", "full",
}

// String returns a short name, which does not change between versions.
func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// MarshalText returns the name.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Traffic is a number of packets and of bytes.
type Traffic struct{ Packets, Bytes uint64 }

// Stats are counts since New.
type Stats struct {
	// Inner packets that were delivered to this host or sealed for a peer, and their bytes without padding.
	RxPackets, RxBytes, TxPackets, TxBytes uint64
	// Relayed are the frames that were passed on for others, and the bytes of the datagrams that they went in.
	Relayed Traffic
	// Control datagrams that were received for this host, sent by it, and passed on for others.
	ControlRx, ControlTx, ControlRelayed uint64
	// Handshake messages that were accepted.
	Handshakes uint64
	// Answers to probes of kernel paths that were received, and those that were sent; they count as control datagrams, too.
	ProofsRx, ProofsTx uint64
	// Probes of path MTUs that left, and those that were acknowledged.
	ProbesTx, ProbesAcked uint64
	// Drops has an entry for every Reason.
	Drops map[Reason]uint64
}

// counters are the counts of one shard, or of what no shard does. The shard writes them, anybody reads them.
type counters struct {
	rx, tx, relayed      traffic
	controlRx, controlTx atomic.Uint64
	controlRelayed       atomic.Uint64
	handshakes           atomic.Uint64
	proofsRx, proofsTx   atomic.Uint64
	probesTx             atomic.Uint64
	probesAcked          atomic.Uint64
	drops                [reasons]atomic.Uint64
}

// drop counts one.
func (c *counters) drop(r Reason) { c.drops[r].Add(1) }

// dropN counts n.
func (c *counters) dropN(r Reason, n uint64) { c.drops[r].Add(n) }

// Stats returns the sums over all goroutines.
func (r *Router) Stats() Stats {
	s := Stats{Drops: make(map[Reason]uint64, reasons)}
	all := []*counters{&r.controlStats}
	for _, sh := range r.shards {
		all = append(all, &sh.stats)
	}
	for _, c := range all {
		s.RxPackets += c.rx.packets.Load()
		s.RxBytes += c.rx.bytes.Load()
		s.TxPackets += c.tx.packets.Load()
		s.TxBytes += c.tx.bytes.Load()
		s.Relayed.Packets += c.relayed.packets.Load()
		s.Relayed.Bytes += c.relayed.bytes.Load()
		s.ControlRx += c.controlRx.Load()
		s.ControlTx += c.controlTx.Load()
		s.ControlRelayed += c.controlRelayed.Load()
		s.Handshakes += c.handshakes.Load()
		s.ProofsRx += c.proofsRx.Load()
		s.ProofsTx += c.proofsTx.Load()
		s.ProbesTx += c.probesTx.Load()
		s.ProbesAcked += c.probesAcked.Load()
		for i := range c.drops {
			s.Drops[Reason(i)] += c.drops[i].Load()
		}
	}
	if c, ok := r.config.ControlConn.(sieve); ok {
		s.Drops[DropControlLost] = uint64(c.Lost())
	}
	return s
}

// reasonOf maps what the session says of a message, always a bare sentinel, to what is counted.
func reasonOf(err error) Reason {
	switch err { //nolint:errorlint // package session promises that they are never wrapped
	case session.ErrReplay:
		return DropReplay
	case session.ErrExpired:
		return DropExpired
	case session.ErrIndex:
		return DropIndex
	case session.ErrShort:
		return DropShort
	case session.ErrType:
		return DropType
	case session.ErrSuite:
		return DropSuite
	case session.ErrMAC1:
		return DropMAC1
	case session.ErrUnknownPeer:
		return DropUnknownPeer
	case session.ErrFlood:
		return DropFlood
	case session.ErrUnderLoad:
		return DropUnderLoad
	}
	return DropAuth
}

// SPDX-License-Identifier: Apache-2.0

// Package session turns a pair of static keys into fresh keys for packets, and packets into
// sealed datagrams: the WireGuard protocol, message for message, as a pure state machine.
//
// A [Machine] holds the local identity and the table of receiver indices. A [Peer] holds what is
// known about one remote identity: the handshake in flight, the timers, the keys. A [Keypair] is
// one session; it seals and opens datagrams and is the only part that the packet path touches.
//
// # Purity
//
// The package does no I/O, starts no goroutine, reads no clock and logs nothing. Time is an
// argument, randomness an [io.Reader], datagrams are byte slices that the caller sends and
// receives. The same calls with the same arguments give the same messages.
//
// # Suites
//
// Byte 1 of every message is the [Suite]. [WireGuard] is 0, so that its messages are bit for bit
// those of the WireGuard whitepaper (§5.4), and any WireGuard implementation is a valid peer.
// [Weft] is the same handshake as Noise_IKpsk2_25519_AESGCM_BLAKE2s with the prologue "Weft v1".
// Its data messages are AES-256-GCM over the padded packet, with the 16 header bytes as additional
// data and header bytes 4 to 15 (receiver index and counter) as the nonce. An initiator speaks the
// suite of its [PeerConfig]; a responder answers in the suite that it was asked in, unless the peer
// is Exclusive: then it refuses all others.
//
//	data header: 4 | suite | flags (2 bytes, see [Flags]) | receiver index (LE) | counter (LE)
//
// # Invariants
//
//   - A key is used for sending by the responder only after the first datagram under it has
//     arrived, because only then it is known that the initiator is alive and not a replay.
//   - A counter is never used twice under one key, and a datagram is never accepted twice.
//   - An initiation is accepted only with a timestamp greater than any accepted before from the
//     same peer; a valid one always leads to a new session, so a peer may restart at any time.
//   - The responder's part of a handshake does not disturb the initiator's part. When both sides
//     initiate at once both handshakes complete, each side sends under the key that it initiated,
//     and both keys stay open for receiving.
//   - The last three keys that were replaced stay open for receiving. One handshake retires one
//     key, two that cross retire two, and the peer may be sending under a key of the time before: so
//     a new key never costs a datagram that is on its way.
//
// # Departures from the whitepaper
//
// Three previous keys are kept instead of one, and the responder's side of a handshake keeps them
// too. After a collision of initiations the side with the smaller public key
// rekeys 5 s later than the other, so that the collision does not repeat. A handshake that was
// asked for within 5 s of the last one is sent when the 5 s are over, not forgotten. A key seals for
// 179 s and opens for 180 s, so that its last datagram does not arrive too late. The limit of
// §5.4.7 on initiations under load counts per /64 for IPv6. Nothing of this shows on the wire.
//
// # Pre-shared keys
//
// A peer may have several, while the two sides change from one to another ([Peer.SetPreshared]). The responder uses one that it
// knows the initiator to have; the initiator tries all of its own on the response. Where a key is taken away, the sessions made
// with it are renewed at once, and live on for [RevokeGrace] at most. Nothing of this shows on the wire.
//
// # Clocks
//
// The timestamp of an initiation is TAI64N from the time that the caller passes, with its low 24
// bits of nanoseconds cleared (steps of 16.8 ms), so that it tells an observer little about the
// machine. Within one process timestamps increase even when the clock steps back. Across a
// restart only the clock can make them increase: a node whose clock was set back while it was
// down is refused as a replay until its clock passes the old time. It is reachable all the same
// as soon as the other side initiates; and removing and adding the peer there forgets the
// timestamp.
//
// Package router imports this package, and internal/node does for the key and suite types.
package session

// SPDX-License-Identifier: Apache-2.0

// Package envelope is the form of control datagrams: what nodes send each other outside of sessions, which is gossip, the pings by
// which routers find ways to each other, and the answers to probes of kernel paths.
//
//	byte 0       16 (Type): no message of a session begins with it
//	byte 1       version (four bits, 1), kind (four bits)
//	byte 2       n, the number of relays, 0 to 4
//	byte 3       at, the index of the next hop in relays and destination; relays change it, so it is not authenticated
//	bytes 4-7    key ID, big endian
//	bytes 8-15   ID of the source, big endian
//	bytes 16-23  ID of the destination, big endian; 0: whoever is at the address
//	bytes 24-    n IDs of relays, 8 bytes each, big endian
//	then         nonce (24), sealed body, tag (16)
//
// The seal is XChaCha20-Poly1305 under a key that is derived from the mesh's token, with all before the nonce as additional data, at
// being 0 there. The nonce is random.
//
// What the seal says: a holder of the token wrote this, with this header. It does not say which one: the source is for finding and for
// blaming, not for trust. Nor does it say when: a datagram can be recorded and sent again, so bodies must bear that.
//
// What the routers send each other themselves, pings, pongs and punches, besides bears a [Tag], which does say which node wrote it: it is made with a secret of the two nodes
// ([Pair]), and tells nothing to anybody else.
//
// A [Keyring] seals with one key and opens with several, which are told apart by ID: while a token is replaced, both work.
//
// Relays are named by the source. The node that finds itself as the next hop opens the datagram, so that none but members are served,
// moves the hop on with [Advance], and sends it there.
//
// Pure: randomness is an argument, nothing here blocks, logs, does I/O or keeps state; everything is safe for concurrent use. Imports
// the standard library and golang.org/x/crypto; package router and those who configure it import this one.
package envelope

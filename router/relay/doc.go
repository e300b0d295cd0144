// SPDX-License-Identifier: Apache-2.0

// Package relay is the format in which nodes carry the sealed data of two others who cannot reach each other: the relay frame.
//
// # What a frame is
//
// A frame is the plaintext of a data message in the session between two neighbours: between the source and the first relay, between two relays, between
// the last relay and the destination. It names all of them, and has a whole message of the session between source and destination
// in it: a datagram as the source would have sent it to the destination. So what is relayed is sealed twice: end to end, which is what protects it, and from neighbour to neighbour,
// which is why a relay passes nothing on but what a member of the mesh has handed to it.
//
// # What the marks of congestion become
//
// Each seal between neighbours is a tunnel of its own, and the frame is what travels in it; so the frame has a field for the type of service as an IP packet
// has. The source writes into it what its datagram would bear; every sender of a frame copies it to the datagram (RFC 6040, normal mode); every receiver combines it with what the
// datagram has got on the way ([Carry]). The destination treats the field as that of the datagram that the inner message came in. So a mark that
// is made between any two neighbours reaches the packet inside, and a stretch where marks are erased does not keep the next one from making them.
//
// # Fragments
//
// Whether the network may fragment a datagram is carried on too (Header.Whole), so that probes of path MTUs tell of the whole way: a relay
// whose next stretch is too narrow loses them as any link would.
//
// # Loops
//
// The source decides about the way, a frame names each node once, and at most [MaxRelays] of them pass it on. No relay adds to the way.
// One that lies about it makes a frame of its own by that, with the same bounds.
//
// Pure, and without state: decoding allocates nothing. Imports the standard library only; package router imports it.
package relay

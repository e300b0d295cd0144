// SPDX-License-Identifier: Apache-2.0

// Package rotation holds the rules by which the mesh changes its token while it runs. It is pure: [State] is what one node has on
// disk, every rule makes a new State out of one, and time and the view of the other nodes are arguments. internal/node imports it.
// It imports internal/token.
//
// # Words
//
// A node *accepts* a token: it opens what is sealed under it and greets whoever proves it. It *sends under* one of those, the first
// in State.Tokens. Its record names what it accepts (Record.Keys), in this order. A node is *confirmed* when its record names the
// new token. It is *away* when it does not answer and is not confirmed.
//
// # Phases
//
// The [Register] is replicated to all nodes. It says which rotation is under way and how far it is:
//
//	distributing  the new token goes to every member; nobody sends under it yet
//	switched      everybody who has it sends under it, and accepts the others still
//	revoked       everybody who has it forgets all others
//
// Of two registers the one with the greater generation counts; then the greater key id, so that of two rotations that were begun on
// the two sides of a partition one wins everywhere; then the later phase; then the greater version. So a phase never goes back.
// The tokens of the rotation that lost stay accepted until the one that won is revoked: somebody may be sending under them.
//
// A register that a node cannot check, for want of its token, counts less than one that it can: any member may have invented it. It does not take the place of
// a rotation that is under way and of which the node has the token, and the token of a rotation is taken whatever else such a register says. If it is
// the one that wins, its token comes, and it counts from then on.
//
// # Who writes what
//
//   - Whoever has the new token may write the register, and nobody else can: it bears a MAC under a key of the new token. Who does not have
//     the token cannot check that, passes the register on, and acts on nothing in it. Who gets the token drops a register
//     that turns out to be forged for the one that came with it.
//   - The phase is moved on by the one who was told to by the user ([State.Advance]), on any node: to *switched* once every living member
//     is confirmed; to *revoked*, by a command of its own, once every living member sends under the new token.
//   - Everybody who has the new token gives it to living members that are not confirmed ([Giver]), until it is revoked. So it does not
//     take the one who began, and who was away gets it on coming back.
//   - Members are the nodes that were known when the rotation began, by id and public key, without those that the user left out. Who
//     comes later with the old token may be whoever got hold of it: such a node works until the revocation and is named, but is
//     given nothing, unless the user says so (`--with`). Who comes with the new token has it, and that is all there is to ask.
//   - A node's record is written by the node.
//
// # What is on disk before what
//
//   - Beginning: the new token, then the register; then the register is told to others.
//   - Taking the token in: the token, then the record says so. So a record never claims what a crash could take away.
//   - A new register: on disk before the node acts on it or passes it on. What it asks of the tokens is done again at every start
//     ([State.Settle]), so it does not matter between which two writes a crash comes.
//   - The tokens themselves: see token.WriteKept; a token that stays is in some file at every moment.
//
// # Crashes, partitions, comebacks
//
//   - The driver dies: what was begun is in the register and on disk. Giving goes on; the command, again, on any node, goes on where it
//     was. If it died before anybody else had the token, and does not come back, the command on another node finds that no living
//     node has it, and begins anew with the next generation.
//   - A node away in all of it: before the revocation it still shares the old token with everybody, by which streams are opened and the
//     new token is given. Packets under the new one it cannot open before that; it takes less than a second.
//     After the revocation it is refused, and the user launches it with the new token.
//   - A node away only for the switch or the revocation: it has the new token, and a greeting tries all that one has.
//   - A backup that is restored: like a node that was away, with what was on its disk then. Its record says what it accepts now.
//   - Two sides of a partition, each with a rotation of its own, both revoked: they share nothing any more, as both were told when
//     their nodes were named as away. One side's nodes are launched with the other side's token.
//
// From this follows, and the simulator checks it over thousands of seeds: two living nodes share an accepted token unless a revocation cut one of
// them off, which then was named; nobody who answers is sent anything under a token that its record names and that it does not
// accept; after the revocation nothing but the new token is accepted.
package rotation

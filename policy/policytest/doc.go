// SPDX-License-Identifier: Apache-2.0

// Package policytest makes worlds of policies, and connections in them, for tests of what judges them.
//
// Universes are small on purpose: few labels, addresses and ports, so that rules overlap, contradict each other, and are hit by the connections that
// [Universe.Connection] aims at them and at their edges. All that policies can say is in them: tiers and what rules do, ports by number, range and
// name and protocols as a whole, blocks with parts left out that cover endpoints, in both families, empty selectors and absent ones, subjects
// that select nothing, rules that are disabled, endpoints without addresses, namespaces without objects.
//
// Everything is drawn from a [Source], a seeded one or one that rapid shrinks: the same numbers make the same objects. Every policy passes
// policy.Policy.Check, but for those of [Hostile] that say otherwise. Objects are new ones each time and never changed afterwards.
//
// Tests import it, nothing else.
package policytest

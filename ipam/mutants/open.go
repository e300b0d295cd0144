// SPDX-License-Identifier: Apache-2.0

package main

// open returns breaks of rules for which no seed is known that reports a violation: what they need to do harm, several nodes
// dying in one order and messages coming in another, has not come about in the few hundred seeds that were tried, or rarely.
// They are tried with -open only, and do not count as caught.
func open() []mutant {
	return []mutant{
		{
			"slot-acks-twice", "ledger.go",
			`return l.spoken().Union(o.acks)`,
			`return slices.Concat(l.spoken(), o.acks)`,
			"a slot that changes hands while a grant is recorded counts once",
		},
		{
			"slot-surveyed-twice", "inherit.go",
			`known = known.Union(slots)`,
			`known = slices.Concat(known, slots)`,
			"a slot that changes hands during a survey counts once",
		},
		{
			"ack-of-other-log", "donor.go",
			`for _, o := range x.acknowledge(m.grants, m.slots, int(m.length)) {`,
			`for _, o := range x.acknowledge(m.grants, m.slots, len(x.ring.Log())) {`,
			"acks count only between nodes whose logs have the same length",
		},
		{
			"acks-outlive-log", "ledger.go",
			`if o.at != len(l.ring.Log()) {`,
			`if false {`,
			"once the donor's log has grown, earlier acks do not count any more",
		},
		{
			"forget-log-on-grant", "recipient.go",
			`func (a *Allocator) onGrant(x *edit, from ring.Owner, m *message) {`,
			`func (a *Allocator) onGrant(x *edit, from ring.Owner, m *message) { if len(m.ring.Log()) > len(x.ring.Log()) { m.ring = m.ring.WithLog(x.ring) }`,
			"the log of retirements moves with the slots",
		},
		{
			"received-before-stored", "recipient.go",
			`x.send(from, &message{kind: kindReceived, grants: m.grants})`,
			`a.send(from, &message{kind: kindReceived, grants: m.grants})`,
			"the donor goes on sending a block until the recipient has stored it",
		},
		{
			"survey-before-stored", "inherit.go",
			`x.send(from, &message{kind: kindSurveyed, ring: x.ring, slots: x.spoken()})`,
			`a.send(from, &message{kind: kindSurveyed, ring: x.ring, slots: x.spoken()})`,
			"who answers a survey has stored the retirements that it is about",
		},
		{
			"claim-from-retired", "ledger.go",
			`if l.retired(l.self) || l.retired(from) {`,
			`if l.retired(l.self) {`,
			"nobody claims what a node hands over that it knows to be retired",
		},
		{
			"answer-of-other-log", "inherit.go",
			`if s := a.survey; s != nil && len(m.ring.Log()) == s.length {`,
			`if s := a.survey; s != nil {`,
			"an answer to a survey counts between nodes whose logs have the same length",
		},
		{
			"earlier-heirs-not-asked", "estate.go",
			`for _, e := range log[first:] {`,
			`for _, e := range log[len(log):] {`,
			"all earlier heirs have answered, who may have taken the slot over",
		},
		{
			"seed-heirs-not-asked", "estate.go",
			`first = 0 // adopting takes no majority: any retired node may have, and its heir may know`,
			`_ = first`,
			"of a seeded share all heirs are asked, since it may have been adopted without a majority",
		},
		{
			"next-epoch", "ring/write.go",
			`epoch := max(uint64(n), uint64(reg.Version.Epoch)+1)`,
			`epoch := uint64(reg.Version.Epoch) + 1`,
			"the epoch of a takeover is the length of the log, so that whatever surfaces later is before it",
		},
		{
			"shared-ballots", "retire.go",
			`index: len(x.ring.Log()), ballot: ring.Ballot{Count: votes.Promised.Count + 1, Node: x.self},`,
			`index: len(x.ring.Log()), ballot: ring.Ballot{Count: votes.Promised.Count + 1, Node: 1},`,
			"no two nodes use the same ballot",
		},
		{
			"dead-vote", "retire.go",
			`if o != dead {`,
			`if o != dead || true {`,
			"the dead node's own slots do not vote",
		},
		{
			"claim-by-old-copy", "ledger.go",
			`news := l.ring.Same(grants).Intersect(mine)`,
			`news := grants.Known().Intersect(mine)`,
			"a late copy of an earlier grant of the same block hands over nothing",
		},
	}
}

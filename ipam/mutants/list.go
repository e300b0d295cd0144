// SPDX-License-Identifier: Apache-2.0

package main

// mutants returns the list: for each of them there are seeds that report a violation. See also open.
//
// Not on the list is what a second line guards as well, so that nothing changes without the first: that a node is retired
// once (a proposer does not propose it again), that an acceptor accepts nothing below its promise (the proposer has given up
// by then), that the last heir alone takes over (once in ledger.due, once in Ring.TakeOver), that nothing is handed over to a
// retired node (it is taken back before), that retired nodes are not served (answers count at equal length of the logs
// only, and their grants are not claimed), and that slots which are being given away are not handed out (once when they
// are picked, once when that is committed).
func mutants() []mutant {
	return append(append(append(counting(), granting()...), storing()...), reclaiming()...)
}

// counting are about what a majority is.
func counting() []mutant {
	return []mutant{
		{
			"count-nodes", "ledger.go",
			`func (l *ledger) majority(s ring.Set) bool { return 2*s.Len() > uint64(l.ring.Size()) }`,
			`func (l *ledger) majority(s ring.Set) bool { return 2*len(l.ring.Only(s).Owners()) > len(l.ring.Owners()) }`,
			"slots are counted, and not nodes",
		},
		{
			"half-is-enough", "ledger.go",
			`func (l *ledger) majority(s ring.Set) bool { return 2*s.Len() > uint64(l.ring.Size()) }`,
			`func (l *ledger) majority(s ring.Set) bool { return 2*s.Len() >= uint64(l.ring.Size()) }`,
			"a majority is more than half, so that two of them share a slot",
		},
		{
			"slot-votes-twice", "retire.go",
			`own = own.Union(slots)`,
			`own = slices.Concat(own, slots)`,
			"a slot that changes hands during a vote counts once",
		},
		{
			"speak-after-hand-over", "ledger.go",
			`if !o.handed {`,
			`if true {`,
			"one node at most speaks for a slot: not the donor any more once it has handed it over",
		},
		{
			"ack-of-anything", "ledger.go",
			`if !covers(grants, o.grants) {`,
			`if false {`,
			"an ack is about the grants that it names",
		},
	}
}

// granting are about the way of a block.
func granting() []mutant {
	return []mutant{
		{
			"hand-over-at-once", "ledger.go",
			`if !o.handed && answers(o.to) && !l.retired(o.to) && l.majority(l.recorded(o)) {`,
			`if !o.handed && answers(o.to) && !l.retired(o.to) {`,
			"a block is handed over once a majority has recorded the grant",
		},
		{
			"use-what-is-announced", "ledger.go",
			`return news, lost, nil`,
			`l.effective = l.effective.Union(l.announced()); return news, lost, nil`,
			"a block may be used when it was handed over, and not when the ring announces it: allocate after the majority",
		},
		{
			"take-without-claim", "ledger.go",
			`if err := l.edit(func(r *ring.Ring) error { return each(news, func(i ring.Interval) error { return r.Claim(l.self, i) }) }); err != nil {`,
			`if err := l.edit(func(r *ring.Ring) error { return nil }); err != nil {`,
			"the recipient claims the block in its ring in the commit in which it takes it",
		},
		{
			"skip-ring-on-grant", "recipient.go",
			`func (a *Allocator) onGrant(x *edit, from ring.Owner, m *message) {`,
			`func (a *Allocator) onGrant(x *edit, from ring.Owner, m *message) { m.ring = m.grants.WithLog(m.ring)`,
			"knowledge moves with the slots: the recipient merges the donor's whole ring first",
		},
		{
			"forget-votes-on-grant", "recipient.go",
			`func (a *Allocator) onGrant(x *edit, from ring.Owner, m *message) {`,
			`func (a *Allocator) onGrant(x *edit, from ring.Owner, m *message) { if len(m.ring.Log()) == len(x.ring.Log()) { m.ring = m.ring.WithLog(x.ring) }`,
			"the state of the donor's vote moves with the slots",
		},
		{
			"merge-by-arrival", "ring/ring.go",
			`return x.Version.Compare(y.Version)`,
			`return map[bool]int{true: 1, false: -1}[y == (Register{})]`,
			"of two registers the one with the greater version wins, whichever comes last",
		},
		{
			"grant-what-is-in-use", "donor.go",
			`blocks = pickBlocks(x.effective.Subtract(a.space.all()), known, most, a.space.usable)`,
			`blocks = pickBlocks(x.effective, known, most, a.space.usable)`,
			"what is granted is free",
		},
		{
			"move-what-is-in-use", "donor.go",
			`if !a.space.domain.Contains(m.slot) || a.space.taken(m.slot) {`,
			`if !a.space.domain.Contains(m.slot) {`,
			"an address that another node asks for by name is given away only if it is free",
		},
		{
			"leave-what-is-in-use", "leave.go",
			`free := x.effective.Subtract(a.inUse())`,
			`free := x.effective`,
			"who leaves gives away what is free",
		},
	}
}

// storing are about what has to be durable before what.
func storing() []mutant {
	return []mutant{
		{
			"say-before-stored", "commit.go",
			`f(x)`,
			`f(x); a.out, x.out = append(a.out, x.out...), nil`,
			"nothing is said before it is durable: no message leaves before the change that it tells of",
		},
		{
			"hand-over-before-stored", "donor.go",
			`x.send(o.to, &message{kind: kindGrant, ring: x.ring, grants: o.grants})`,
			`a.send(o.to, &message{kind: kindGrant, ring: x.ring, grants: o.grants})`,
			"the donor has stored that it does not speak for a block any more before it sends it",
		},
		{
			"ack-before-stored", "donor.go",
			`x.send(from, &message{kind: kindAck, grants: m.grants.WithLog(ring.New(a.size)), slots: x.spoken(), length: uint64(len(x.ring.Log()))})`,
			`a.send(from, &message{kind: kindAck, grants: m.grants.WithLog(ring.New(a.size)), slots: x.spoken(), length: uint64(len(x.ring.Log()))})`,
			"a grant is recorded on disk before that is said",
		},
		{
			"vote-before-stored", "retire.go",
			`x.send(from, &message{kind: kindVoted, ring: ring.New(a.size).WithLog(x.ring), slots: x.spoken()})`,
			`a.send(from, &message{kind: kindVoted, ring: ring.New(a.size).WithLog(x.ring), slots: x.spoken()})`,
			"promises and votes are stored before they are told",
		},
		{
			"failed-change-counts", "commit.go",
			`err := a.save(c)`,
			`err := error(nil); _ = a.save(c)`,
			"a change of the ledger whose commit failed did not happen",
		},
		{
			"failed-allocation-counts", "commit.go",
			`b.err = a.save(c)`,
			`_ = a.save(c)`,
			"an allocation whose commit failed is not handed out",
		},
		{
			"reply-before-stored", "allocate.go",
			`a.stage(w.entry, staged)`,
			`a.stage(w.entry, held)`,
			"an address is handed out once it is durable: persist before the reply",
		},
		{
			"forget-doubt", "commit.go",
			`c = a.resolve(c)`,
			`_ = a.resolve(c)`,
			"after a commit that failed the next one writes again all that it was about",
		},
		{
			"again-in-doubt", "allocate.go",
			`case a.doubt.owners[e.owner]:`,
			`case false:`,
			"a lease that a failed commit may have removed is written again before it is handed out again",
		},
		{
			"release-in-doubt", "allocate.go",
			`case e == nil && !a.doubt.owners[owner]:`,
			`case e == nil:`,
			"an allocation that failed and may be stored all the same is removed before its release is reported",
		},
		{
			"hand-over-not-kept", "ledger.go",
			`handed = 1`,
			`handed = 0`,
			"a restart does not make a donor speak again for what it has handed over",
		},
		{
			"restart-frees-all", "allocator.go",
			`a.space.take(p.Slot)`,
			`_ = p.Slot`,
			"what is stored as allocated is taken after a restart",
		},
		{
			"reuse-at-once", "commit.go",
			`a.space.rest(e.slot, until)`,
			`a.space.free(e.slot)`,
			"a freed address rests before it is handed out again",
		},
		{
			"no-rest", "commit.go",
			`until := a.cfg.Now().Add(a.quarantine).Round(0).Truncate(time.Millisecond)`,
			`until := a.cfg.Now().Round(0).Truncate(time.Millisecond)`,
			"a freed address rests for as long as is configured",
		},
		{
			"rest-not-stored", "commit.go",
			`c.Rest = append(c.Rest, Resting{e.slot, until})`,
			`_ = until`,
			"a freed address rests on although the node restarts",
		},
		{
			"restart-ends-rest", "allocator.go",
			`a.space.rest(rest.Slot, rest.Until)`,
			`a.space.free(rest.Slot)`,
			"what is stored as resting rests after a restart",
		},
		{
			"hand-out-first-and-last", "space.go",
			`s.domain = slots.Subtract(ring.Set{{First: 0, Last: 0}}).Subtract(ring.Set{{First: s.size - 1, Last: s.size - 1}})`,
			`s.domain = slots`,
			"the first and the last slot of the universe are never handed out",
		},
		{
			"hand-out-twice", "allocate.go",
			`if e := a.bySlot[slot]; e != nil {`,
			`if e := a.bySlot[slot]; false {`,
			"an address that is in use is not handed out by name",
		},
	}
}

// reclaiming are about the way of what a dead node had.
func reclaiming() []mutant {
	return []mutant{
		{
			"retired-goes-on", "ledger.go",
			`if !l.retired(l.self) {`,
			`if true {`,
			"a node that finds itself retired speaks for nothing and hands out nothing",
		},
		{
			"revoke-after-hand-over", "ledger.go",
			`func (l *ledger) revocable(o *outgoing) bool { return !o.handed && l.retired(o.to) }`,
			`func (l *ledger) revocable(o *outgoing) bool { return l.retired(o.to) }`,
			"a donor takes back only what it has not handed over",
		},
		{
			"never-revoke", "ledger.go",
			`func (l *ledger) revocable(o *outgoing) bool { return !o.handed && l.retired(o.to) }`,
			`func (l *ledger) revocable(o *outgoing) bool { return false }`,
			"what was granted to a node that is retired, and not handed over, is taken back",
		},
		{
			"no-survey", "inherit.go",
			`if !l.majority(s.known(l)) && (!log[len(log)-1].Forced || !all || a.cfg.Now().Sub(s.began) < silence) {`,
			`if false && (!log[len(log)-1].Forced || !all || a.cfg.Now().Sub(s.began) < silence) {`,
			"nothing is taken over before a majority has told what it knows",
		},
		{
			"survey-of-other-log", "inherit.go",
			`if s == nil || s.length != len(log) || len(a.ghosts(l, v)) > 0 {`,
			`if s == nil || len(a.ghosts(l, v)) > 0 {`,
			"a survey counts for the length of the log for which it was made",
		},
		{
			"survey-tells-nothing", "inherit.go",
			`x.send(from, &message{kind: kindSurveyed, ring: x.ring, slots: x.spoken()})`,
			`x.send(from, &message{kind: kindSurveyed, ring: ring.New(a.size).WithLog(x.ring), slots: x.spoken()})`,
			"who answers a survey tells all that it knows",
		},
		{
			"owner-not-asked", "estate.go",
			`out := []ring.Owner{reg.Owner, reg.From}`,
			`out := []ring.Owner{0, reg.From}`,
			"a slot that a retired node granted is taken over after its recipient has answered",
		},
		{
			"donor-not-asked", "estate.go",
			`out := []ring.Owner{reg.Owner, reg.From}`,
			`out := []ring.Owner{reg.Owner, 0}`,
			"a slot that was granted to a retired node is taken over after its donor has answered",
		},
		{
			"donor-not-heeded", "estate.go",
			`may = may.Subtract(answers[reg.From]) // it has not handed them over, and takes them back`,
			`_ = answers`,
			"what the donor still speaks for is not taken over",
		},
		{
			"leave-pending-behind", "estate.go",
			`return owner || from`,
			`return owner || from && owner`,
			"what a retired node has granted without its having arrived is taken over, too",
		},
		{
			"forget-accepted", "retire.go",
			`if votes.Accepted == (ring.Ballot{}) {`,
			`if true {`,
			"a proposer proposes what was accepted before, if anything was",
		},
		{
			"decide-at-once", "retire.go",
			`case accepted && l.majority(counted(l.spoken(), p.accepted, l, votes.Value.Dead)):`,
			`case accepted:`,
			"a retirement is decided when a majority has accepted it",
		},
		{
			"propose-without-promises", "retire.go",
			`case !accepted && l.majority(counted(l.spoken(), p.promised, l, p.dead)) && votes.Value.Dead != l.self:`,
			`case !accepted && votes.Value.Dead != l.self:`,
			"a retirement is proposed when a majority has promised to heed nothing earlier",
		},
		{
			"overtaken-goes-on", "retire.go",
			`case p.index != len(log), votes.Promised != p.ballot:`,
			`case p.index != len(log):`,
			"a proposal ends when a later ballot was promised",
		},
		{
			"votes-of-any-ballot", "retire.go",
			`if p == nil || len(m.ring.Log()) != p.index || v.Promised != p.ballot {`,
			`if p == nil || len(m.ring.Log()) != p.index {`,
			"a vote counts for the ballot that it names",
		},
		{
			"votes-of-other-log", "retire.go",
			`if p == nil || len(m.ring.Log()) != p.index || v.Promised != p.ballot {`,
			`if p == nil || v.Promised != p.ballot {`,
			"a vote counts for the entry of the log that it is about",
		},
		{
			"votes-stay", "ring/log.go",
			`r.votes = Votes{}`,
			`_ = e`,
			"the votes on the next entry of the log begin anew",
		},
		{
			"older-vote-wins", "ring/log.go",
			`if c := v.Accepted.Compare(w.Accepted); c < 0 || c == 0 && v.Value.compare(w.Value) < 0 {`,
			`if c := v.Accepted.Compare(w.Accepted); v.Accepted == (Ballot{}) || c > 0 && w.Accepted != (Ballot{}) {`,
			"of two accepted proposals the later one counts",
		},
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"time"
)

const (
	// handTurns is how many turns a kernel path has, and as many has what it is compared with.
	handTurns = 16
	// handTurn is how long one is. What slows the machine down for longer slows both down.
	handTurn = 500 * time.Millisecond
)

// pairByHand has kernel paths compared with what is made by hand of the same parts, turn by turn, where both take part.
func pairByHand(all []*contender) {
	for path, hand := range map[string]string{weftVXLAN: routedVXLAN, weftDirect: routedVeth} {
		named := func(name string) int { return slices.IndexFunc(all, func(c *contender) bool { return c.name == name }) }
		if c, h := named(path), named(hand); c >= 0 && h >= 0 {
			all[c].hand, all[c].kinds = all[h], append(slices.Clone(all[c].kinds), byHandKind)
		}
	}
}

// byHand measures one stream by a kernel path, and by what is made by hand, to and fro.
func (b *bench) byHand(c *contender) error { return b.byTurns(c, handTurns) }

func (b *bench) byTurns(c *contender, turns int) error {
	hand := *c.hand
	hand.pids = c.pids // the daemons run all the time, but only the kernel path needs them
	ways := []*contender{c, &hand}
	var sums [2]flow
	for turn := range 2 * turns {
		i := turn & 1
		if turn&2 != 0 { // nobody always comes after the other one
			i = 1 - i
		}
		f, err := stream(b.ctx, ways[i], 1, handTurn)
		if err != nil {
			return err
		}
		if i == 1 {
			f.machine -= f.cpu
		}
		sums[i].gbit += f.gbit
		sums[i].rate += f.rate
		sums[i].machine += f.machine
	}
	ours, theirs := sums[0], sums[1]
	c.samples.add(byHandRate, ratio(ours.rate, theirs.rate))
	c.samples.add(byHandCPU, ratio(ours.machine/ours.gbit, theirs.machine/theirs.gbit))
	return nil
}

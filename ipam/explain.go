// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// Explain returns what is known of the history of an address, one line for each thing, oldest first, and then what it is on
// this node. It is an OutsideError if the address is not one of the mesh's.
func (a *Allocator) Explain(addr netip.Addr) ([]string, error) {
	slot, ok := a.cfg.Universe.Slot(addr)
	if !ok {
		return nil, &OutsideError{Addr: addr, Universe: a.cfg.Universe}
	}
	a.mu.Lock()
	a.expire()
	r := a.ledger.ring
	e := a.bySlot[slot]
	until, resting := a.space.rests[slot]
	effective := a.ledger.effective.Contains(slot)
	a.mu.Unlock()
	var out []string
	for _, s := range r.Explain(slot) {
		out = append(out, a.tell(s))
	}
	switch {
	case e != nil:
		out = append(out, fmt.Sprintf("on this node it is allocated to %s", e.owner))
	case resting:
		out = append(out, fmt.Sprintf("on this node it rests after its release, until %s", until.UTC().Format(time.DateTime+" UTC")))
	case effective && a.cfg.Universe.reserved(slot):
		out = append(out, "on this node it is never handed out: it is the first or the last of the range")
	case effective:
		out = append(out, "on this node it is free")
	}
	return out, nil
}

// tell puts a step of an address's history into words. No lock must be held.
func (a *Allocator) tell(s ring.Step) string {
	who := "a node"
	if s.Owner != 0 {
		who = a.name(s.Owner)
	}
	version := fmt.Sprintf(" (version %d.%d)", s.Version.Epoch, s.Version.Count)
	switch s.Kind {
	case ring.Seeded:
		return "given to " + who + " when the mesh was founded" + version
	case ring.Adopted:
		return "taken by " + who + ", which has the name that it was seeded under" + version
	case ring.Passed:
		return fmt.Sprintf("granted from node to node %d times, no longer known between which", s.Times)
	case ring.Granted:
		return fmt.Sprintf("granted by %s to %s, which has not got it yet%s", a.name(s.From), who, version)
	case ring.Claimed:
		return who + " has it: it was granted it, or took back what it had granted" + version
	case ring.TakenOver:
		var gone []string
		for _, x := range s.Retirements {
			gone = append(gone, a.name(x.Dead))
		}
		text := "taken over by " + who + " from a node that was gone"
		if len(gone) > 0 {
			last := s.Retirements[len(s.Retirements)-1]
			text += fmt.Sprintf(" (%s; decided by %s on %s)", strings.Join(firsts(gone, 5), ", "), a.name(last.By),
				time.Unix(last.At, 0).UTC().Format(time.DateTime+" UTC"))
		}
		return text + version
	default:
		text := a.name(s.From) + " was declared gone, and " + who + " is to take it over"
		for _, x := range s.Retirements {
			text += fmt.Sprintf(" (decided by %s on %s)", a.name(x.By), time.Unix(x.At, 0).UTC().Format(time.DateTime+" UTC"))
		}
		return text
	}
}

// firsts returns the first n of a list, and how many more there are.
func firsts(s []string, n int) []string {
	if len(s) <= n {
		return s
	}
	return append(s[:n:n], fmt.Sprintf("or one of %d more", len(s)-n))
}

// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"time"
)

// Explain returns what is known of the history of an address, one line for each thing, oldest first. It is an
// OutsideError if the address is not one of the mesh's.
func (a *Allocator) Explain(addr netip.Addr) ([]string, error) {
	slot, ok := a.cfg.Universe.Slot(addr)
	if !ok {
		return nil, &OutsideError{Addr: addr, Universe: a.cfg.Universe}
	}
	a.mu.Lock()
	r := a.ledger.ring
	reg := r.At(slot)
	e := a.bySlot[slot]
	until, resting := a.space.rests[slot]
	effective := a.ledger.effective.Contains(slot)
	a.mu.Unlock()
	name := a.name
	var out []string
	switch v := reg.Version; {
	case v.Epoch == 0 && v.Count == 1:
		out = append(out, fmt.Sprintf("%v was given to %s when the mesh was founded, and never changed hands", addr, name(reg.Owner)))
	case reg.From != 0:
		out = append(out, fmt.Sprintf("%v was granted by %s to %s (version %d.%d), which has not got it yet", addr, name(reg.From), name(reg.Owner), v.Epoch, v.Count))
	case v.Epoch > 0 && v.Count == 1:
		out = append(out, fmt.Sprintf("%v was taken over by %s from a node that was gone (version %d.%d)", addr, name(reg.Owner), v.Epoch, v.Count))
	default:
		out = append(out, fmt.Sprintf("%v belongs to %s since the %dth time that it was written (version %d.%d)", addr, name(reg.Owner), v.Count, v.Epoch, v.Count))
	}
	for _, x := range r.Log() {
		if x.Heir == reg.Owner || x.Dead == reg.Owner || x.Dead == reg.From {
			out = append(out, fmt.Sprintf("%s was declared gone by %s on %s; what it had went to %s",
				name(x.Dead), name(x.By), time.Unix(x.At, 0).UTC().Format(time.DateTime+" UTC"), name(x.Heir)))
		}
	}
	switch {
	case e != nil:
		out = append(out, fmt.Sprintf("here it is allocated to %s", e.owner))
	case resting:
		out = append(out, fmt.Sprintf("here it rests until %s, after its release", until.UTC().Format(time.DateTime+" UTC")))
	case effective:
		out = append(out, "here it is free")
	}
	return out, nil
}

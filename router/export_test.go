// SPDX-License-Identifier: Apache-2.0

package router

// SetWay makes the way to a node lead through relays, or be the direct one if there are none.
func (r *Router) SetWay(id uint64, relays ...uint64) {
	p := r.current.Load().byID[id]
	var w *way
	if len(relays) > 0 {
		w = &way{N: uint8(len(relays))}
		copy(w.Relays[:], relays)
	}
	p.course.way.Store(w)
	r.forgetPath(p)
}

// SPDX-License-Identifier: Apache-2.0

package router

import "github.com/weftnet/weft/router/reach"

// SetWay makes the way to a node lead through relays, or be the direct one if there are none, and stay so: until SetPeers is called no other is looked for,
// to any node.
func (r *Router) SetWay(id uint64, relays ...uint64) {
	now := r.config.Now()
	r.reaching.do(now, func(m *reach.Machine) { m.SetNodes(nil, now) })
	p := r.current.Load().byID[id]
	var w *way
	if len(relays) > 0 {
		w = &way{N: uint8(len(relays))}
		copy(w.Relays[:], relays)
	}
	p.course.way.Store(w)
	r.forgetPath(p)
}

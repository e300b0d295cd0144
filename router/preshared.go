// SPDX-License-Identifier: Apache-2.0

package router

import (
	"slices"

	"github.com/weftnet/weft/router/session"
)

// While the mesh changes its token, a node has several pre-shared keys, and each peer may have others of them: Peer.Keys are those
// that we have, with those first that the peer is known to have, the newest of them before all. What changes there
// changes nothing for sessions made with a key that stays. The others are renewed at once; see session.Peer.SetPreshared.

// rekey brings a peer's pre-shared keys up to date; old is nil for a new one. External peers are not concerned.
func (r *Router) rekey(p *peer, old, d *Peer) {
	if d.External || old == nil && len(d.Keys) == 0 || old != nil && slices.Equal(old.Keys, d.Keys) {
		return
	}
	keys := d.Keys
	if len(keys) == 0 {
		keys = []session.PresharedKey{r.config.Preshared}
	}
	p.sess.SetPreshared(keys, r.config.Now())
	r.timers.touch(p)
}

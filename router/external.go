// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/router/route"
	"github.com/weftnet/weft/router/session"
)

// External peers are WireGuard clients, stock ones, that join the overlay by this host. They are no nodes:
//
//   - They have a pre-shared key of their own, so that none of them learns what the mesh's token gives, and none can pose
//     as a node or as another client.
//   - They speak suite wireguard only, whatever they begin with.
//   - Their addresses are lent from the host's own: the other nodes see the host, and know nothing of them.
//
// So they alone may send through this host, and be sent to through it. Such a packet is not turned round here: it is written
// to the TUN device like any other, and the kernel, which counts its hops and has the host's firewall, forwards it to the
// workload or back into the device, where a shard reads it and finds the peer that owns its destination.

// checkExternal says what is wrong with d as far as its kind goes.
func (r *Router) checkExternal(d *Peer) error {
	none := session.PresharedKey{}
	switch {
	case !d.External && d.Preshared != none:
		return fmt.Errorf("peer %s: only an external peer has a pre-shared key of its own", d.Name)
	case !d.External:
		return nil
	case len(d.Keys) > 0:
		return fmt.Errorf("external peer %s: it has one pre-shared key, not those of the mesh", d.Name)
	case d.Preshared == none:
		return fmt.Errorf("external peer %s: it has no pre-shared key", d.Name)
	case d.Preshared == r.config.Preshared:
		return fmt.Errorf("external peer %s: its pre-shared key is the mesh's", d.Name)
	case d.Suite != session.WireGuard:
		return fmt.Errorf("external peer %s: it cannot speak %s", d.Name, d.Suite)
	}
	return nil
}

// sessionOf returns what the session with a peer is made of.
func (r *Router) sessionOf(d *Peer) session.PeerConfig {
	c := session.PeerConfig{Public: d.Key, Preshared: r.config.Preshared, Suite: d.Suite}
	switch {
	case d.External:
		c.Preshared, c.Exclusive = d.Preshared, true
	case len(d.Keys) > 0:
		c.Preshared = d.Keys[0]
	}
	return c
}

// lentPrefixes are what external peers have of this host's own prefixes. Where the host has the very same one, they go first.
func lentPrefixes(desired []Peer) map[netip.Prefix]bool {
	lent := map[netip.Prefix]bool{}
	for i := range desired {
		if !desired[i].External {
			continue
		}
		for _, raw := range desired[i].Prefixes {
			if p, ok := route.Canonical(raw); ok {
				lent[p] = true
			}
		}
	}
	return lent
}

// transits tells whether a packet may pass through this host from one peer to another: if one of them is external.
func transits(from, to *peer) bool { return from.external || to.external }

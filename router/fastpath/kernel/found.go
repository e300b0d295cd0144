// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"

	"github.com/weftnet/weft/router/fastpath"
)

// Found tells by which kernel paths an earlier run has left the peers of d reachable: those to which routes of the main table
// lead by a way that d has, too. It changes nothing, and is of use before the first Apply: paths found so are used on trust until
// they are proven, so that no packet is lost. Path in d does not count.
func (k *Kernel) Found(d Desired) (map[uint64]fastpath.Kind, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.open()
	if err != nil {
		return nil, err
	}
	links := map[string]link{}
	for _, name := range []string{Device4, Device6} {
		l, exists, err := c.link(name)
		if err != nil {
			return nil, err
		}
		if exists && k.config.ours(l) && k.config.right(l) {
			links[name] = l
		}
	}
	for _, p := range d.Peers {
		if _, ok := links[p.Device]; ok || p.Device == "" {
			continue
		}
		l, exists, err := c.link(p.Device)
		if err != nil {
			return nil, err
		}
		if exists {
			links[p.Device] = l
		}
	}
	have, _, err := c.objects(k.config, links)
	if err != nil {
		return nil, err
	}
	return have.kinds(d.Peers), nil
}

// kinds does the work of Found. If there are routes of both kinds to a peer, it was being switched: the better one counts.
func (o objects) kinds(peers []Peer) map[uint64]fastpath.Kind {
	tunnels := map[entryKey]uint64{} // by the VXLAN device, too: the way has to be the same
	segments := map[netip.Prefix]Peer{}
	for _, p := range peers {
		if p.VXLAN.IsValid() {
			key := entryKey{deviceFor(p.VXLAN.Addr()), macOf(p.ID)}
			if _, ok := tunnels[key]; !ok {
				tunnels[key] = p.ID
			}
		}
		if p.Device != "" {
			for _, dst := range p.Prefixes {
				segments[dst] = p
			}
		}
	}
	out := map[uint64]fastpath.Kind{}
	for key, r := range o.routes {
		if key.table != mainTable || r.odd || r.unreachable {
			continue
		}
		if m, ok := o.neighbours[neighbourKey{r.device, r.via}]; ok {
			if id, ok := tunnels[entryKey{r.device, m}]; ok && out[id] < fastpath.VXLAN {
				out[id] = fastpath.VXLAN
			}
			continue
		}
		p, ok := segments[key.dst]
		if !ok { // one of two halves
			p, ok = segments[netip.PrefixFrom(key.dst.Addr(), key.dst.Bits()-1).Masked()]
		}
		if ok && p.Device == r.device && (r.via == p.Hop4 && key.dst.Addr().Is4() || r.via == p.Hop6 && key.dst.Addr().Is6()) {
			out[p.ID] = fastpath.Direct
		}
	}
	return out
}

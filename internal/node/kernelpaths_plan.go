// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/session"
)

// Features of a node's record: what it can do.
const (
	featureDirect = "direct"
	featureVXLAN  = "vxlan/" // + VNI/PORT
)

// features are what this node's record says of kernel paths.
func (k *kernelPaths) features() (f []string) {
	for _, kind := range k.offered() {
		switch kind {
		case fastpath.Direct:
			f = append(f, featureDirect)
		case fastpath.VXLAN:
			f = append(f, fmt.Sprintf("%s%d/%d", featureVXLAN, k.n.cfg.Kernel.VNI, vxlanPort(k.n.cfg.Port)))
		}
	}
	return f
}

// offeredBy reads the features of another node's record. What makes no sense is not offered.
func offeredBy(features []string) (kinds []fastpath.Kind, vni uint32, port uint16) {
	for _, f := range features {
		if f == featureDirect {
			kinds = append(kinds, fastpath.Direct)
			continue
		}
		rest, ok := strings.CutPrefix(f, featureVXLAN)
		network, at, slash := strings.Cut(rest, "/")
		if !ok || !slash || vni != 0 {
			continue
		}
		v, verr := strconv.ParseUint(network, 10, 24)
		p, perr := strconv.ParseUint(at, 10, 16)
		if verr != nil || perr != nil || v == 0 || p == 0 {
			continue
		}
		kinds, vni, port = append(kinds, fastpath.VXLAN), uint32(v), uint16(p)
	}
	return kinds, vni, port
}

// peersOfPaths are the other nodes as planning needs to know them. Those that have left or were declared gone are none. What a record says of
// the node's own addresses on the overlay counts as far as the ring says the same.
func peersOfPaths(nodes []mesh.Node, owned map[uint64][]netip.Prefix, stats []router.PeerStats, wants map[mesh.NodeID]fastpath.Want) []fastpath.Peer {
	current := make(map[session.PublicKey]netip.AddrPort, len(stats))
	for _, s := range stats {
		if s.Path == pathDirect && s.Heard {
			current[s.Key] = s.Endpoint
		}
	}
	var peers []fastpath.Peer
	for _, m := range nodes {
		if m.Status == mesh.Self || m.Status == mesh.Left {
			continue
		}
		p := fastpath.Peer{
			ID: uint64(m.ID), Name: shownName(m), Current: current[session.PublicKey(m.PublicKey)], Endpoints: m.Endpoints,
			Trusted: m.TrustedSubnets, Want: wants[m.ID],
		}
		p.Kinds, p.VNI, p.VXLANPort = offeredBy(m.Features)
		for _, a := range m.Hosts {
			if slices.ContainsFunc(owned[p.ID], func(o netip.Prefix) bool { return o.Contains(a) }) {
				p.Hosts = append(p.Hosts, a)
			}
		}
		peers = append(peers, p)
	}
	return peers
}

// ownedBy are the addresses of each node, as the ring says.
func ownedBy(holdings []ipam.Holding) map[uint64][]netip.Prefix {
	owned := make(map[uint64][]netip.Prefix, len(holdings))
	for _, h := range holdings {
		owned[uint64(h.Owner)] = h.Prefixes
	}
	return owned
}

// survey looks at who may be reached how, and puts that into effect.
func (k *kernelPaths) survey(now time.Time) {
	if k.plan(now) {
		k.effect(now)
	}
}

// effect puts what was planned into effect: a path whose way leads elsewhere now is left before the routes lead there.
func (k *kernelPaths) effect(now time.Time) {
	left := k.machine.Leave(now)
	k.carryOut()
	k.tell(left)
}

// plan looks at who may be reached how. It reports false if nothing has changed that this depends on, but for what the kernel knows of the network below: that is asked
// anew only after surveyAgain.
func (k *kernelPaths) plan(now time.Time) bool {
	nodes := sharing(k.e.members(), k.n.rotor.snapshot())
	owned := ownedBy(k.e.alloc.Owned())
	k.mu.Lock()
	peers := peersOfPaths(nodes, owned, k.e.plane.PeerStats(), k.wants)
	k.mu.Unlock()
	for i := range peers {
		peers[i].Unused = k.machine.Status(peers[i].ID).Path == fastpath.UDP
	}
	if now.Sub(k.planned) < surveyAgain && reflect.DeepEqual(peers, k.peers) && reflect.DeepEqual(owned, k.prefixes) {
		return false
	}
	k.peers, k.planned = peers, now
	k.names, k.ports = make(map[uint64]string, len(peers)), make(map[uint64]uint16, len(peers))
	for _, p := range peers {
		k.names[p.ID], k.ports[p.ID] = p.Name, p.VXLANPort
	}
	candidates := fastpath.Plan(k.self(), peers, k.candidates)
	mtu4, mtu6 := k.deviceMTU(candidates)
	narrow(candidates, mtu4, mtu6)
	k.passable(candidates)
	same := reflect.DeepEqual(candidates, k.candidates) && reflect.DeepEqual(owned, k.prefixes)
	k.prefixes, k.candidates = owned, candidates
	if !same {
		k.machine.Set(candidates, now)
	}
	k.meet(peers, candidates)
	return true
}

// self is this node, as planning needs to know it.
func (k *kernelPaths) self() fastpath.Self {
	s := fastpath.Self{
		ID: uint64(k.n.state.identity.ID), Kinds: k.offered(), Trusted: k.trusted, Plain: k.plain, VNI: k.n.cfg.Kernel.VNI,
		Overlay: k.e.universe.Prefixes(), Route: k.route, Addrs: k.e.where.exit().Addrs,
	}
	for _, a := range k.hosts() {
		s.V4, s.V6 = s.V4 || a.Is4(), s.V6 || a.Is6()
	}
	return s
}

// route is how the kernel reaches an underlay address. Over a family in which this host cannot do VXLAN there is still direct.
func (k *kernelPaths) route(to netip.Addr) (fastpath.Hop, bool) { return k.kernel.Route(to) }

// offered are the kernel paths that this node offers.
func (k *kernelPaths) offered() []fastpath.Kind {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kinds
}

// meet notes whose probes are to be answered.
func (k *kernelPaths) meet(peers []fastpath.Peer, candidates []fastpath.Candidate) {
	known := make(map[uint64]neighbour, len(peers))
	for _, p := range peers {
		known[p.ID] = neighbour{hosts: p.Hosts}
	}
	for _, c := range candidates {
		m := known[c.ID]
		for _, s := range c.AcceptDirect {
			m.devices = append(m.devices, s.Device)
		}
		known[c.ID] = m
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known = known
}

// passable takes out the ways by VXLAN over a family over which this host cannot do it.
func (k *kernelPaths) passable(candidates []fastpath.Candidate) {
	for i := range candidates {
		c := &candidates[i]
		c.Ways = slices.DeleteFunc(c.Ways, func(w fastpath.Way) bool {
			v4 := w.Remote.Addr().Is4()
			no := w.Kind == fastpath.VXLAN && (v4 && !k.vxlan4 || !v4 && !k.vxlan6)
			if no {
				c.Why[fastpath.VXLAN] = fmt.Sprintf("this host cannot do it to %v: see the warnings of weft status", w.Remote.Addr())
			}
			return no
		})
	}
}

// narrow lets no way by VXLAN be wider than its device.
func narrow(candidates []fastpath.Candidate, mtu4, mtu6 int) {
	for _, c := range candidates {
		for i := range c.Ways {
			w := &c.Ways[i]
			switch {
			case w.Kind != fastpath.VXLAN:
			case w.Remote.Addr().Is4():
				w.MTU = min(w.MTU, mtu4)
			default:
				w.MTU = min(w.MTU, mtu6)
			}
		}
	}
}

const keyWants = "paths" // in the store's Host bucket

// loadWants reads what `weft path` was told.
func loadWants(st *store.Store) (map[mesh.NodeID]fastpath.Want, error) {
	wants := map[mesh.NodeID]fastpath.Want{}
	err := st.View(func(tx *store.Tx) error {
		b := tx.Get(store.Host, keyWants)
		if b == nil {
			return nil
		}
		var kept map[mesh.NodeID]string
		if err := json.Unmarshal(b, &kept); err != nil {
			return err
		}
		for id, name := range kept {
			kind, err := fastpath.ParseKind(name)
			if err != nil {
				return err
			}
			wants[id] = fastpath.Want{Forced: true, Kind: kind}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the paths in %s that were chosen by weft path: %w", st.Dir(), err)
	}
	return wants, nil
}

// saveWants keeps it.
func saveWants(st *store.Store, wants map[mesh.NodeID]fastpath.Want) error {
	kept := map[mesh.NodeID]string{}
	for id, w := range wants {
		kept[id] = w.Kind.String()
	}
	b, err := json.Marshal(kept)
	if err != nil {
		return fmt.Errorf("saving which paths were chosen: %w", err)
	}
	return st.Update(func(tx *store.Tx) error { return tx.Put(store.Host, keyWants, b) })
}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/events"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/fastpath/kernel"
)

// The names of the VXLAN devices, by the family of the network below.
const (
	deviceVXLAN4 = "weft-vx4"
	deviceVXLAN6 = "weft-vx6"
)

// deviceMTU is what the VXLAN devices get: what the narrowest link leaves over which one of the candidates is reached, or the way out of this host.
// 0: no device.
func (k *kernelPaths) deviceMTU(candidates []fastpath.Candidate) (mtu4, mtu6 int) {
	if !slices.Contains(k.offered(), fastpath.VXLAN) {
		return 0, 0
	}
	if below := k.e.where.exit().MTU; below > 0 {
		mtu4, mtu6 = below-fastpath.Overhead4, below-fastpath.Overhead6
	}
	for _, c := range candidates {
		w, ok := c.Way(fastpath.VXLAN)
		switch {
		case !ok:
		case w.Remote.Addr().Is4():
			mtu4 = min(cmp.Or(mtu4, w.MTU), w.MTU)
		default:
			mtu6 = min(cmp.Or(mtu6, w.MTU), w.MTU)
		}
	}
	if !k.vxlan4 {
		mtu4 = 0
	}
	if !k.vxlan6 {
		mtu6 = 0
	}
	return mtu4, mtu6
}

// wanted is the desired state: what the kernel should have, and what may enter and leave.
func (k *kernelPaths) wanted() (kernel.Desired, hostnet.Plaintext) {
	hosts := k.hosts()
	d := kernel.Desired{Universe: carried(k.e.universe.Prefixes(), hosts)}
	for _, a := range hosts {
		if a.Is4() {
			d.Source4 = a
		} else {
			d.Source6 = a
		}
	}
	d.MTU4, d.MTU6 = k.deviceMTU(k.candidates)
	p := hostnet.Plaintext{VXLANPort: vxlanPort(k.n.cfg.Port)}
	if d.MTU4 > 0 {
		p.Devices = append(p.Devices, deviceVXLAN4)
	}
	if d.MTU6 > 0 {
		p.Devices = append(p.Devices, deviceVXLAN6)
	}
	for i := range k.candidates {
		c := &k.candidates[i]
		prefixes := carried(k.prefixes[c.ID], hosts)
		if len(prefixes) == 0 {
			continue
		}
		path := k.machine.Status(c.ID).Path
		k.allow(&p, c, path, prefixes)
		if len(c.Ways) == 0 {
			continue
		}
		peer := kernel.Peer{ID: c.ID, Prefixes: prefixes, Path: path}
		for _, w := range c.Ways {
			switch w.Kind {
			case fastpath.VXLAN:
				peer.VXLAN = w.Remote
				for _, a := range w.Probe {
					if a.Is4() {
						peer.Host4 = a
					}
				}
			case fastpath.Direct:
				peer.Device, peer.Hop4, peer.Hop6 = w.Device, w.Hop4, w.Hop6
			}
		}
		d.Peers = append(d.Peers, peer)
	}
	slices.SortFunc(d.Peers, func(a, b kernel.Peer) int { return cmp.Compare(a.ID, b.ID) })
	return d, p
}

// carried are the prefixes of the families in which this host has an address on the overlay.
func carried(prefixes []netip.Prefix, hosts []netip.Addr) (list []netip.Prefix) {
	for _, p := range prefixes {
		if slices.ContainsFunc(hosts, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() }) {
			list = append(list, p)
		}
	}
	return list
}

// allow adds to p what may leave to a candidate, which is reached by path, and come from it. Without a tunnel only what is to go that way may leave
// by a device, as others' routes lead there, too; probes leave by their mark.
func (k *kernelPaths) allow(p *hostnet.Plaintext, c *fastpath.Candidate, path fastpath.Kind, prefixes []netip.Prefix) {
	for _, w := range c.Ways {
		device := w.Device
		switch {
		case w.Kind == fastpath.VXLAN:
			device = vxlanDevice(w.Remote.Addr())
		case path != w.Kind:
			continue
		}
		for _, prefix := range prefixes {
			p.Out = append(p.Out, hostnet.Out{Device: device, Prefix: prefix})
		}
	}
	start := len(p.In)
	for _, a := range c.Accept {
		if !slices.Contains(p.Devices, vxlanDevice(a)) {
			continue // this host cannot do it over that family
		}
		for _, prefix := range prefixes {
			p.Tunnels = append(p.Tunnels, hostnet.Tunnel{Remote: a, Port: k.ports[c.ID], Prefix: prefix})
		}
	}
	for _, s := range c.AcceptDirect {
		mac, ok := k.kernel.Neighbour(s.Device, s.Hop)
		if !ok {
			continue // the kernel tells when it is found, see Watch
		}
		for _, prefix := range prefixes {
			p.In = addIn(p.In, start, hostnet.In{Device: s.Device, MAC: mac, Prefix: prefix})
		}
	}
}

// addIn appends in, unless it is there already: not before start, where those of the same peer begin.
func addIn(list []hostnet.In, start int, in hostnet.In) []hostnet.In {
	for _, x := range list[start:] {
		if x.Prefix == in.Prefix && x.Device == in.Device && slices.Equal(x.MAC, in.MAC) {
			return list
		}
	}
	return append(list, in)
}

func vxlanDevice(remote netip.Addr) string {
	if remote.Is4() {
		return deviceVXLAN4
	}
	return deviceVXLAN6
}

// carryOut puts the desired state in place, if it is another one than before: the rules as wide as the old and the new routes need first, then the
// routes, then the rules for the new ones alone. Where rules are refused no route leads: who would be reached there goes by the router meanwhile.
func (k *kernelPaths) carryOut() {
	d, p := k.wanted()
	k.lostRules()
	narrower := !reflect.DeepEqual(p, k.rules)
	if !narrower && reflect.DeepEqual(d, k.desired) && k.failed == "" {
		k.serveBypass() // tunnels may leave by another device now
		return
	}
	defer k.pauseBypass()()
	var refused error
	set := func(p hostnet.Plaintext) {
		if err := k.e.workloads.setPlain(p, loose(k.candidates)); err != nil {
			refused = err
			k.lostRules()
			d = within(d, k.rules)
			return
		}
		k.rules = p
	}
	if narrower {
		set(union(k.rules, p))
	}
	err := k.kernel.Apply(d)
	k.desired = d
	if narrower {
		set(p) // also if not all routes are as they should be: what is lost then is better lost
		if !reflect.DeepEqual(d, k.desired) {
			err = errors.Join(err, k.kernel.Apply(d))
			k.desired = d
		}
	}
	k.serveBypass()
	k.short = refused != nil
	k.fail(errors.Join(refused, err))
}

// lostRules notes if what was refused has cost the rules that were in place.
func (k *kernelPaths) lostRules() {
	if !k.e.workloads.host.Passes() {
		k.rules = hostnet.Plaintext{}
	}
}

// within lets those peers be reached by the router whose packets the rules do not let leave.
func within(d kernel.Desired, rules hostnet.Plaintext) kernel.Desired {
	out := make(map[hostnet.Out]bool, len(rules.Out))
	for _, o := range rules.Out {
		out[o] = true
	}
	d.Peers = slices.Clone(d.Peers)
	for i := range d.Peers {
		p := &d.Peers[i]
		device := p.Device
		if p.Path == fastpath.VXLAN {
			device = vxlanDevice(p.VXLAN.Addr())
		}
		if p.Path != fastpath.UDP && slices.ContainsFunc(p.Prefixes, func(x netip.Prefix) bool { return !out[hostnet.Out{Device: device, Prefix: x}] }) {
			p.Path = fastpath.UDP
		}
	}
	return d
}

// union allows what either of two allows.
func union(a, b hostnet.Plaintext) hostnet.Plaintext {
	u := b
	u.Devices = unite(a.Devices, b.Devices, strings.Compare)
	u.Out = unite(a.Out, b.Out, func(x, y hostnet.Out) int {
		return cmp.Or(strings.Compare(x.Device, y.Device), x.Prefix.Compare(y.Prefix))
	})
	u.In = unite(a.In, b.In, func(x, y hostnet.In) int {
		return cmp.Or(strings.Compare(x.Device, y.Device), slices.Compare(x.MAC, y.MAC), x.Prefix.Compare(y.Prefix))
	})
	u.Tunnels = unite(a.Tunnels, b.Tunnels, func(x, y hostnet.Tunnel) int {
		return cmp.Or(x.Remote.Compare(y.Remote), cmp.Compare(x.Port, y.Port), x.Prefix.Compare(y.Prefix))
	})
	return u
}

func unite[T any](a, b []T, compare func(T, T) int) []T {
	u := slices.SortedFunc(func(yield func(T) bool) {
		for _, x := range slices.Concat(a, b) {
			if !yield(x) {
				return
			}
		}
	}, compare)
	return slices.CompactFunc(u, func(x, y T) bool { return compare(x, y) == 0 })
}

// loose are the devices by which packets come in whose senders the kernel would route another way.
func loose(candidates []fastpath.Candidate) []string {
	var devices []string
	for _, c := range candidates {
		for _, s := range c.AcceptDirect {
			if !slices.Contains(devices, s.Device) {
				devices = append(devices, s.Device)
			}
		}
	}
	slices.Sort(devices)
	return devices
}

// mend puts right what somebody else has changed, and tells it.
func (k *kernelPaths) mend() {
	repaired, err := k.kernel.Reconcile()
	k.n.noteRepaired(repaired)
	k.fail(err)
	if k.failed == "" {
		k.carryOut()
	}
}

// noteRepaired makes events of what was put right. What was decided by what it was meanwhile counts no more.
func (n *Node) noteRepaired(repaired []string) {
	if len(repaired) > 0 {
		n.flows.forget()
	}
	var list []events.Event
	for _, what := range repaired {
		n.log.Warn("put right what somebody else has changed", zap.String("what", what))
		list = append(list, events.Event{
			Kind: events.Path, Node: n.cfg.Name, NodeID: n.state.identity.ID.String(), Text: what, Cause: "somebody else has changed what is Weft's on this host",
		})
	}
	n.history.log.Add(crowded(list)...)
}

// crowded makes one event of very many.
func crowded(list []events.Event) []events.Event {
	if len(list) <= flock {
		return list
	}
	last := list[flock-1]
	last.Text = fmt.Sprintf("%s, and %d more", last.Text, len(list)-flock)
	return append(list[:flock-1:flock-1], last)
}

// tell makes events of changes of paths.
func (k *kernelPaths) tell(switched []fastpath.Action) {
	var list []events.Event
	for _, a := range switched {
		name := cmp.Or(k.names[a.ID], mesh.NodeID(a.ID).String())
		list = append(list, events.Event{
			Kind: events.Path, Node: name, NodeID: mesh.NodeID(a.ID).String(), Text: name + " is reached by " + k.wayTo(a.ID, a.Way), Cause: a.Why,
		})
		k.log.Info("path changed", zap.String("node", name), zap.Stringer("from", a.From), zap.Stringer("to", a.Way), zap.String("why", a.Why))
	}
	k.n.history.log.Add(gather(list)...)
}

// wayTo names a way to a node.
func (k *kernelPaths) wayTo(id uint64, kind fastpath.Kind) string {
	for i := range k.candidates {
		if w, ok := k.candidates[i].Way(kind); ok && k.candidates[i].ID == id {
			return w.String()
		}
	}
	return kind.String()
}

// count finds out to whom packets go, by which path ever.
func (k *kernelPaths) count(now time.Time) {
	traffic, err := k.e.workloads.host.Traffic()
	if err != nil {
		k.log.Debug("packets by kernel paths cannot be counted", zap.Error(err))
	}
	for id, prefixes := range k.prefixes {
		for _, p := range prefixes {
			if n := traffic[p]; n != k.counted[p] && n > 0 { // a count that has ended is no packet
				k.machine.Active(id, now)
			}
		}
	}
	k.counted = traffic
	ids := nodesByKey(k.e.mesh.Nodes())
	sealed := map[uint64]uint64{}
	for _, s := range k.e.plane.PeerStats() {
		id := uint64(ids[s.Key])
		sealed[id] = s.TxPackets
		if before, known := k.sealed[id]; known && before != s.TxPackets {
			k.machine.Active(id, now)
		}
	}
	k.sealed = sealed
}

// oneLine makes any error one line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

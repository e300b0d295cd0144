// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// Bytes of an outer packet around the inner one in VXLAN: the IP header, UDP and VXLAN headers of 8 bytes each, and the inner
// Ethernet header (RFC 7348 §5).
const (
	Overhead4 = 20 + 8 + 8 + 14
	Overhead6 = 40 + 8 + 8 + 14
)

// The smallest MTUs that IPv6 (RFC 8200 §5) and IPv4 (RFC 791 §3.1, what every host takes) can do with.
const (
	minMTU6 = 1280
	minMTU4 = 576
)

// Self is this node, as far as planning needs to know.
type Self struct {
	ID      uint64
	Kinds   []Kind         // that are allowed and that this host can do
	Trusted []netip.Prefix // underlay
	Plain   bool           // the mesh was founded without encryption: everybody trusts everybody
	VNI     uint32
	V4, V6  bool // families of the overlay
	// Addrs are its addresses of the underlay, of its record. Those by which it reaches its peers need not be among them.
	Addrs []netip.Addr
	// Overlay are the ranges of the overlay, of which no address is one of the underlay.
	Overlay []netip.Prefix
	// Route tells how the kernel reaches an underlay address; false: not.
	Route func(to netip.Addr) (Hop, bool)
}

// Peer is another node.
type Peer struct {
	ID        uint64
	Name      string
	Current   netip.AddrPort   // where it is reached directly now; zero: it is not
	Endpoints []netip.AddrPort // of its record
	Trusted   []netip.Prefix   // of its record
	Kinds     []Kind           // that it offers
	VNI       uint32
	VXLANPort uint16
	Hosts     []netip.Addr // its own addresses on the overlay, at most one of each family
	Want      Want
	// MTU is the largest packet in bytes that its workloads take, which is not that of the TUN device; 0: not known. A way is
	// not wider than that.
	MTU int
	// Unused tells that no kernel path to it is in use, so that addresses need not be those that were chosen before.
	Unused bool
}

// Want is what the user wants of a peer. The zero value is the best.
type Want struct {
	Forced bool
	Kind   Kind // if Forced
}

// Candidate is what can be tried to reach a peer.
type Candidate struct {
	ID   uint64
	Want Want
	Ways []Way // best first, one of each kind at most
	// Accept are the outer sources by which its packets may come, by VXLAN, and AcceptDirect where they may come from without a
	// tunnel. They hold whatever way is used, and without any, as it is for the peer to choose how it sends.
	Accept       []netip.Addr
	AcceptDirect []Segment
	// Why says in one line why there is no way of a kind. It has an entry for each of Direct and VXLAN of which there is none.
	Why map[Kind]string
}

// Way returns the way of a kind.
func (c *Candidate) Way(k Kind) (Way, bool) {
	for _, w := range c.Ways {
		if w.Kind == k {
			return w, true
		}
	}
	return Way{}, false
}

// Way is a kernel path to a peer.
type Way struct {
	Kind       Kind
	Remote     netip.AddrPort // of VXLAN
	Link       string         // of VXLAN: the device of this host by which it leaves
	Device     string         // of Direct
	Hop4, Hop6 netip.Addr     // of Direct: next hops of packets of each family of the overlay; Hop4 may be v6
	MTU        int            // largest inner packet in bytes
	Probe      []netip.Addr   // overlay addresses of the peer, one of each family of the overlay, v4 first
}

// String says where it leads.
func (w Way) String() string {
	switch w.Kind {
	case VXLAN:
		return "vxlan to " + w.Remote.String()
	case Direct:
		hop := w.Hop4
		if !hop.IsValid() {
			hop = w.Hop6
		}
		return fmt.Sprintf("direct to %v on %s", hop, w.Device)
	}
	return w.Kind.String()
}

// same tells whether packets go the same way by both, however large they may be.
func (w Way) same(o Way) bool {
	return w.Kind == o.Kind && w.Remote == o.Remote && w.Device == o.Device && w.Hop4 == o.Hop4 && w.Hop6 == o.Hop6
}

// Segment is a neighbour on a network of this host.
type Segment struct {
	Device string
	Hop    netip.Addr // its address there; the hardware address is looked up
}

// MAC returns the hardware address of a node's end of VXLAN: 0x0e, which says that it is administered locally, and the low five bytes of its ID.
func MAC(id uint64) [6]byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], id)
	return [6]byte{0x0e, b[3], b[4], b[5], b[6], b[7]}
}

// Plan says by which ways each peer may be reached: by those that both sides have consented to, offer, and can use. before is what it returned last;
// what was chosen then stays as long as it is possible, unless the peer is Unused. The candidates are in the order of their IDs, one for each peer. It keeps
// nothing of what it is given. Route is called at most once for each address.
func Plan(s Self, peers []Peer, before []Candidate) []Candidate {
	pl := planner{self: s, routes: map[netip.Addr]route{}}
	old := make(map[uint64]*Candidate, len(before))
	for i := range before {
		old[before[i].ID] = &before[i]
	}
	macs := map[[6]byte]string{MAC(s.ID): "this node"}
	peers = slices.Clone(peers)
	slices.SortFunc(peers, func(a, b Peer) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	all := make([]Candidate, 0, len(peers))
	for i := range peers {
		p := &peers[i]
		last := old[p.ID]
		if last == nil || p.Unused {
			last = new(Candidate)
		}
		all = append(all, pl.candidate(p, last, macs))
	}
	return all
}

// planner is what Plan knows while it works.
type planner struct {
	self   Self
	routes map[netip.Addr]route
}

type route struct {
	hop Hop
	ok  bool
}

// ending is an address of a peer that both sides consent to, and how the kernel reaches it.
type ending struct {
	addr netip.Addr
	hop  Hop
}

// candidate plans for one peer. macs has who has which hardware address.
func (pl *planner) candidate(p *Peer, last *Candidate, macs map[[6]byte]string) Candidate {
	c := Candidate{ID: p.ID, Want: p.Want, Why: map[Kind]string{}}
	addrs := pl.addresses(p)
	ends, unwilling := pl.consented(p, addrs)
	probe, lacking := pl.probes(p)
	for _, k := range []Kind{Direct, VXLAN} {
		if why := pl.offered(k, p); why != "" {
			c.Why[k] = why
			continue
		}
		if pl.believed(p, addrs) {
			pl.accept(&c, k, addrs)
		}
		var w Way
		why := unwilling
		switch {
		case len(ends) == 0:
		case len(probe) == 0:
			why = lacking
		case k == Direct:
			w, why = pl.direct(p, ends, last)
		default:
			w, why = pl.vxlan(p, ends, last, macs)
		}
		if why != "" {
			c.Why[k] = why
			continue
		}
		if p.MTU > 0 {
			w.MTU = min(w.MTU, p.MTU)
		}
		w.Probe = probe
		c.Ways = append(c.Ways, w)
	}
	return c
}

// offered returns why two nodes do not both do a kind, "" if they do.
func (pl *planner) offered(k Kind, p *Peer) string {
	switch {
	case !slices.Contains(pl.self.Kinds, k):
		return fmt.Sprintf("this node does not offer %v: --paths excludes it, or this host cannot do it", k)
	case !slices.Contains(p.Kinds, k) && len(p.Trusted) == 0 && !pl.self.Plain:
		return p.Name + " trusts no subnet: see its --trusted-subnets"
	case !slices.Contains(p.Kinds, k):
		return fmt.Sprintf("%s does not offer %v: its --paths excludes it, or its host cannot do it", p.Name, k)
	case k == VXLAN && p.VNI != pl.self.VNI:
		return fmt.Sprintf("%s is on VXLAN network %d and this node on %d: start both with the same --vxlan-vni", p.Name, p.VNI, pl.self.VNI)
	case k == VXLAN && p.VXLANPort == 0:
		return p.Name + " names no port for VXLAN"
	}
	return ""
}

// addresses returns the addresses of the underlay at which a peer may be, each once, the current one first.
func (pl *planner) addresses(p *Peer) []netip.Addr {
	var all []netip.Addr
	for _, e := range p.Endpoints {
		a := e.Addr().Unmap()
		if !pl.underlay(a) || slices.Contains(all, a) {
			continue
		}
		if a == p.Current.Addr().Unmap() {
			all = slices.Insert(all, 0, a)
			continue
		}
		all = append(all, a)
	}
	return all
}

// underlay tells whether an address can be one of a host on the network below.
func (pl *planner) underlay(a netip.Addr) bool {
	return a.IsGlobalUnicast() && a.Zone() == "" && a.Unmap() == a && !within(pl.self.Overlay, a)
}

// trusts tells whether this node trusts an address.
func (pl *planner) trusts(a netip.Addr) bool { return pl.self.Plain || within(pl.self.Trusted, a) }

// trusted tells whether a peer trusts an address.
func (pl *planner) trusted(p *Peer, a netip.Addr) bool { return pl.self.Plain || within(p.Trusted, a) }

// route is Self.Route; of what it finds, only a way by the network below to another host counts.
func (pl *planner) route(to netip.Addr) (Hop, bool) {
	r, known := pl.routes[to]
	if !known {
		r.hop, r.ok = pl.self.Route(to)
		r.hop.Source = r.hop.Source.Unmap()
		r.ok = r.ok && pl.underlay(r.hop.Source) && r.hop.Source != to && r.hop.Device != ""
		pl.routes[to] = r
	}
	return r.hop, r.ok
}

// consented returns the addresses of a peer that both sides consent to, or why there are none.
func (pl *planner) consented(p *Peer, addrs []netip.Addr) (ends []ending, why string) {
	// What was found wrong last, step by step, is said: of an address that comes further than others more is worth knowing.
	step := 0
	wrong := func(n int, format string, args ...any) {
		if n > step {
			step, why = n, fmt.Sprintf(format, args...)
		}
	}
	wrong(1, "no underlay address of %s is known", p.Name)
	for _, a := range addrs {
		if !pl.trusts(a) {
			if len(pl.self.Trusted) == 0 {
				wrong(2, "this node trusts no subnet: see --trusted-subnets")
			} else {
				wrong(2, "%v of %s is in no trusted subnet of this node: see --trusted-subnets", a, p.Name)
			}
			continue
		}
		hop, ok := pl.route(a)
		if !ok {
			wrong(3, "this host has no route to %v of %s", a, p.Name)
			continue
		}
		if !pl.trusted(p, hop.Source) {
			if len(p.Trusted) == 0 {
				wrong(4, "%s trusts no subnet: see its --trusted-subnets", p.Name)
			} else {
				wrong(4, "%s does not trust %v of this node: see its --trusted-subnets", p.Name, hop.Source)
			}
			continue
		}
		ends = append(ends, ending{a, hop})
	}
	return ends, why
}

// believed tells whether a peer trusts some address of this node, by which it may send.
func (pl *planner) believed(p *Peer, addrs []netip.Addr) bool {
	if pl.self.Plain {
		return true
	}
	for _, a := range pl.self.Addrs {
		if a = a.Unmap(); pl.underlay(a) && pl.trusted(p, a) {
			return true
		}
	}
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		hop, ok := Hop{}, pl.trusts(a)
		if ok {
			hop, ok = pl.route(a)
		}
		return ok && pl.trusted(p, hop.Source)
	})
}

// accept notes from where packets of a peer may come by a kind.
func (pl *planner) accept(c *Candidate, k Kind, addrs []netip.Addr) {
	for _, a := range addrs {
		if !pl.trusts(a) {
			continue
		}
		if k == VXLAN {
			c.Accept = append(c.Accept, a)
		} else if hop, ok := pl.route(a); ok && hop.OnLink {
			c.AcceptDirect = append(c.AcceptDirect, Segment{hop.Device, a})
		}
	}
}

// probes returns where probes of a peer go, one address for each family of the overlay, or why that is not possible.
func (pl *planner) probes(p *Peer) (to []netip.Addr, why string) {
	for _, family := range []struct {
		used bool
		name string
		is   func(netip.Addr) bool
	}{{pl.self.V4, "IPv4", netip.Addr.Is4}, {pl.self.V6, "IPv6", netip.Addr.Is6}} {
		if !family.used {
			continue
		}
		i := slices.IndexFunc(p.Hosts, func(a netip.Addr) bool { return family.is(a) && within(pl.self.Overlay, a) })
		if i < 0 {
			return nil, fmt.Sprintf("%s names no %s address of its own on the overlay that could be probed", p.Name, family.name)
		}
		to = append(to, p.Hosts[i])
	}
	return to, ""
}

// vxlan returns the way by VXLAN, or why there is none.
func (pl *planner) vxlan(p *Peer, ends []ending, last *Candidate, macs map[[6]byte]string) (w Way, why string) {
	if old, ok := last.Way(VXLAN); ok {
		ends = preferring(ends, func(e ending) bool { return e.addr == old.Remote.Addr() })
	}
	for _, e := range ends {
		mtu := e.hop.MTU - Overhead4
		if e.addr.Is6() {
			mtu = e.hop.MTU - Overhead6
		}
		if tight := pl.tight(e.hop, mtu); tight != "" {
			why = first(why, tight)
			continue
		}
		mac := MAC(p.ID)
		if other, taken := macs[mac]; taken {
			return Way{}, fmt.Sprintf("%s would have the hardware address %x of %s: reset one of them", p.Name, mac, other)
		}
		macs[mac] = p.Name
		return Way{Kind: VXLAN, Remote: netip.AddrPortFrom(e.addr, p.VXLANPort), Link: e.hop.Device, MTU: mtu}, ""
	}
	return Way{}, why
}

// direct returns the way without a tunnel, or why there is none.
func (pl *planner) direct(p *Peer, ends []ending, last *Candidate) (w Way, why string) {
	if old, ok := last.Way(Direct); ok {
		ends = preferring(ends, func(e ending) bool {
			return e.hop.Device == old.Device && (e.addr == old.Hop4 || e.addr == old.Hop6)
		})
	}
	why = fmt.Sprintf("%s is not on a network of this host: a gateway lies between", p.Name)
	near := false
	for _, e := range ends {
		if !e.hop.OnLink {
			continue
		}
		if !near {
			near, why = true, ""
		}
		w := Way{Kind: Direct, Device: e.hop.Device, MTU: e.hop.MTU}
		hop4, hop6 := pl.hops(ends, w.Device)
		if pl.self.V6 && !hop6.IsValid() {
			why = first(why, fmt.Sprintf("%s has no IPv6 address on %s that both trust, to carry IPv6", p.Name, w.Device))
			continue
		}
		if tight := pl.tight(e.hop, w.MTU); tight != "" {
			why = first(why, tight)
			continue
		}
		if pl.self.V4 {
			w.Hop4 = hop4
			if !hop4.IsValid() {
				w.Hop4 = hop6
			}
		}
		if pl.self.V6 {
			w.Hop6 = hop6
		}
		return w, ""
	}
	return Way{}, why
}

// hops returns the first addresses of each family that are neighbours on a device.
func (pl *planner) hops(ends []ending, device string) (hop4, hop6 netip.Addr) {
	for _, e := range ends {
		switch {
		case !e.hop.OnLink || e.hop.Device != device:
		case e.addr.Is4() && !hop4.IsValid():
			hop4 = e.addr
		case e.addr.Is6() && !hop6.IsValid():
			hop6 = e.addr
		}
	}
	return hop4, hop6
}

// tight says why packets of a path are too small for the overlay, "" if they are not.
func (pl *planner) tight(h Hop, mtu int) string {
	least, family := minMTU4, "IPv4"
	if pl.self.V6 {
		least, family = minMTU6, "IPv6"
	}
	if mtu >= least {
		return ""
	}
	return fmt.Sprintf("the MTU of %s, %d, leaves less than the %d bytes that %s needs: raise it to %d", h.Device, h.MTU, least, family, h.MTU+least-mtu)
}

// preferring returns the list with what is meant at the front, in the same order otherwise.
func preferring(ends []ending, meant func(ending) bool) []ending {
	var front, rest []ending
	for _, e := range ends {
		if meant(e) {
			front = append(front, e)
		} else {
			rest = append(rest, e)
		}
	}
	return append(front, rest...)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

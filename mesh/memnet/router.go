// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"net"
	"net/netip"
	"slices"
	"time"
)

// Addr is where a datagram goes to or came from, as mesh.Addr is.
type Addr struct {
	Node uint64         // 0: not known
	Addr netip.AddrPort // not valid: whatever the path of Node says
}

// Member is who stands behind a [Router].
type Member struct {
	Node    uint64
	Port    uint16 // of UDP
	Secret  [32]byte
	NoRelay bool // passes nothing on for others
}

// Router is the part of the real router that the mesh sees: it carries datagrams from
// node to node. Only holders of the same secret hear each other, and a receiver knows which
// node sent. A node is sought where it was heard from last, where the sender of a
// datagram supposes it, and at its host's addresses; where none can be reached directly, and
// there is a [Net.Filter], the datagram goes by as few other routers as possible. Unlike the
// real one it knows at once what works.
type Router struct {
	Member
	host    *Host
	receive func(b []byte, from Addr, at time.Time)
	open    bool // guarded by Net.mu, as all below
	paths   map[uint64]netip.AddrPort
	accept  [][32]byte // secrets besides Member.Secret
}

// SetSecrets makes the router send under the first secret and hear those who send under any.
func (r *Router) SetSecrets(secrets ...[32]byte) {
	r.host.net.mu.Lock()
	defer r.host.net.mu.Unlock()
	r.Secret, r.accept = secrets[0], secrets[1:]
}

// hears tells whether r opens what was sent under a secret. Called with mu held.
func (r *Router) hears(secret [32]byte) bool {
	return r.Secret == secret || slices.Contains(r.accept, secret)
}

// Router opens m's port on the host, of which there must be none yet, and has receive called
// with every datagram that comes in for it. receive owns b and is called from many goroutines.
func (h *Host) Router(m Member, receive func(b []byte, from Addr, at time.Time)) *Router {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	r := &Router{Member: m, host: h, receive: receive, open: true, paths: make(map[uint64]netip.AddrPort)}
	if h.routers[m.Port] != nil {
		panic("memnet: the UDP port is taken")
	}
	h.routers[m.Port] = r
	n.routers[m.Node] = append(n.routers[m.Node], r)
	return r
}

// Close closes the port; a second time it does nothing.
func (r *Router) Close() error {
	n := r.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.open {
		r.open = false
		delete(r.host.routers, r.Port)
		n.routers[r.Node] = slices.DeleteFunc(n.routers[r.Node], func(o *Router) bool { return o == r })
	}
	return nil
}

// SendControl sends a datagram. It does not keep b.
func (r *Router) SendControl(b []byte, to Addr) error {
	n := r.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if !r.open {
		return net.ErrClosed
	}
	hops, at, err := n.route(r, to)
	if err != nil {
		return err
	}
	if n.tap != nil {
		src, _ := r.host.source(at.Addr()) // not valid if there is no way
		n.tap("udp", netip.AddrPortFrom(src, r.Port), at, b)
	}
	if hops == nil {
		return nil // nobody is there
	}
	copies := 1
	if n.rng.Float64() < n.dup {
		copies = 2
	}
	for range copies {
		var d time.Duration
		lost := false
		for range hops {
			lost = lost || n.rng.Float64() < n.loss
			d += n.delay()
		}
		if !lost {
			c := append([]byte(nil), b...)
			time.AfterFunc(d, func() { n.arrive(c, r, hops, at) })
		}
	}
	return nil
}

// route returns the routers on the way to a node or an address, the last one is the destination;
// nil: there is none. at is where the datagram goes first. Called with mu held.
func (n *Net) route(r *Router, to Addr) (hops []*Router, at netip.AddrPort, err error) {
	try := []netip.AddrPort{to.Addr}
	if to.Node != 0 {
		try = []netip.AddrPort{r.paths[to.Node], to.Addr}
		if o := n.first(to.Node); o != nil {
			for _, a := range o.host.addrs {
				try = append(try, netip.AddrPortFrom(a, o.Port))
			}
		}
	}
	for _, a := range try {
		if !a.IsValid() {
			continue
		}
		src, serr := r.host.source(a.Addr())
		if serr != nil {
			err = serr
			continue
		}
		if !at.IsValid() {
			at = a
		}
		d := n.routerAt(a)
		if ok, _ := n.reach("udp", src, a.Addr()); ok && d != nil && (to.Node == 0 || d.Node == to.Node) {
			return []*Router{d}, a, nil
		}
	}
	if o := n.first(to.Node); o != nil && n.filter != nil {
		if hops := n.relays(r, o); hops != nil {
			return hops, n.addrTowards(r, hops[0]), nil
		}
	}
	if at.IsValid() {
		err = nil
	}
	return nil, at, err
}

// first returns the node's router, of several (copies) the first: so the node's record would have it.
func (n *Net) first(node uint64) *Router {
	if rs := n.routers[node]; node != 0 && len(rs) > 0 {
		return rs[0]
	}
	return nil
}

func (n *Net) routerAt(a netip.AddrPort) *Router {
	if h := n.hosts[a.Addr()]; h != nil {
		return h.routers[a.Port()]
	}
	return nil
}

// addrTowards returns the address at which a reaches b directly; not valid: it does not.
// Called with mu held.
func (n *Net) addrTowards(a, b *Router) netip.AddrPort {
	for _, addr := range b.host.addrs {
		if src, err := a.host.source(addr); err == nil {
			if ok, _ := n.reach("udp", src, addr); ok {
				return netip.AddrPortFrom(addr, b.Port)
			}
		}
	}
	return netip.AddrPort{}
}

// relays searches the shortest way by other routers. Called with mu held.
func (n *Net) relays(from, to *Router) []*Router {
	before := map[*Router]*Router{from: nil}
	for queue := []*Router{from}; len(queue) > 0; queue = queue[1:] {
		r := queue[0]
		if r == to {
			var hops []*Router
			for ; r != from; r = before[r] {
				hops = append(hops, r)
			}
			slices.Reverse(hops)
			return hops
		}
		if r != from && r.NoRelay {
			continue
		}
		var next []*Router
		for _, os := range n.routers {
			for _, o := range os {
				if _, seen := before[o]; !seen && o.hears(from.Secret) && n.addrTowards(r, o).IsValid() {
					before[o] = r
					next = append(next, o)
				}
			}
		}
		slices.SortFunc(next, func(a, b *Router) int { return a.host.addrs[0].Compare(b.host.addrs[0]) })
		queue = append(queue, next...)
	}
	return nil
}

// arrive hands a datagram over that went to at first, unless the way is closed by now.
func (n *Net) arrive(b []byte, from *Router, hops []*Router, at netip.AddrPort) {
	n.mu.Lock()
	source, err := from.host.source(at.Addr())
	ok := err == nil
	if ok {
		ok, _ = n.reach("udp", source, at.Addr())
	}
	last := hops[len(hops)-1]
	for i, h := range hops {
		ok = ok && h.open && h.hears(from.Secret) && (i == 0 || n.addrTowards(hops[i-1], h).IsValid())
	}
	a := Addr{Node: from.Node}
	if len(hops) == 1 {
		a.Addr = netip.AddrPortFrom(source, from.Port)
		switch {
		case !ok || a.Node == 0:
		case n.first(a.Node) == from && len(n.routers[a.Node]) == 1 && source == from.host.addrs[0]:
			delete(last.paths, a.Node) // it is sought there anyway
		default:
			last.paths[a.Node] = a.Addr
		}
	}
	if ok && last.host.still {
		if h := last.host; len(h.held) < maxHeld {
			h.held = append(h.held, func() { last.receive(b, a, time.Now()) })
		}
		ok = false
	}
	n.mu.Unlock()
	if ok {
		last.receive(b, a, time.Now())
	}
}

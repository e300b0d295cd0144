// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"net"
	"net/netip"
	"slices"
	"sync"
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
	open    bool       // guarded by Net.mu, as the next
	accept  [][32]byte // secrets besides Member.Secret

	finding sync.Mutex // a leaf, guards paths
	paths   map[uint64]netip.AddrPort
}

// journey is how a datagram travels.
type journey struct {
	by  *Router        // who sent it
	to  *Router        // nil: nobody is there
	via []*Router      // those that it goes by, and to behind them; nil: directly
	at  netip.AddrPort // where it goes first
}

// SetSecrets makes the router send under the first secret and hear those who send under any.
func (r *Router) SetSecrets(secrets ...[32]byte) {
	r.host.net.mu.Lock()
	defer r.host.net.mu.Unlock()
	r.Secret, r.accept = secrets[0], secrets[1:]
}

// hears tells whether r opens what was sent under a secret. Called with mu held, if only for reading.
func (r *Router) hears(secret [32]byte) bool {
	return r.Secret == secret || slices.Contains(r.accept, secret)
}

// Router opens m's port on the host, of which there must be none yet, and has receive called
// with every datagram that comes in for it. receive must not keep b and is called from many goroutines.
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
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !r.open {
		return net.ErrClosed
	}
	j, err := n.route(r, to)
	if err != nil {
		return err
	}
	if n.tap != nil {
		src, _ := r.host.source(j.at.Addr()) // not valid if there is no way
		n.tap("udp", netip.AddrPortFrom(src, r.Port), j.at, b)
	}
	if j.to == nil {
		return nil
	}
	copies := 1
	if n.happens(n.dup) {
		copies = 2
	}
	for range copies {
		var d time.Duration
		lost := false
		for range max(1, len(j.via)) {
			lost = lost || n.happens(n.loss)
			d += n.delay()
		}
		switch {
		case lost:
		case n.step > 0:
			n.ticks.send(b, j, d, n.step)
		default:
			c := append([]byte(nil), b...)
			time.AfterFunc(d, func() { j.arrive(c) })
		}
	}
	return nil
}

// route returns the way to a node or an address. Called with mu held, if only for reading.
func (n *Net) route(r *Router, to Addr) (j journey, err error) {
	j.by = r
	var room [4]netip.AddrPort
	try := append(room[:0], to.Addr)
	if to.Node != 0 {
		try = append(room[:0], r.path(to.Node), to.Addr)
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
		if !j.at.IsValid() {
			j.at = a
		}
		d := n.routerAt(a)
		if ok, _ := n.reach("udp", src, a.Addr()); ok && d != nil && (to.Node == 0 || d.Node == to.Node) {
			j.to, j.at = d, a
			return j, nil
		}
	}
	if o := n.first(to.Node); o != nil && n.filter != nil {
		if hops := n.relays(r, o); hops != nil {
			j.to, j.via, j.at = o, hops, n.addrTowards(r, hops[0])
			return j, nil
		}
	}
	if j.at.IsValid() {
		err = nil
	}
	return j, err
}

// path returns where a node was heard from last, if it is not where it is sought anyway.
func (r *Router) path(node uint64) netip.AddrPort {
	r.finding.Lock()
	defer r.finding.Unlock()
	return r.paths[node]
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
// Called with mu held, if only for reading.
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

// relays searches the shortest way by other routers. Called with mu held, if only for reading.
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

// arrive hands a datagram over, unless the way is closed by now.
func (j *journey) arrive(b []byte) {
	n, last := j.by.host.net, j.to
	n.mu.RLock()
	source, err := j.by.host.source(j.at.Addr())
	ok := err == nil
	if ok {
		ok, _ = n.reach("udp", source, j.at.Addr())
	}
	ok = ok && last.open && last.hears(j.by.Secret)
	for i, h := range j.via {
		ok = ok && h.open && h.hears(j.by.Secret) && (i == 0 || n.addrTowards(j.via[i-1], h).IsValid())
	}
	a := Addr{Node: j.by.Node}
	if len(j.via) <= 1 {
		a.Addr = netip.AddrPortFrom(source, j.by.Port)
		if ok && a.Node != 0 {
			sought := n.first(a.Node) == j.by && len(n.routers[a.Node]) == 1 && source == j.by.host.addrs[0]
			last.learn(a, sought)
		}
	}
	still := last.host.still
	n.mu.RUnlock()
	switch {
	case ok && still:
		last.host.hold(b, func(b []byte) { last.receive(b, a, time.Now()) })
	case ok:
		last.receive(b, a, time.Now())
	}
}

// learn notes where a node was heard from; sought: that is where it is sought anyway.
func (r *Router) learn(from Addr, sought bool) {
	r.finding.Lock()
	defer r.finding.Unlock()
	if sought {
		delete(r.paths, from.Node)
	} else {
		r.paths[from.Node] = from.Addr
	}
}

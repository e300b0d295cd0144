// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weftnet/weft/router/pathmtu"
	"github.com/weftnet/weft/router/relay"
	"github.com/weftnet/weft/router/route"
	"github.com/weftnet/weft/router/session"
)

// Peer is what shall be true of one peer.
type Peer struct {
	// Key identifies the peer. Two entries with one key are an error.
	Key session.PublicKey
	// ID names the peer as a node of the mesh; 0: it is none. Two peers with one are an error.
	ID uint64
	// Boot is the number of the process that the node runs as; another one means that it was started anew.
	Boot uint64
	// Links are the nodes that the peer reaches directly, as it says itself: by them it can be reached, too.
	Links []uint64
	// NoRelay tells that the peer does not pass on what is not for it.
	NoRelay bool
	// Name is for people; it need not be unique.
	Name string
	// Endpoints are addresses where the peer may be found, best first. They are tried in turn, one
	// for each attempt at a handshake, until the peer has shown where it is. None: wait for it to call.
	Endpoints []netip.AddrPort
	// Suite is the cryptography in which we begin handshakes.
	Suite session.Suite
	// Prefixes are the addresses that belong to the peer. No two peers may have the same one; they may nest.
	Prefixes []netip.Prefix
	// MTU is the largest inner packet for the peer in bytes; 0, or more than our own, means our own. Where probes find that the
	// path is narrower, that goes.
	MTU int
	// External makes the peer no node of the mesh but a WireGuard client whose only way into it is this host; see external.go.
	// It gets no probes.
	External bool
	// Keys are the pre-shared keys that a node of the mesh may have, of those that we have; see preshared.go. None: Config.Preshared.
	Keys []session.PresharedKey
	// Preshared is what an external peer has in place of Config.Preshared; other peers have none of their own.
	Preshared session.PresharedKey
	// NoProbes tells that the peer does not know the probes of Weft, as a stock WireGuard: it is sent what MTU says, and the network
	// may fragment it.
	NoProbes bool
}

// snapshot is what the shards know: built as a whole, never changed.
type snapshot struct {
	routes    *route.Table[*peer] // destination -> owner; the owner self is this host
	bySession map[*session.Peer]*peer
	byKey     map[session.PublicKey]*peer
	byID      map[uint64]*peer // nodes of the mesh
	peers     []*peer          // in the order of SetPeers
	local     Local
}

// self owns the prefixes of this host in a route table. It has no session.
var self = new(peer)

// SetPeers makes the given peers the only ones. Peers that stay, by key, suite and kind, keep their sessions,
// their counters and the endpoint that they were last heard from; others lose theirs at once. Nothing
// of the slice is kept. On error nothing has changed; it names the peer or prefix that is wrong.
func (r *Router) SetPeers(peers []Peer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	desired := make([]Peer, len(peers))
	for i, p := range peers {
		p.Endpoints = cleanEndpoints(p.Endpoints)
		p.Prefixes, p.Keys = slices.Clone(p.Prefixes), slices.Clone(p.Keys)
		desired[i] = p
	}
	old := r.current.Load()
	next := &snapshot{
		bySession: make(map[*session.Peer]*peer, len(desired)),
		byKey:     make(map[session.PublicKey]*peer, len(desired)),
		byID:      make(map[uint64]*peer, len(desired)),
		local:     old.local,
	}
	var added, replaced []*peer
	for i := range desired {
		d := &desired[i]
		if next.byKey[d.Key] != nil {
			return fmt.Errorf("peer %s (%s) is given twice", d.Name, d.Key)
		}
		if err := r.checkExternal(d); err != nil {
			return err
		}
		p := old.byKey[d.Key]
		switch {
		case p == nil:
			p = &peer{key: d.Key, external: d.External}
			added = append(added, p)
		case p.config.Load().Suite != d.Suite || p.external != d.External || p.config.Load().Preshared != d.Preshared:
			if !d.Suite.Valid() {
				return fmt.Errorf("peer %s: unknown %s", d.Name, d.Suite)
			}
			heard := p.endpoint.Load()
			p = &peer{key: d.Key, external: d.External}
			p.endpoint.Store(heard)
			p.course.way.Store(old.byKey[d.Key].course.way.Load())
			p.course.proven.Store(old.byKey[d.Key].course.proven.Load())
			replaced = append(replaced, p)
		}
		if d.ID != 0 {
			if d.External {
				return fmt.Errorf("external peer %s: it is no node and has no ID", d.Name)
			}
			if next.byID[d.ID] != nil {
				return fmt.Errorf("peer %s: its ID %016x is also that of another peer", d.Name, d.ID)
			}
			next.byID[d.ID] = p
		}
		next.byKey[d.Key] = p
		next.peers = append(next.peers, p)
	}
	var err error
	if next.routes, err = buildRoutes(desired, next); err != nil {
		return err
	}
	if err := r.admit(desired, added, next); err != nil {
		r.forget(added)
		return err
	}
	// From here on nothing fails: the keys of those replaced have been admitted before.
	for _, p := range replaced {
		r.machine.RemovePeer(old.byKey[p.key].sess)
	}
	if err := r.admit(desired, replaced, next); err != nil {
		return err
	}
	for i, p := range next.peers {
		r.rekey(p, p.config.Swap(&desired[i]), &desired[i])
		next.bySession[p.sess] = p
	}
	r.desired = desired
	r.current.Store(next)
	r.endpoints.rebuild(next.peers)
	r.forget(slices.DeleteFunc(slices.Clone(old.peers), func(p *peer) bool { return next.bySession[p.sess] != nil }))
	r.reaching.set(desired, r.config.Now())
	r.welcome(added)
	return nil
}

// admit opens the sessions of peers that are new in next.
func (r *Router) admit(desired []Peer, peers []*peer, next *snapshot) error {
	wanted := make(map[*peer]bool, len(peers))
	for _, p := range peers {
		wanted[p] = true
	}
	for i, p := range next.peers {
		if !wanted[p] {
			continue
		}
		d := &desired[i]
		sess, err := r.machine.AddPeer(r.sessionOf(d))
		if err != nil {
			return fmt.Errorf("peer %s: %w", d.Name, err)
		}
		p.sess = sess
	}
	return nil
}

// forget ends what the peers had. They are no longer, or were never, in the snapshot.
func (r *Router) forget(peers []*peer) {
	for _, p := range peers {
		p.removed.Store(true)
		if p.sess != nil {
			r.machine.RemovePeer(p.sess)
		}
		p.pending.clear()
	}
}

// welcome calls those new peers that have knocked in vain a short while ago, when we did not yet
// know them: they would try again only after session.RekeyTimeout.
func (r *Router) welcome(added []*peer) {
	now := r.config.Now()
	for _, p := range added {
		if slices.ContainsFunc(p.config.Load().Endpoints, func(a netip.AddrPort) bool { return r.suspects.knocked(a.Addr(), now) }) ||
			r.suspects.knocked(knockOf(p.config.Load().ID), now) {
			r.timers.greet(p, now)
		}
	}
}

// SetLocal tells what belongs to this host.
func (r *Router) SetLocal(l Local) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.Prefixes = slices.Clone(l.Prefixes)
	if l.MTU <= 0 || l.MTU > MaxMTU {
		l.MTU = MaxMTU
	}
	next := *r.current.Load()
	next.local = l
	routes, err := buildRoutes(r.desired, &next)
	if err != nil {
		// SetPeers has accepted these peers, and prefixes of this host make no error.
		r.config.Log.Error("routes could not be rebuilt: " + err.Error())
		return
	}
	next.routes = routes
	r.current.Store(&next)
}

// buildRoutes makes the table for the peers of s, which desired describes, and the local prefixes of s.
func buildRoutes(desired []Peer, s *snapshot) (*route.Table[*peer], error) {
	own := make(map[netip.Prefix]bool, len(s.local.Prefixes))
	lent := lentPrefixes(desired)
	var entries []route.Entry[*peer]
	for _, p := range s.local.Prefixes {
		if p, ok := route.Canonical(p); ok && !own[p] && !lent[p] {
			own[p] = true
			entries = append(entries, route.Entry[*peer]{Prefix: p, Value: self})
		}
	}
	owner := make(map[netip.Prefix]string)
	for _, d := range desired {
		for _, raw := range d.Prefixes {
			p, ok := route.Canonical(raw)
			if !ok {
				return nil, fmt.Errorf("peer %s: %v is not a valid prefix", d.Name, raw)
			}
			if other, dup := owner[p]; dup {
				return nil, fmt.Errorf("prefix %v is claimed by both %s and %s", p, other, d.Name)
			}
			owner[p] = d.Name
			if !own[p] {
				entries = append(entries, route.Entry[*peer]{Prefix: p, Value: s.byKey[d.Key]})
			}
		}
	}
	return route.New(entries)
}

// cleanEndpoints returns the usable ones of a list, each once, IPv4 unmapped.
func cleanEndpoints(list []netip.AddrPort) []netip.AddrPort {
	var clean []netip.AddrPort
	for _, a := range list {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if a.IsValid() && a.Port() != 0 && !a.Addr().IsUnspecified() && !slices.Contains(clean, a) {
			clean = append(clean, a)
		}
	}
	return clean
}

// mtuTo returns the largest inner packet that reaches p, as far as is known.
func (s *snapshot) mtuTo(p *peer) int {
	most := s.mostTo(p)
	if known := p.path.sizes().mtu; known > 0 && known < most {
		return known
	}
	return most
}

// mostTo returns the largest inner packet that p may be sent by its present way. In a frame there is less room for it; how much a frame
// may have is what the first relay may be sent, and no more than any of the others may be sent by anybody.
func (s *snapshot) mostTo(p *peer) int {
	most := s.maxTo(p)
	w := p.relayed()
	if w == nil {
		return most
	}
	frame := s.local.MTU
	for i, id := range w.Relays[:w.N] {
		switch hop := s.byID[id]; {
		case hop == nil:
		case i == 0 && hop.relayed() == nil:
			frame = min(frame, s.mtuTo(hop))
		default:
			frame = min(frame, s.maxTo(hop))
		}
	}
	return min(most, max(relay.MTU(frame, int(w.N), session.Overhead), pathmtu.Floor))
}

// maxTo returns the largest inner packet that p may be sent, whatever the way.
func (s *snapshot) maxTo(p *peer) int {
	if mtu := p.config.Load().MTU; mtu > 0 && mtu < s.local.MTU {
		return mtu
	}
	return s.local.MTU
}

// State tells how things stand with a peer.
type State string

// The states.
const (
	Idle        State = "idle"        // no key, and no reason to get one
	Handshaking State = "handshaking" // no key, and trying
	Established State = "established" // there is a key for sending
)

// PeerStats is what there is to tell about a peer.
type PeerStats struct {
	Key       session.PublicKey
	Name      string
	Endpoint  netip.AddrPort // where it was last heard from, or else its first candidate; may be invalid
	Heard     bool           // it was heard from
	Suite     session.Suite  // of the current session, or else that in which we begin
	State     State
	Handshake time.Time // when a key last came into use; zero: never
	// Inner packets and bytes, without padding, since the peer was added.
	RxPackets, RxBytes, TxPackets, TxBytes uint64
	// Relayed is what the peer has handed to this host, and this host has passed on to others.
	Relayed Traffic
	// MTU is the largest inner packet in bytes that the peer can be sent, and Confirmed tells that such a packet passes: a probe
	// of that size has arrived, and none was lost since. Paths are probed while they are used.
	MTU       int
	Confirmed bool
	// LastError is why the last datagram could not be sent or the last handshake failed; empty if
	// a handshake succeeded since.
	LastError string
	// Path is PathUDP, PathRelay or PathNone: how the peer is reached, as far as that is proven. Via are the IDs of the relays in order, RTT is
	// how long a ping and its answer take, 0 if that is not known; Why says in one line, for people, why that is the path, and PathSince since when it
	// is, zero if it always was. Of a peer without an ID only Path is known.
	Path      string
	Via       []uint64
	RTT       time.Duration
	Why       string
	PathSince time.Time
}

// PeerStats returns one entry per peer in the order of SetPeers.
func (r *Router) PeerStats() []PeerStats {
	now := r.config.Now()
	known := r.current.Load()
	var all []PeerStats
	for _, p := range known.peers {
		s := p.stats(now)
		s.MTU, s.Confirmed = known.mtuTo(p), p.path.sizes().confirmed
		r.reaching.explain(&s, p, now)
		all = append(all, s)
	}
	return all
}

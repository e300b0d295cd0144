// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

const (
	// clientOwner begins the owners of clients' addresses; the name follows. No workload's ID begins so.
	clientOwner = "wg:"
	maxClient   = 63 // bytes of a name
	// clientMTU fits, sealed, through every link in use that is not made for IPv4 alone: clients come from networks that
	// nobody here knows.
	clientMTU = 1280
)

// client is a WireGuard client that joins by this node, as it is kept. Its private key is nowhere here.
type client struct {
	Name      string            `json:"name"`
	PublicKey session.PublicKey `json:"publicKey"`
	Preshared []byte            `json:"presharedKey"`
	Created   time.Time         `json:"created"`
	// Endpoint is where it was last heard from: after a restart the node calls it there, as it may not notice by itself for
	// minutes that its session is gone.
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`
}

func (c client) owner() string { return clientOwner + c.Name }

// clients are all of them: in the store, with a lease each, and given to the router by whoever calls peers. Safe for
// concurrent use.
type clients struct {
	st    *store.Store
	alloc *ipam.Allocator
	rand  io.Reader

	changing sync.Mutex // lets one change after the other happen; none of them waits for other nodes

	mu   sync.Mutex
	all  map[string]client
	busy map[string]pending // by name: their addresses are nobody else's business
}

// pending is a client that is being added or removed.
type pending struct {
	client
	cancel context.CancelCauseFunc // makes whoever adds it undo that; nil: it is being removed
	done   chan struct{}           // closed when it is there as a whole, or not at all; nil: it is being removed
}

func loadClients(st *store.Store, alloc *ipam.Allocator, rand io.Reader) (*clients, error) {
	cs := &clients{st: st, alloc: alloc, rand: rand, all: map[string]client{}, busy: map[string]pending{}}
	err := st.View(func(tx *store.Tx) error {
		return tx.Each(store.Clients, func(name string, v []byte) error {
			var c client
			if err := json.Unmarshal(v, &c); err != nil {
				return fmt.Errorf("client %s: %w", name, err)
			}
			if c.Name != name || len(c.Preshared) != session.KeySize {
				return fmt.Errorf("client %s: the entry is malformed", name)
			}
			cs.all[name] = c
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading the WireGuard clients in %s: %w", st.Dir(), err)
	}
	return cs, nil
}

// add makes a client. connect is to give it to the router. On any error nothing of it is left, and so it is if ctx ends before
// add does: who asked is gone then, and with it the private key.
func (cs *clients) add(ctx context.Context, name string, key session.PublicKey, connect func() error) (client, ipam.Lease, error) {
	if err := checkClientName(name); err != nil {
		return client{}, ipam.Lease{}, err
	}
	c := client{Name: name, PublicKey: key, Preshared: make([]byte, session.KeySize), Created: time.Now().UTC()}
	if _, err := io.ReadFull(cs.rand, c.Preshared); err != nil {
		return client{}, ipam.Lease{}, fmt.Errorf("making a pre-shared key: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := pending{client: c, cancel: cancel, done: make(chan struct{})}
	if err := cs.begin(p); err != nil {
		return client{}, ipam.Lease{}, err
	}
	defer close(p.done)
	patient, stop := context.WithTimeout(ctx, attachPatience)
	defer stop()
	lease, err := cs.alloc.Allocate(patient, c.owner()) // may have to ask other nodes
	cs.changing.Lock()
	defer cs.changing.Unlock()
	if err != nil {
		cs.end(name)
		return client{}, ipam.Lease{}, err
	}
	if err := cs.admit(ctx, c, connect); err != nil {
		_, derr := cs.drop(c, connect)
		return client{}, ipam.Lease{}, errors.Join(err, derr)
	}
	cs.end(name)
	return c, lease, nil
}

// admit gives a client that has its addresses to the router and saves it. What it has done is the caller's to undo on an
// error, but for what is saved. cs.changing must be held.
func (cs *clients) admit(ctx context.Context, c client, connect func() error) error {
	if ctx.Err() != nil {
		return notAdded(ctx, c)
	}
	cs.set(c)
	if err := connect(); err != nil {
		return err
	}
	if err := cs.save(c); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return errors.Join(notAdded(ctx, c), cs.erase(c.Name))
	}
	return nil
}

// errRemoved is why a client does not come to be that was removed too soon.
var errRemoved = errors.New("it was removed meanwhile")

func notAdded(ctx context.Context, c client) error {
	return fmt.Errorf("the WireGuard client %s was not added: %w", c.Name, context.Cause(ctx))
}

// begin reserves the name and the key of a new client.
func (cs *clients) begin(c pending) error {
	cs.changing.Lock() // whoever goes has gone then
	defer cs.changing.Unlock()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, other := range cs.known() {
		switch {
		case other.Name == c.Name:
			return fmt.Errorf("there is a WireGuard client %s already; choose another name, or remove that one by: weft wg remove %s", c.Name, c.Name)
		case other.PublicKey == c.PublicKey:
			return fmt.Errorf("public key %v is that of the WireGuard client %s already; every client needs a key of its own", c.PublicKey, other.Name)
		}
	}
	cs.busy[c.Name] = c
	return nil
}

// known are all clients, also those that come or go. cs.mu must be held.
func (cs *clients) known() []client {
	known := slices.Collect(maps.Values(cs.all))
	for name, p := range cs.busy {
		if _, ok := cs.all[name]; !ok {
			known = append(known, p.client)
		}
	}
	slices.SortFunc(known, func(a, b client) int { return strings.Compare(a.Name, b.Name) })
	return known
}

// remove ends a client, also one that is still being added: that is undone when remove returns. connect takes it from the
// router, before its addresses are free. A key that is not zero must be the client's. If the store refuses it is as it was;
// on any other error it is gone from the store, and settle does the rest.
func (cs *clients) remove(name string, key session.PublicKey, connect func() error) (ipam.Lease, error) {
	lease, comes, err := cs.removeNow(name, key, connect)
	if comes != nil {
		<-comes
	}
	return lease, err
}

// removeNow is remove; where it returns a channel the client is gone when that is closed.
func (cs *clients) removeNow(name string, key session.PublicKey, connect func() error) (lease ipam.Lease, comes <-chan struct{}, err error) {
	cs.changing.Lock()
	defer cs.changing.Unlock()
	cs.mu.Lock()
	c, here := cs.all[name]
	p, busy := cs.busy[name]
	cs.mu.Unlock()
	if busy {
		c = p.client
	}
	switch {
	case !here && !busy:
		return lease, nil, fmt.Errorf("there is no WireGuard client %q on this node; see: weft wg list", name)
	case key != (session.PublicKey{}) && key != c.PublicKey:
		return lease, nil, fmt.Errorf("the WireGuard client %s has another key; see: weft wg list", name)
	case busy && p.cancel != nil:
		p.cancel(errRemoved)
		return lease, p.done, nil
	}
	if err := cs.erase(name); err != nil {
		return lease, nil, err
	}
	lease, err = cs.drop(c, connect)
	return lease, nil, err
}

// drop takes a client that is not in the store any more from the router, and then gives its addresses back. What cannot be
// done is left to settle. cs.changing must be held.
func (cs *clients) drop(c client, connect func() error) (ipam.Lease, error) {
	cs.mu.Lock()
	cs.busy[c.Name] = pending{client: c}
	delete(cs.all, c.Name)
	cs.mu.Unlock()
	if err := connect(); err != nil {
		return ipam.Lease{}, fmt.Errorf("the WireGuard client %s is removed, but not cut off yet: %w; that is tried again every second", c.Name, err)
	}
	lease, _ := cs.alloc.Lookup(c.owner())
	err := cs.alloc.Release(c.owner()) // reconcile makes up for it
	cs.end(c.Name)
	return lease, err
}

// settle tries again what drop could not do.
func (cs *clients) settle(connect func() error) error {
	cs.changing.Lock()
	defer cs.changing.Unlock()
	var left []client
	cs.mu.Lock()
	for _, p := range cs.busy {
		if p.cancel == nil {
			left = append(left, p.client)
		}
	}
	cs.mu.Unlock()
	var errs []error
	for _, c := range left {
		_, err := cs.drop(c, connect)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (cs *clients) end(name string) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.busy, name)
}

func (cs *clients) set(c client) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.all[c.Name] = c
}

func (cs *clients) erase(name string) error {
	return cs.st.Update(func(tx *store.Tx) error { return tx.Delete(store.Clients, name) })
}

func (cs *clients) save(all ...client) error {
	return cs.st.Update(func(tx *store.Tx) error {
		for _, c := range all {
			b, err := json.Marshal(c)
			if err != nil {
				return fmt.Errorf("saving the WireGuard client %s: %w", c.Name, err)
			}
			if err := tx.Put(store.Clients, c.Name, b); err != nil {
				return err
			}
		}
		return nil
	})
}

// keeps tells whether the addresses of an owner belong to a client that is here, or just comes or goes.
func (cs *clients) keeps(owner string) bool {
	name, ok := strings.CutPrefix(owner, clientOwner)
	if !ok {
		return false
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	_, here := cs.all[name]
	_, busy := cs.busy[name]
	return here || busy
}

func (cs *clients) list() []client {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return slices.SortedFunc(maps.Values(cs.all), func(a, b client) int { return strings.Compare(a.Name, b.Name) })
}

// names are those of all clients that have addresses, or may get some.
func (cs *clients) names() []string {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	var names []string
	for _, c := range cs.known() {
		names = append(names, c.Name)
	}
	return names
}

// remember keeps where clients were last heard from.
func (cs *clients) remember(heard []router.PeerStats) error {
	at := map[session.PublicKey]netip.AddrPort{}
	for _, p := range heard {
		if p.Heard {
			at[p.Key] = p.Endpoint
		}
	}
	cs.changing.Lock()
	defer cs.changing.Unlock()
	var moved []client
	for _, c := range cs.list() {
		if to, ok := at[c.PublicKey]; ok && to != c.Endpoint {
			c.Endpoint = to
			moved = append(moved, c)
		}
	}
	if len(moved) == 0 {
		return nil
	}
	if err := cs.save(moved...); err != nil {
		return err
	}
	for _, c := range moved {
		cs.set(c)
	}
	return nil
}

// peers are the clients as the router shall have them. own are this node's prefixes: only what is within them is a client's.
func (cs *clients) peers(own []netip.Prefix, mtu int) []router.Peer {
	var peers []router.Peer
	for _, c := range cs.list() {
		lease, ok := cs.alloc.Lookup(c.owner())
		if !ok {
			continue
		}
		p := router.Peer{
			Key: c.PublicKey, Name: c.Name, Suite: session.WireGuard, MTU: min(mtu, clientMTU),
			External: true, Preshared: session.PresharedKey(c.Preshared),
		}
		if c.Endpoint.IsValid() {
			p.Endpoints = []netip.AddrPort{c.Endpoint}
		}
		for _, a := range addresses(lease) {
			if slices.ContainsFunc(own, func(o netip.Prefix) bool { return o.Contains(a) }) {
				p.Prefixes = append(p.Prefixes, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b router.Peer) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	return peers
}

// withClients adds clients to the nodes of the mesh. A node with a client's key is left out, and named in the warning: nobody
// becomes a node by the key of a client.
func withClients(nodes, clients []router.Peer) (all []router.Peer, warning string) {
	names := make(map[session.PublicKey]string, len(clients))
	for _, c := range clients {
		names[c.Key] = c.Name
	}
	for _, p := range nodes {
		if c, ok := names[p.Key]; ok {
			warning = fmt.Sprintf("node %s has the key of the WireGuard client %s and is not connected; remove the client (weft wg remove %s), or reset that node", cmp.Or(p.Name, p.Key.String()), c, c)
			continue
		}
		all = append(all, p)
	}
	return append(all, clients...), warning
}

// checkClientName allows what file names and owners of addresses can be made of.
func checkClientName(s string) error {
	ok := s != "" && len(s) <= maxClient && s[0] != '-' && s[0] != '.'
	for _, r := range s {
		ok = ok && (r == '-' || r == '.' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}
	if !ok {
		return fmt.Errorf("name %q is no name for a WireGuard client; use letters, digits, '-', '.' and '_', at most %d of them, and begin with a letter or a digit", s, maxClient)
	}
	return nil
}

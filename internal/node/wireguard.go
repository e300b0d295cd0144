// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

// rememberInterval is how often it is looked where the WireGuard clients are.
const rememberInterval = time.Second

// WGClients implements [api.WireGuard].
func (n *Node) WGClients() ([]api.WGClient, error) {
	list := []api.WGClient{}
	e := n.engines()
	if e == nil { // whatever there is has not been read yet
		return nil, n.errNotReady()
	}
	stats := map[session.PublicKey]router.PeerStats{}
	for _, p := range e.plane.PeerStats() {
		stats[p.Key] = p
	}
	for _, c := range e.clients.list() {
		lease, _ := e.alloc.Lookup(c.owner())
		w := api.WGClient{
			Name: c.Name, PublicKey: c.PublicKey.String(), Addresses: addresses(lease), State: string(router.Idle), Created: c.Created,
		}
		if s, ok := stats[c.PublicKey]; ok {
			w.State, w.Reason = string(s.State), s.LastError
			w.RxBytes, w.TxBytes, w.RxPackets, w.TxPackets = s.RxBytes, s.TxBytes, s.RxPackets, s.TxPackets
			if s.Endpoint.IsValid() {
				w.Endpoint = s.Endpoint.String()
			}
			if !s.Handshake.IsZero() {
				w.LastHandshake = &s.Handshake
			}
		}
		list = append(list, w)
	}
	return list, nil
}

// WGAdd implements [api.WireGuard].
func (n *Node) WGAdd(ctx context.Context, r api.WGAddRequest) (api.WGAdded, error) {
	e, err := n.ready()
	if err != nil {
		return api.WGAdded{}, err
	}
	if n.isDraining() {
		return api.WGAdded{}, errDraining
	}
	key, err := n.clientKey(e, r.PublicKey)
	if err != nil {
		return api.WGAdded{}, err
	}
	endpoint, warnings, err := n.clientEndpoint(e, r.Endpoint)
	if err != nil {
		return api.WGAdded{}, err
	}
	c, lease, err := e.clients.add(ctx, r.Name, key, func() error { return n.connectPeers(e) })
	if err != nil {
		return api.WGAdded{}, err
	}
	n.log.Info("WireGuard client added", zap.String("client", c.Name), zap.Stringer("key", c.PublicKey), zap.Stringers("addresses", addresses(lease)))
	return api.WGAdded{
		Name: c.Name, Addresses: addresses(lease), MTU: min(n.mtu, clientMTU), NodeKey: n.state.identity.key().Public().String(),
		PresharedKey: base64.StdEncoding.EncodeToString(c.Preshared), Endpoint: endpoint, Universe: e.universe.Prefixes(), Warnings: warnings,
	}, nil
}

// WGRemove implements [api.WireGuard].
func (n *Node) WGRemove(r api.WGRemoveRequest) (api.WGRemoved, error) {
	e, err := n.ready()
	if err != nil {
		return api.WGRemoved{}, err
	}
	var key session.PublicKey
	if r.PublicKey != "" {
		if key, err = session.ParsePublicKey(r.PublicKey); err != nil {
			return api.WGRemoved{}, err
		}
	}
	lease, err := e.clients.remove(r.Name, key, func() error { return n.connectPeers(e) })
	if err != nil {
		return api.WGRemoved{}, err
	}
	n.log.Info("WireGuard client removed", zap.String("client", r.Name), zap.Stringers("addresses", addresses(lease)))
	return api.WGRemoved{Released: addresses(lease)}, nil
}

// clientKey reads the public key of a new client, which must not be a node's.
func (n *Node) clientKey(e *engines, text string) (session.PublicKey, error) {
	key, err := session.ParsePublicKey(text)
	if err != nil {
		return key, fmt.Errorf("%q is %w, as `wg pubkey` prints it", text, err)
	}
	for _, m := range e.mesh.Nodes() {
		if session.PublicKey(m.PublicKey) == key {
			return key, fmt.Errorf("public key %v is that of node %s; a client needs one of its own", key, m.Name)
		}
	}
	return key, nil
}

// clientEndpoint returns where clients find this node, as HOST:PORT, and a warning if that is doubtful.
func (n *Node) clientEndpoint(e *engines, given string) (endpoint string, warnings []string, err error) {
	if given != "" {
		endpoint, err = canonicalTarget(given, n.cfg.Port)
		if odd := func(r rune) bool { return r <= ' ' || r > '~' }; err != nil || strings.ContainsFunc(given, odd) {
			return "", nil, fmt.Errorf("--endpoint %q is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:%d", given, n.cfg.Port)
		}
		return endpoint, nil, nil
	}
	a := e.where.exit().Addr
	if !a.IsValid() {
		return "", nil, errors.New("this node knows no address at which clients could reach it; give the one that they see, with --endpoint HOST[:PORT]")
	}
	if a.IsPrivate() || shared().Contains(a) {
		warnings = append(warnings, fmt.Sprintf("%v is a private address: clients beyond this network do not reach it; for those give the one that they see, with --endpoint HOST[:PORT]", a))
	}
	return net.JoinHostPort(a.String(), strconv.Itoa(int(n.cfg.Port))), warnings, nil
}

// shared are the addresses between a provider's NAT and its customers (RFC 6598).
func shared() netip.Prefix { return netip.MustParsePrefix("100.64.0.0/10") }

// followClients keeps where the clients are, for the next launch, until ctx ends.
func (n *Node) followClients(ctx context.Context, e *engines) {
	t := time.NewTicker(rememberInterval)
	defer t.Stop()
	for more := true; more; {
		select {
		case <-ctx.Done():
			more = false
		case <-t.C:
		}
		text := ""
		if err := e.clients.settle(func() error { return n.connectPeers(e) }); err != nil {
			text = err.Error()
		}
		n.setWarning("clients-gone", text)
		if len(e.clients.list()) == 0 {
			continue
		}
		if err := e.clients.remember(e.plane.PeerStats()); err != nil {
			n.setWarning("clients", err.Error())
		} else {
			n.setWarning("clients", "")
		}
	}
}

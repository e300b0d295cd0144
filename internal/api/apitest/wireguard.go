// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/api"
)

// What a client of the daemon is told that was added first.
const (
	NodeKey      = "bm9kZW5vZGVub2Rlbm9kZW5vZGVub2Rlbm9kZW5vZGU="
	PresharedKey = "c2hhcmVkc2hhcmVkc2hhcmVkc2hhcmVkc2hhcmVkc2g="
	Endpoint     = "203.0.113.1:6783"
)

// WGClients implements api.WireGuard.
func (d *Daemon) WGClients() ([]api.WGClient, error) {
	if err := d.refused(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	list := []api.WGClient{}
	for _, c := range d.clients {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b api.WGClient) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// SetWGClient changes what is listed of a client.
func (d *Daemon) SetWGClient(c api.WGClient) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clients[c.Name] = c
}

// WGAdd implements api.WireGuard.
func (d *Daemon) WGAdd(ctx context.Context, r api.WGAddRequest) (api.WGAdded, error) {
	if err := d.refused(); err != nil {
		return api.WGAdded{}, err
	}
	if d.Adding != nil {
		defer d.Adding(ctx)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.clients[r.Name]; ok {
		return api.WGAdded{}, fmt.Errorf("there is a WireGuard client %s already", r.Name)
	}
	n := byte(len(d.clients) + 9)
	a := []netip.Addr{netip.AddrFrom4([4]byte{10, 32, 0, n}), netip.AddrFrom16([16]byte{0: 0xfd, 15: n})}
	d.clients[r.Name] = api.WGClient{Name: r.Name, PublicKey: r.PublicKey, Addresses: a, State: "idle", Created: time.Now()}
	res := api.WGAdded{
		Name: r.Name, Addresses: a, MTU: 1280, NodeKey: NodeKey, PresharedKey: PresharedKey, Endpoint: r.Endpoint,
		Universe: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd00::/108")},
	}
	if r.Endpoint == "" {
		res.Endpoint, res.Warnings = Endpoint, []string{"doubtful"}
	}
	return res, nil
}

// WGRemove implements api.WireGuard.
func (d *Daemon) WGRemove(r api.WGRemoveRequest) (api.WGRemoved, error) {
	if err := d.refused(); err != nil {
		return api.WGRemoved{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.clients[r.Name]
	if !ok || r.PublicKey != "" && r.PublicKey != c.PublicKey {
		return api.WGRemoved{}, errors.New("there is no WireGuard client " + r.Name)
	}
	delete(d.clients, r.Name)
	return api.WGRemoved{Released: c.Addresses}, nil
}

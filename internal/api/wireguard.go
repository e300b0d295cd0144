// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
	"net/netip"
	"time"
)

// WireGuard is the part of [Service] that lets stock WireGuard clients join by this node.
type WireGuard interface {
	WGClients() ([]WGClient, error)
	WGAdd(ctx context.Context, r WGAddRequest) (WGAdded, error)
	WGRemove(r WGRemoveRequest) (WGRemoved, error)
}

// WGClient is a WireGuard client that joins by this node, a row of `weft wg list`.
type WGClient struct {
	Name          string       `json:"name"`
	PublicKey     string       `json:"public_key"`
	Addresses     []netip.Addr `json:"addresses"`
	State         string       `json:"state"`              // idle, handshaking, established
	Endpoint      string       `json:"endpoint,omitempty"` // where it was last heard from
	LastHandshake *time.Time   `json:"last_handshake,omitempty"`
	RxBytes       uint64       `json:"rx_bytes"` // what the client has sent, since the daemon runs
	TxBytes       uint64       `json:"tx_bytes"`
	RxPackets     uint64       `json:"rx_packets"`
	TxPackets     uint64       `json:"tx_packets"`
	Created       time.Time    `json:"created"`
	Reason        string       `json:"reason,omitempty"` // last error of the session
}

// WGAddRequest asks to let a client join. Its private key stays where it was made.
type WGAddRequest struct {
	Name      string `json:"name"`
	PublicKey string `json:"public_key"`         // base64
	Endpoint  string `json:"endpoint,omitempty"` // HOST[:PORT] where the client finds this node; "": what the node knows
}

// WGAdded is what the client has to be told. It holds a secret.
type WGAdded struct {
	Name         string         `json:"name"`
	Addresses    []netip.Addr   `json:"addresses"`
	MTU          int            `json:"mtu"`
	NodeKey      string         `json:"node_key"`      // base64, this node's public key
	PresharedKey string         `json:"preshared_key"` // base64
	Endpoint     string         `json:"endpoint"`      // HOST:PORT
	Universe     []netip.Prefix `json:"universe"`
	Warnings     []string       `json:"warnings,omitempty"`
}

// WGRemoveRequest asks to cut a client off and to give its addresses back.
type WGRemoveRequest struct {
	Name      string `json:"name"`
	PublicKey string `json:"public_key,omitempty"` // only if this is its key; "": whatever it is
}

// WGRemoved tells which addresses were given back.
type WGRemoved struct {
	Released []netip.Addr `json:"released"`
}

// WGClients lists the WireGuard clients that join by this node.
func (c *Client) WGClients(ctx context.Context) (w []WGClient, err error) {
	return w, c.call(ctx, http.MethodGet, "wg", nil, &w)
}

// WGAdd lets a client join.
func (c *Client) WGAdd(ctx context.Context, r WGAddRequest) (w WGAdded, err error) {
	return w, c.call(ctx, http.MethodPost, "wg/add", r, &w)
}

// WGRemove cuts a client off.
func (c *Client) WGRemove(ctx context.Context, r WGRemoveRequest) (w WGRemoved, err error) {
	return w, c.call(ctx, http.MethodPost, "wg/remove", r, &w)
}

func serveWireGuard(mux *http.ServeMux, svc WireGuard) {
	get(mux, "wg", func(context.Context) ([]WGClient, error) { return svc.WGClients() })
	post(mux, "wg/add", svc.WGAdd)
	post(mux, "wg/remove", func(_ context.Context, r WGRemoveRequest) (WGRemoved, error) { return svc.WGRemove(r) })
}

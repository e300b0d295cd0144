// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
)

// Targets is the part of [Service] that says to which hosts the node connects by itself.
type Targets interface {
	// Connect adds hosts and waits some seconds for a first answer of each.
	Connect(ctx context.Context, r ConnectRequest) (ConnectResult, error)
	// Disconnect takes hosts away: all or, if one is none, no one.
	Disconnect(r DisconnectRequest) (DisconnectResult, error)
}

// ConnectRequest asks to connect to hosts, now and after every start.
type ConnectRequest struct {
	Hosts []string `json:"hosts"` // HOST or HOST:PORT
}

// ConnectResult tells how that went so far.
type ConnectResult struct {
	Targets []Target `json:"targets"`
}

// DisconnectRequest asks to connect to hosts no longer.
type DisconnectRequest struct {
	Hosts []string `json:"hosts"`
}

// DisconnectResult lists them.
type DisconnectResult struct {
	Disconnected []Disconnected `json:"disconnected"`
}

// Disconnected is one host, with what there is to know about that.
type Disconnected struct {
	Host  string   `json:"host"`
	Notes []string `json:"notes,omitempty"`
}

// Connect has the node connect to hosts.
func (c *Client) Connect(ctx context.Context, r ConnectRequest) (res ConnectResult, err error) {
	return res, c.call(ctx, http.MethodPost, "connect", r, &res)
}

// Disconnect has it do so no longer.
func (c *Client) Disconnect(ctx context.Context, r DisconnectRequest) (res DisconnectResult, err error) {
	return res, c.call(ctx, http.MethodPost, "disconnect", r, &res)
}

func serveTargets(mux *http.ServeMux, t Targets) {
	post(mux, "connect", t.Connect)
	post(mux, "disconnect", func(_ context.Context, r DisconnectRequest) (DisconnectResult, error) { return t.Disconnect(r) })
}

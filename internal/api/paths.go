// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
	"time"
)

// Paths is the part of [Service] that says by which kind of path nodes are reached.
type Paths interface {
	// Path chooses the kind of path to a node, and waits some seconds for it to be used.
	Path(ctx context.Context, r PathRequest) (PathResult, error)
}

// PathAuto is the choice of the best path that is proven. The others are "udp", "vxlan" and "direct".
const PathAuto = "auto"

// PathRequest asks for a kind of path to a node, now and after every start.
type PathRequest struct {
	Node string `json:"node"` // name, or the beginning of its NodeID
	Path string `json:"path"` // PathAuto or a kind
}

// PathResult tells what became of that so far.
type PathResult struct {
	Node   string `json:"node"`
	NodeID string `json:"node_id"`
	KernelPath
}

// KernelPath tells how a peer is reached where kernel paths are possible.
type KernelPath struct {
	Want  string     `json:"want"` // PathAuto or the kind that was chosen
	Path  string     `json:"path"` // direct, vxlan, or udp: by the router, directly or by relays
	Why   string     `json:"why,omitempty"`
	Since *time.Time `json:"since,omitempty"`
	Kinds []PathKind `json:"kinds"` // the kernel paths, best first
}

// PathKind is a kind of path to a peer.
type PathKind struct {
	Kind  string `json:"kind"`          // direct, vxlan
	State string `json:"state"`         // "in use", "proven", "not proven", "not possible"
	Why   string `json:"why,omitempty"` // of the last two
	To    string `json:"to,omitempty"`  // where it leads, unless it is not possible
	MTU   int    `json:"mtu,omitempty"` // largest packet of the overlay by it, in bytes
}

// KernelPaths tells how a node may reach others by its kernel alone, in plaintext.
type KernelPaths struct {
	Trusted  []string `json:"trusted_subnets"` // networks between hosts that are trusted; all of them in a mesh without encryption
	Possible []string `json:"possible"`        // direct, vxlan: what is allowed and this host can do
	Lacking  []string `json:"lacking,omitempty"`
	// Bypass is why packets of established flows all go through the hosts' stacks; "" if they go around this one's.
	Bypass string         `json:"bypass_off,omitempty"`
	VNI    uint32         `json:"vni"`
	Port   uint16         `json:"port"`  // of VXLAN, UDP
	Nodes  map[string]int `json:"nodes"` // how many others are reached by which path: direct, vxlan, udp, relay, none
}

// StopRequest asks the daemon to end.
type StopRequest struct {
	// KeepTraffic leaves the kernel paths that are in use as they are.
	KeepTraffic bool `json:"keep_traffic"`
}

// StopResult names the nodes to which packets go on by kernel paths, with the kind: "n2 (vxlan)".
type StopResult struct {
	Kept []string `json:"kept,omitempty"`
}

// Path has packets to a node go by a kind of path.
func (c *Client) Path(ctx context.Context, r PathRequest) (res PathResult, err error) {
	return res, c.call(ctx, http.MethodPost, "path", r, &res)
}

// Stop ends the daemon; the workloads keep what they have.
func (c *Client) Stop(ctx context.Context, r StopRequest) (res StopResult, err error) {
	return res, c.call(ctx, http.MethodPost, "stop", r, &res)
}

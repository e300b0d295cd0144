// SPDX-License-Identifier: Apache-2.0

// Package api is how the command line and the CNI plugin talk to the
// daemon of its host: HTTP and JSON over a unix socket that only root may
// open.
//
// Invariants: every request and answer is a type of this package; a refusal
// travels as one line of text that names the thing and the remedy, and comes
// out of the client as an error with that very text; request bodies are
// bounded; secrets travel only in the answers to a request for the token and for
// a new WireGuard client. The
// daemon's side is [Service], which internal/node implements; cmd/weft uses
// [Client]. Fields are added, never renamed or removed: scripts read the JSON.
package api

import (
	"context"
	"net/netip"
	"time"
)

// SocketName is the socket's file name within the run directory.
const SocketName = "weft.sock"

// Service is what the daemon offers. Its methods are called concurrently; an
// error's text is shown to the user as it is.
type Service interface {
	Status() Status
	Peers() []Peer
	Workloads() []Workload
	IPAM() IPAM
	Token() (Token, error)
	Attach(ctx context.Context, r AttachRequest) (Workload, error)
	Detach(ctx context.Context, r DetachRequest) (DetachResult, error)
	// Leave gives the node's addresses to the others and makes the daemon end. While it waits for workloads it tells
	// progress what for, as Bench does; ctx ends that waiting.
	Leave(ctx context.Context, r LeaveRequest, progress func(LeaveProgress)) (LeaveResult, error)
	// Bench measures the way to another node, as long as ctx lasts, and tells the progress from one goroutine at a
	// time, as long as it runs.
	Bench(ctx context.Context, r BenchRequest, progress func(BenchProgress)) (BenchResult, error)
	// Events tells what has happened and, if it is asked to, what does, from one goroutine at a time, as long as it runs; ctx
	// ends that.
	Events(ctx context.Context, r EventsRequest, tell func(EventsProgress)) (EventsResult, error)
	// Stop makes the daemon end as by SIGTERM, after the answer is sent.
	Stop(r StopRequest) StopResult
	WireGuard
	Reclaim
	Rotating
	Targets
	Paths
	CNI
	Labels
	Policies
}

// Phase is how far a daemon has come.
type Phase string

// The phases, in their order.
const (
	Starting Phase = "starting" // reading its state, checking the host
	Joining  Phase = "joining"  // waiting for a node of the mesh to answer
	Waiting  Phase = "waiting"  // in the mesh, waiting for addresses
	Ready    Phase = "ready"    // traffic can flow
	Stopping Phase = "stopping"
	// Retired comes instead of Ready, or after it, and stays: the node was declared gone.
	Retired Phase = "retired"
)

// Status is the answer of `weft status`.
type Status struct {
	Version   string        `json:"version"`
	Name      string        `json:"name"`
	NodeID    string        `json:"node_id"`
	PID       int           `json:"pid"`
	Phase     Phase         `json:"phase"`
	Ready     bool          `json:"ready"`
	WaitsFor  string        `json:"waits_for,omitempty"` // one line, while not ready
	Uptime    time.Duration `json:"uptime_ns"`
	Port      uint16        `json:"port"`
	DataDir   string        `json:"data_dir"`
	Socket    string        `json:"socket"`
	Universe  string        `json:"universe,omitempty"` // "10.32.0.0/12,fd00::/108"
	Reserve   string        `json:"reserve,omitempty"`  // part of it that is kept for static use
	MeshID    string        `json:"mesh_id,omitempty"`
	Addresses []netip.Addr  `json:"addresses,omitempty"` // of the host on the overlay
	Device    string        `json:"device"`
	MTU       int           `json:"mtu,omitempty"`
	TUN       string        `json:"tun,omitempty"` // kind of the device: "native", "portable"
	Shards    int           `json:"shards"`
	Offloads  []string      `json:"offloads"`  // in use: "tso", "uso", "gso", "gro"
	Encrypted bool          `json:"encrypted"` // false: the mesh was founded without

	Nodes     NodeCount         `json:"nodes"`
	Workloads int               `json:"workloads"`
	Targets   []Target          `json:"targets,omitempty"`
	Reach     *Reach            `json:"reach,omitempty"` // nil: not known yet
	Relaying  *Relaying         `json:"relaying,omitempty"`
	Warnings  []string          `json:"warnings,omitempty"`
	Packets   map[string]uint64 `json:"packets,omitempty"`      // counters of the data path
	Rotation  *Rotation         `json:"rotation,omitempty"`     // nil: none is under way
	Kernel    *KernelPaths      `json:"kernel_paths,omitempty"` // nil: no network is trusted
	Policies  *PolicyStatus     `json:"policies,omitempty"`     // nil: there are none
}

// NAT tells what is between the node and the others.
type NAT string

// The kinds of NAT.
const (
	NATUnknown   NAT = "unknown"   // nobody has said yet at which address it sees the node
	NATNone      NAT = "none"      // the others see an address of the node's own
	NATCone      NAT = "cone"      // they see another address, all the same one, so that they can be told of it
	NATSymmetric NAT = "symmetric" // each sees another port
)

// Reach tells how the other nodes reach this one.
type Reach struct {
	Addresses []string `json:"addresses"`          // that its record names, best first
	Observed  []string `json:"observed,omitempty"` // at which others see it
	NAT       NAT      `json:"nat"`
	Links     []string `json:"links"`             // names of living direct neighbours, over which others find it
	Relays    []Relay  `json:"relays,omitempty"`  // in use by this node
	Blocked   []string `json:"blocked,omitempty"` // what does not get through, a line each
}

// Relay is a node through which others are reached.
type Relay struct {
	Node  string `json:"node"`
	Peers int    `json:"peers"` // how many
}

// Relaying tells what this node passes on for others, counted since its start.
type Relaying struct {
	Off     bool   `json:"off"`                   // it does not
	Limit   uint64 `json:"limit_bits_per_second"` // 0: none
	Packets uint64 `json:"packets"`               // of data
	Bytes   uint64 `json:"bytes"`
	Control uint64 `json:"control"` // datagrams of gossip and the like
	Dropped uint64 `json:"dropped"` // of both, beyond the limit
}

// NodeCount counts the nodes of the mesh, oneself included, by liveness.
type NodeCount struct {
	Total int `json:"total"`
	Alive int `json:"alive"`
}

// Target is a host that the node was told to connect to.
type Target struct {
	Host  string `json:"host"`
	State string `json:"state"` // "joined", or "waiting: " and the reason
}

// Peer is another node of the mesh, a row of `weft peers`.
type Peer struct {
	Name          string         `json:"name"`
	NodeID        string         `json:"node_id"`
	State         string         `json:"state"` // alive, failed, stopped, left, retired: declared gone
	Since         time.Time      `json:"since"`
	Path          string         `json:"path"`          // direct, vxlan, udp, relay, none; empty: it is no peer of the data path
	Via           []string       `json:"via,omitempty"` // names of the relays, the nearest one first
	RTT           int64          `json:"rtt_us"`        // of the path, in microseconds; 0: not measured
	PathSince     *time.Time     `json:"path_since,omitempty"`
	Session       string         `json:"session"`
	Suite         string         `json:"suite,omitempty"`
	Endpoint      string         `json:"endpoint,omitempty"`
	LastHandshake *time.Time     `json:"last_handshake,omitempty"`
	RxBytes       uint64         `json:"rx_bytes"`
	TxBytes       uint64         `json:"tx_bytes"`
	RxPackets     uint64         `json:"rx_packets"`
	TxPackets     uint64         `json:"tx_packets"`
	MTU           int            `json:"mtu"` // that the node itself has
	Prefixes      []netip.Prefix `json:"prefixes,omitempty"`
	Build         string         `json:"build,omitempty"`
	Reason        string         `json:"reason,omitempty"`        // why it is reached by this path, or by none
	SessionError  string         `json:"session_error,omitempty"` // last error of the session
	// Gone tells that nothing of the node is left that anybody would have to look after: it has left and owns nothing, or
	// was declared gone and does not answer.
	Gone bool `json:"gone"`

	// PathMTU is the largest packet of the overlay in bytes that reaches the node, and PathMTUConfirmed tells that one of that
	// size has, and none was lost since: paths are probed while they are used.
	PathMTU          int  `json:"path_mtu,omitempty"`
	PathMTUConfirmed bool `json:"path_mtu_confirmed"`

	// SealedPath is that of the router, udp, relay or none, also where Path is another one; empty where Kernel is nil.
	SealedPath string `json:"sealed_path,omitempty"`
	// Kernel tells about the paths by the kernel; nil: this node trusts no network. Where Path is direct or vxlan, Reason, RTT, Endpoint and what
	// is counted are those of the router's path, on which there is little.
	Kernel *KernelPath `json:"kernel,omitempty"`
}

// Workload is an attached network namespace, a row of `weft ps` and the answer
// of `weft attach`.
type Workload struct {
	ID        string       `json:"id"`
	Netns     string       `json:"netns"`
	IfName    string       `json:"ifname"`
	HostIf    string       `json:"host_if"`
	Addresses []netip.Addr `json:"addresses"`
	MTU       int          `json:"mtu"`
	Attached  time.Time    `json:"attached"`
	State     string       `json:"state"` // up, or what is wrong
	Warnings  []string     `json:"warnings,omitempty"`

	AddressesOnly bool       `json:"addresses_only,omitempty"` // its interface was made by another plugin; host_if is empty then
	CNI           *CNIOrigin `json:"cni,omitempty"`            // nil: it was attached by weft attach
	Policy        *Identity  `json:"policy,omitempty"`         // what network policies know it by; nil: its pod (Kubernetes)
}

// AttachRequest asks to attach the namespace at Netns, a path as the daemon
// sees it.
type AttachRequest struct {
	Netns  string     `json:"netns"`
	IfName string     `json:"ifname"`
	IP     netip.Addr `json:"ip,omitzero"` // a wanted address, or the zero Addr
	// Policy is what network policies are to know it by. What is empty, or nil, has a default, or stays as it is.
	Policy *Identity `json:"policy,omitempty"`
}

// DetachRequest asks to detach what was attached as Netns and IfName.
type DetachRequest struct {
	Netns  string `json:"netns"`
	IfName string `json:"ifname"`
}

// DetachResult tells which addresses were given back: none if nothing was
// attached.
type DetachResult struct {
	Released []netip.Addr `json:"released"`
}

// LeaveRequest asks to leave the mesh for good.
type LeaveRequest struct {
	// Force leaves although workloads are attached or WireGuard clients are joined.
	Force bool `json:"force"`
	// Drain waits until none are, and takes no new ones meanwhile.
	Drain bool `json:"drain"`
}

// LeaveProgress tells what a node that leaves does or waits for.
type LeaveProgress struct {
	Text    string `json:"text"`    // one line
	Leaving bool   `json:"leaving"` // there is no way back any more
}

// LeaveResult tells what became of the node's addresses.
type LeaveResult struct {
	Granted []Grant  `json:"granted,omitempty"`
	Kept    []string `json:"kept,omitempty"` // addresses that could not be given away, with their holders
	Note    string   `json:"note,omitempty"`
}

// Grant is a number of addresses that went to a node.
type Grant struct {
	To        string `json:"to"`
	Addresses uint64 `json:"addresses"`
}

// IPAM is the answer of `weft ipam`.
type IPAM struct {
	Universe    string       `json:"universe"`
	MeshID      string       `json:"mesh_id"`
	Size        uint64       `json:"size"`
	Reserve     string       `json:"reserve,omitempty"`  // prefixes that are handed out by name only
	Reserved    uint64       `json:"reserved,omitempty"` // addresses in them
	Holdings    []Holding    `json:"holdings"`
	Allocations []Allocation `json:"allocations"`
	Free        uint64       `json:"free"`        // here
	Quarantined uint64       `json:"quarantined"` // here
	Pending     uint64       `json:"pending"`     // granted to this node, not yet known to a majority
	Notes       []string     `json:"notes,omitempty"`
	Takeovers   []Takeover   `json:"takeovers,omitempty"`   // that are not complete
	Retirements []Retirement `json:"retirements,omitempty"` // who was declared gone, in the order of the decisions
}

// Holding is one node's share of the universe.
type Holding struct {
	Node     string         `json:"node"`
	NodeID   string         `json:"node_id"`
	Slots    uint64         `json:"slots"`
	Percent  float64        `json:"percent"`
	Prefixes []netip.Prefix `json:"prefixes"`
}

// Allocation is one allocated pair of addresses on this node.
type Allocation struct {
	Owner     string       `json:"owner"`
	Addresses []netip.Addr `json:"addresses"`
}

// Token is the answer of `weft token`.
type Token struct {
	Token   string `json:"token"`
	Command string `json:"command"`           // how the next host joins
	Warning string `json:"warning,omitempty"` // why it is of no use: the mesh has another one by now
}

// SPDX-License-Identifier: Apache-2.0

// Package node is the composition root: the only place where the engines
// (router, mesh, ipam) and the edges (store, control API, host network) meet.
//
// The way through it is the way of a launch: [Launch] takes the host's lock,
// opens the state, finds the token (identity.go), finds the mesh (join.go),
// makes the engines and connects them (wire.go), gets the host its address,
// puts the host's network into the desired state (workloads.go), and then keeps
// the router's peers in step with records and ring (sync.go) until it is told to
// stop. service.go answers the command line, cni.go container runtimes by the plugin; attach.go is where both come together. client.go keeps the WireGuard clients
// that join by this node, wireguard.go answers for them. kernelpaths.go has packets go by the kernel alone where the network below is trusted.
//
// Invariants: what is answered or gossiped has been persisted; a first start
// that is refused leaves the host as it was; whatever ends the process, the
// workloads keep interfaces, addresses and routes, and no overlay packet leaves
// the host in plaintext but by a kernel path to which both nodes have consented; every goroutine ends before Launch returns. cmd/weft
// imports the package, and nothing else.
package node

// SPDX-License-Identifier: Apache-2.0

// Package kube directs a node that runs on a node of a Kubernetes cluster: it finds the mesh by one Secret (founding.go, bootstrap.go),
// its hosts by the Node objects (nodes.go), the range by what the cluster says of itself (ranges.go), tells the cluster when
// the node is up (report.go, events.go), and has the addresses of nodes that were deleted taken over (reclaim.go). agent.go is
// where these meet. What network policies are about goes straight to who enforces them (feed.go, follower.go, problems.go). client.go, watch.go and
// follower.go are the only code of the module that knows client-go.
//
// Invariants: one mesh is founded, however many nodes start at once and whoever of them ends in between: it is the one whose founder the
// Secret names when it says founded, and every change of the Secret is guarded by the version that was read. Nothing that a
// running node needs, nor the restart of one with a data directory, waits for the API server. A node has seven watches, whatever the
// size of the cluster, and reads nothing at intervals, but whether there are ClusterNetworkPolicies where there were none. Of
// pods it keeps names alone. What the API server says is bounded, and taken for what it is: objects that anybody with the rights may have written. Objects are changed by patches, so that fields that are not known here stay as they are. The token
// is in the Secret only, never in a log, an event or an error.
//
// The package knows no engine: it sees the node as a [Daemon]. Only cmd/weft imports it, and composes it with internal/node.
package kube

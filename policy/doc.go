// SPDX-License-Identifier: Apache-2.0

// Package policy says which connections between endpoints network policies allow, and why.
//
// Its words are those of Kubernetes' NetworkPolicy (networking.k8s.io/v1) and ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2),
// in types of its own: what reads manifests, the API server or another node's state translates into them. [World.Judge] is the slow,
// obvious evaluator. It is the judge of policy/compile, which turns the same objects into what the kernel looks up for each new
// connection, and it is what tells an operator why something was denied.
//
// Invariants:
//
//   - A connection is judged once at each end: by the egress rules of the endpoint that it leaves, and by the ingress rules of the one
//     that it reaches, after destination NAT. What is no endpoint has no rules.
//   - Tiers are asked in the order Admin, Network, Baseline. The first rule of the Admin tier that fits decides, or passes to
//     the next tier. If any policy of the Network tier isolates the endpoint in that direction, what none of them allows is denied
//     and Baseline is not asked.
//   - What could not be understood narrows what is allowed, never widens it ([Policy.Problems]).
//   - An endpoint's own node always reaches it. Of what it sends to that node, or through a Service to itself, the Network tier denies
//     nothing; the Admin tier may, and Baseline where the Network tier does not isolate.
//   - An address is that of one endpoint at most, the one that has come by it last, and then it is no node's.
//
// Pure: no I/O, no clock, no goroutine, nothing is logged. Objects are values and never changed once given. internal/node,
// internal/api, internal/kube and the packages below this one import it; it imports the standard library alone.
package policy

// SPDX-License-Identifier: Apache-2.0

// Package manifest reads network policies, and what they select, as Kubernetes writes them: NetworkPolicy (networking.k8s.io/v1),
// ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2), Namespace and Pod (v1).
//
// A policy is read into a tree first (tree.go, yaml.go, and in quickyaml.go and quickjson.go what nearly all is written in), so that every field, operator,
// protocol or action that is not known here is seen, at any depth, and told with its path (reader.go). There are two ways to take such a [Problem]:
//
//   - [Read], for files: it refuses all that the file holds, and says where the problem is.
//   - [NetworkPolicy] and [ClusterNetworkPolicy], for what an API server has and somebody relies upon: the policy is enforced, but never allows what it
//     would not if all of it were understood. A rule of a NetworkPolicy with a problem allows nothing. A rule of a ClusterNetworkPolicy that accepts,
//     and has a problem, accepts nothing; one that denies, denies without the part that has it; any other one denies. With a problem outside of the
//     rules nothing is allowed by any of them, and the policy selects whatever fits the part of its subject that is understood. Each problem
//     is a line of policy.Policy.Problems.
//
// Metadata and status decide nothing, so fields that are not known there do not matter. Null is a field that is absent, as it is for
// Kubernetes; in a list it is a problem.
//
// Pure: no I/O, no clock, no goroutine, nothing is logged. Whatever the input, what is allocated is bounded by a multiple of its length, and that by [MaxFile]
// and [MaxDocument]. cmd/weft, internal/api and internal/kube import it.
package manifest

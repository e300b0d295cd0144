// SPDX-License-Identifier: Apache-2.0

// Package deploy is where Weft's manifests are: the Helm chart in helm/weft, and kubernetes/weft.yaml, which is what the chart renders with its
// default values for the namespace kube-system (`make manifests` writes it).
//
// There is no code but tests, in a module of its own, so that Helm and the types of all of Kubernetes do not count among Weft's
// libraries.
package deploy

// SPDX-License-Identifier: Apache-2.0

package api

// PolicyStatus is how it is with network policies on a node.
type PolicyStatus struct {
	Policies  int    `json:"policies"`            // that there are
	Workloads int    `json:"workloads"`           // of this node, of which they say something
	Problems  int    `json:"problems"`            // that could not be understood, and are enforced more strictly
	WaitsFor  string `json:"waits_for,omitempty"` // before anything new is attached, or changed
	Failure   string `json:"failure,omitempty"`   // why what should be in force is not
}

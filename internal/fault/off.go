// SPDX-License-Identifier: Apache-2.0

//go:build !faultpoints

package fault

// Point marks a step.
func Point(string) {}

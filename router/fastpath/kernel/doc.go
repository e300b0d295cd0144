// SPDX-License-Identifier: Apache-2.0

// Package kernel puts kernel paths in place: VXLAN devices, forwarding entries, neighbours, routes and rules.
package kernel

// SPDX-License-Identifier: Apache-2.0

// Package probe sends probes by kernel paths and receives those of others.
package probe

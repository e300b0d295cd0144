// SPDX-License-Identifier: Apache-2.0

// Package policy may judge what integration tests see.
package policy

const X = 1

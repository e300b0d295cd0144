// SPDX-License-Identifier: Apache-2.0

//go:build !race

package rotation

// fewSeeds is how many seeds of the simulator are tried by default.
const fewSeeds = 600

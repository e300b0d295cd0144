// SPDX-License-Identifier: Apache-2.0

//go:build race

package ipam

// raceDetector says whether the tests run with the race detector, which makes them slow.
const raceDetector = true

// SPDX-License-Identifier: Apache-2.0

//go:build race

package mesh

// raceDetector tells whether the tests run under the race detector.
const raceDetector = true

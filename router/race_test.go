// SPDX-License-Identifier: Apache-2.0

//go:build race

package router_test

// raceDetector tells whether the tests run under the race detector.
const raceDetector = true

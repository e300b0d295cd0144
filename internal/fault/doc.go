// SPDX-License-Identifier: Apache-2.0

// Package fault marks the steps of the daemon and of the CNI plugin at which tests kill them (kill -9), so as to see what that leaves.
//
// A [Point] does nothing, and costs nothing, in a program that is built as usual. Built with the tag faultpoints, a program looks at each point
// into the file that the environment variable [Env] names: if it holds the point's name, the file is removed and the process killed; if it holds
// the name, a blank and the word "stop", the file is removed and the process stopped (SIGSTOP), as a step that takes long; and if it begins with the
// word "trace", the point's name is appended to it, on a line of its own. So one point
// is armed at a time, at any moment, and a process that is started anew does not run into it again.
//
// Every point has a name of its own. Tests find them all by reading the source, so the name is written at the point as it is.
package fault

// Env is the environment variable that names the file in which a point is armed.
const Env = "WEFT_FAULT"

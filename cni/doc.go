// SPDX-License-Identifier: Apache-2.0

// Package cni is Weft's side of the Container Network Interface, specification 1.1.0: what a runtime asks the plugin is read, checked and bounded
// here, put to the daemon of the host in one round trip ([Daemon]), and answered in the words and the version in which it was asked.
//
// Invariants: nothing but a result or an error object of the specification ever goes to the runtime; whatever the plugin is given, it changes
// nothing itself but the [Backlog]; a DEL succeeds for what is gone, and is put into the backlog when the daemon is not there to do it. The daemon
// keeps an attachment under the container's ID and the interface's name ([Key]), as the specification does.
//
// It is an engine: it imports nothing else of the module. cmd/weft-cni is the plugin, internal/api carries the requests, internal/node
// does the work.
package cni

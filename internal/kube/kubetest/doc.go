// SPDX-License-Identifier: Apache-2.0

// Package kubetest is an API server of Kubernetes in memory, for tests: it keeps objects as JSON, numbers their versions, refuses what a
// real one refuses (an object that exists, a version that is not the last, a name that is missing), and tells watchers. It knows the
// verbs that Weft uses, and no others: a request for anything else is answered 405, so that no test passes by luck.
//
// It is reached by connections in memory, so that tests with virtual time (testing/synctest) can use it, or by a port. Every request can be
// made to fail before or after it takes effect, and all are counted.
package kubetest

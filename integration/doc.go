// SPDX-License-Identifier: Apache-2.0

// Package integration holds the black-box tests of the built weft binary: daemons on hosts in network namespaces, with real
// devices, real packets and real faults (see [github.com/weftnet/weft/integration/lab]). They know the command line and what
// it prints, nothing of the inside.
//
// They need root. The binaries are those that the environment variables WEFT_BIN and WEFT_CNI_BIN name, or are built when the tests start, as are
// the programs that Weft is held against: wireguard-go, and the reference plugins of CNI. Container runtimes are those of the machine, of which a test
// that lacks one says so; .ci/run installs them.
package integration

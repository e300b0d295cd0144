// SPDX-License-Identifier: Apache-2.0

// Package integration holds the black-box tests of the built weft binary: daemons on hosts in network namespaces, with real
// devices, real packets and real faults (see [github.com/weftnet/weft/integration/lab]). They know the command line and what
// it prints, nothing of the inside.
//
// They need root. The binary is the one that the environment variable WEFT_BIN names, or is built when the tests start.
package integration

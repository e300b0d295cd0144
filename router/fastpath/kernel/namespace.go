// SPDX-License-Identifier: Apache-2.0

package kernel

import "github.com/weftnet/weft/router/fastpath/netspace"

// A namespace is a network namespace: an open descriptor, or [here].
type namespace int

// here is the namespace that the process runs in.
const here namespace = netspace.Here

// run runs f in the namespace, on a thread of its own if that is another one.
func (n namespace) run(f func() error) error { return netspace.Run(int(n), f) }

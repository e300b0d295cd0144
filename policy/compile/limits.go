// SPDX-License-Identifier: Apache-2.0

package compile

import "cmp"

// Limits bound what a [Compiler] makes of its objects, whatever they are. Zero means the default. What is beyond is denied, see [Compiler.Problems]:
// the dearest tables of the namespace whose policies take the most. Nothing else grows faster than the objects.
type Limits struct {
	// Identities bounds how many there are but for this node's own. Addresses that have no identity are [Unsorted]: tables with rules about some
	// peers deny all connections with them. Blocks may take half of them: tables with the policies about the most blocks deny everything before they
	// take more. Default 65,536.
	Identities int
	// Memberships bounds the sum, over all identities and all blocks, of how many of the peers in use each is one of. What is beyond is
	// Unsorted, and of it blocks may take half, as above. Default 2,097,152, which take up to 16 MiB.
	Memberships int
	// Rules bounds the sum, over all tables, of their rules. A table beyond denies everything. Default 524,288, which take up to 32 MiB.
	Rules int
	// Cells bounds the sum of all tables' cells. A table beyond denies everything. Default 262,144, which take up to 16 MiB here, and as much
	// in each [State].
	Cells int
}

// or fills in the defaults.
func (l Limits) or() Limits {
	return Limits{
		Identities:  cmp.Or(l.Identities, 1<<16),
		Memberships: cmp.Or(l.Memberships, 1<<21),
		Rules:       cmp.Or(l.Rules, 1<<19),
		Cells:       cmp.Or(l.Cells, 1<<18),
	}
}

// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"github.com/google/nftables"      // want library
	"github.com/google/nftables/expr" // want library
	"github.com/hashicorp/memberlist"
	"github.com/weftnet/weft/ipam" // want engine
)

var _ = []any{nftables.X, expr.X, memberlist.X, ipam.X}

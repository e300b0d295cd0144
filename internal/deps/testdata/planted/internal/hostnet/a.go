// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"github.com/google/nftables"
	"github.com/weftnet/weft/cmd/weft" // want command
)

var _ = []any{nftables.X, weft.X}

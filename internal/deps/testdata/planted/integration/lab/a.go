// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"github.com/google/nftables"
	"github.com/weftnet/weft/integration"
	"github.com/weftnet/weft/internal/api" // want black-box
)

var _ = []any{nftables.X, api.X, integration.X}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest" // want support
)

var _ = []any{ipam.X, mesh.X, router.X, routertest.X}

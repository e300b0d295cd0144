// SPDX-License-Identifier: Apache-2.0

package api

import (
	"github.com/weftnet/weft/integration/lab" // want black-box
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh" // want meeting
	"github.com/weftnet/weft/router/session"
)

var _ = []any{ipam.X, mesh.X, session.X, ring.X, lab.X}

// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"github.com/weftnet/weft/internal/api" // want engine
	"github.com/weftnet/weft/router"       // want upwards
	"github.com/weftnet/weft/router/packet"
)

var _ = []any{api.X, router.X, packet.ErrShort}

// SPDX-License-Identifier: Apache-2.0

package router_test

import "github.com/weftnet/weft/router/routertest"

var _ = routertest.X

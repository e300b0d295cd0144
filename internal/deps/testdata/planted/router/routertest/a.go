// SPDX-License-Identifier: Apache-2.0

package routertest

import "github.com/weftnet/weft/router"

const X = router.X

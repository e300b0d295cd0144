// SPDX-License-Identifier: Apache-2.0

package mesh

import "github.com/weftnet/weft/router" // want engine

const _ = router.X

// SPDX-License-Identifier: Apache-2.0

package ipam

import "github.com/weftnet/weft/ipam/ring"

const X = ring.X

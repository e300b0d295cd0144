// SPDX-License-Identifier: Apache-2.0

package route

import "github.com/gaissmai/bart"

const X = bart.X

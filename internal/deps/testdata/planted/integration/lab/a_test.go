// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/filter" // want black-box
)

var _ = []any{policy.X, filter.X}

// SPDX-License-Identifier: Apache-2.0

//go:build race

package kernel

import "time"

// limit is not the requirement: the race detector makes it many times slower.
const limit = time.Minute

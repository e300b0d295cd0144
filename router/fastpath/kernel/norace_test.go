// SPDX-License-Identifier: Apache-2.0

//go:build !race

package kernel

import "time"

// limit is what an operation on 500 peers may take on a machine that does other things as well: the requirement, a second, is for
// one that does not.
const limit = 5 * time.Second

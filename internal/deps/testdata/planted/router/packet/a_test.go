// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"os"
	"time"
)

func init() { go func() { _ = time.Now(); _ = os.Args }() }

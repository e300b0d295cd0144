// SPDX-License-Identifier: Apache-2.0

package cni

import "errors"

// ErrNotRunning says that no daemon answers.
var ErrNotRunning = errors.New("no weft daemon is running")

// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/weftnet/weft/internal/node"

var version = "dev"

func main() { _ = node.X + version }

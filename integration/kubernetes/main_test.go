// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	EnterNode()
	os.Exit(m.Run())
}

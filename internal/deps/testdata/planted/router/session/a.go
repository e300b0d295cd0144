// SPDX-License-Identifier: Apache-2.0

package session

import (
	"time"

	"github.com/flynn/noise"
	"github.com/gaissmai/bart" // want pure
	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/device" // want pure
	"golang.zx2c4.com/wireguard/replay"
)

const X = time.Second

var _ = []any{noise.DH25519, bart.X, blake2s.Size, device.X, replay.X}

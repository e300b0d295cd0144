// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"encoding/binary"
	"time"
)

// stamp is a TAI64N label: big-endian seconds and nanoseconds, so that byte order is time order.
// The package golang.zx2c4.com/wireguard/tai64n makes labels of the machine's clock only.
type stamp [stampSize]byte

const (
	stampSize = 12
	stampBase = 1<<62 + 10 // TAI64's 1970, with the ten leap seconds of then, as WireGuard has it
	stampStep = 1 << 24    // nanoseconds; finer than this the label says nothing
)

// stampAt returns the whitened label of t.
func stampAt(t time.Time) stamp {
	return makeStamp(stampBase+uint64(t.Unix()), uint32(t.Nanosecond())&^(stampStep-1))
}

func makeStamp(seconds uint64, nanos uint32) (s stamp) {
	binary.BigEndian.PutUint64(s[:8], seconds)
	binary.BigEndian.PutUint32(s[8:], nanos)
	return s
}

// after reports whether s is later than o.
func (s stamp) after(o stamp) bool { return bytes.Compare(s[:], o[:]) > 0 }

// next returns the label one step later.
func (s stamp) next() stamp {
	seconds, nanos := binary.BigEndian.Uint64(s[:8]), binary.BigEndian.Uint32(s[8:])+stampStep
	if nanos >= uint32(time.Second) {
		seconds, nanos = seconds+1, 0
	}
	return makeStamp(seconds, nanos)
}

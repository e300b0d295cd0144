// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"io"
	"net/netip"
	"time"
)

// Config is what a Machine is made of.
type Config struct {
	Rand io.Reader // cryptographic
}

// Machine decides by which kind of path each peer is reached.
type Machine struct{}

// ActionKind says what an Action is.
type ActionKind uint8

// The kinds of actions.
const (
	Send   ActionKind = iota // a probe
	Switch                   // the path of a peer to another
)

// Action is what the caller has to do.
type Action struct {
	Kind ActionKind
	ID   uint64
	Way  Kind       // of Send: to be proven; of Switch: to be used from now on
	To   netip.Addr // of Send
	Size int        // of Send: of the IP packet in bytes
	Echo uint64     // of Send
	From Kind       // of Switch
	Why  string     // of Switch
}

// Status is how things stand with a peer.
type Status struct {
	Path  Kind
	Since time.Time // zero: always
	Why   string
	Kinds map[Kind]string // of each other kind why it is not used, "" if it is proven
}

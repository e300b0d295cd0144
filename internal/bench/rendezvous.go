// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// version is that of the rendezvous and of what follows it.
const version = 1

const (
	maxRendezvous = 4 << 10 // bytes of an encoded message
	maxText       = 200     // bytes of a text in it
)

// errWire says that a message is not one of this package's.
var errWire = errors.New("no measurement message")

// Secret is what the two ends of one session share. It is never printed.
type Secret [32]byte

// NewSecret draws a secret from random.
func NewSecret(random io.Reader) (s Secret, err error) {
	if _, err := io.ReadFull(random, s[:]); err != nil {
		return s, fmt.Errorf("drawing a secret: %w", err)
	}
	return s, nil
}

// String hides the secret.
func (Secret) String() string { return "(hidden)" }

// GoString hides the secret.
func (Secret) GoString() string { return "bench.Secret(hidden)" }

// MarshalText writes hex digits, for the sealed channel only.
func (s Secret) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads them.
func (s *Secret) UnmarshalText(b []byte) error {
	if len(b) != 2*len(s) {
		return errWire
	}
	if _, err := hex.Decode(s[:], b); err != nil {
		return errWire
	}
	return nil
}

// tag is what the session's datagrams begin with.
func (s Secret) tag() (t [tagSize]byte) {
	h := sha256.New()
	_, _ = h.Write([]byte("weft bench datagrams")) // never fails
	_, _ = h.Write(s[:])
	copy(t[:], h.Sum(nil))
	return t
}

// Code says why a node takes no part in a measurement.
type Code string

// The codes.
const (
	Accepted  Code = ""
	Busy      Code = "busy"      // it has another one
	Unwilling Code = "unwilling" // it was launched so
	NotReady  Code = "not-ready"
	Invalid   Code = "invalid" // the request makes no sense to it; Text says why
	Failed    Code = "failed"  // it could not; Text says why
)

// Message is what passes between two nodes before they meet: a request, or its
// answer.
type Message struct {
	Version int    `json:"version"`
	Session uint64 `json:"session"` // drawn by the asking node
	Answer  bool   `json:"answer,omitempty"`

	// Request.
	Secret Secret     `json:"secret,omitzero"`
	From   netip.Addr `json:"from,omitzero"` // the asking node's overlay address
	Params Params     `json:"params,omitzero"`

	// Answer.
	Code     Code           `json:"code,omitempty"`
	Text     string         `json:"text,omitempty"`
	BusyWith string         `json:"busy_with,omitempty"` // name of a node
	BusyFor  time.Duration  `json:"busy_for_ns,omitempty"`
	TCP      netip.AddrPort `json:"tcp,omitzero"`
	UDP      netip.AddrPort `json:"udp,omitzero"`
}

// Encode returns the message's bytes. Texts that are too long are cut.
func (m Message) Encode() ([]byte, error) {
	m.Version = version
	m.Text, m.BusyWith = printable(m.Text), printable(m.BusyWith)
	b, err := json.Marshal(m) //nolint:gosec // the secret is meant for the other node, and goes by a sealed connection
	if err != nil {
		return nil, fmt.Errorf("encoding a measurement message: %w", err)
	}
	return b, nil
}

// DecodeMessage is the reverse of Encode. A message whose version is not this
// one's is returned without the rest, and an error that says so.
func DecodeMessage(b []byte) (Message, error) {
	if len(b) > maxRendezvous {
		return Message{}, fmt.Errorf("%d bytes: %w", len(b), errWire)
	}
	var m Message
	if err := json.Unmarshal(b, &m); err != nil {
		var head struct {
			Version int    `json:"version"`
			Session uint64 `json:"session"`
			Answer  bool   `json:"answer"`
		}
		if json.Unmarshal(b, &head) != nil || head.Version == version {
			return Message{}, errWire
		}
		m = Message{Version: head.Version, Session: head.Session, Answer: head.Answer}
	}
	if m.Version != version {
		return Message{Version: m.Version, Session: m.Session, Answer: m.Answer},
			fmt.Errorf("version %d of measurements is not known here, but %d; run the same version of weft on both nodes", m.Version, version)
	}
	m.Text, m.BusyWith = printable(m.Text), printable(m.BusyWith)
	m.BusyFor = max(0, m.BusyFor)
	if m.Answer {
		if m.Code == Accepted && (!usable(m.TCP) || !usable(m.UDP) || m.TCP.Addr() != m.UDP.Addr()) {
			return Message{}, errWire
		}
		return m, nil
	}
	if m.Secret == (Secret{}) || !m.From.IsValid() || m.From.Zone() != "" {
		return Message{}, errWire
	}
	return m, nil
}

func usable(a netip.AddrPort) bool {
	return a.Addr().IsValid() && a.Addr().Zone() == "" && a.Port() != 0
}

// printable makes a text of another node fit for a terminal and a log.
func printable(s string) string {
	out := make([]rune, 0, len(s))
	size := 0
	for _, r := range s {
		if r < ' ' || r > '~' {
			r = '?'
		}
		if size++; size > maxText {
			break
		}
		out = append(out, r)
	}
	return string(out)
}

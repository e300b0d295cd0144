// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"time"
)

// Bounds and defaults of what may be asked for.
const (
	MinTime     = time.Second
	MaxTime     = 30 * time.Second
	DefaultTime = 3 * time.Second

	MaxStreams     = 32
	DefaultStreams = 4

	MinBytes     = 1 << 20
	MaxBytes     = 1 << 40
	DefaultBytes = 32 << 30
)

const (
	// PacketSize is the payload of a small packet, and of a request and its
	// response, in bytes.
	PacketSize = 64
	// Silence is how long a side waits for a sign of life of the other.
	Silence = 5 * time.Second
	// patience is how long anything else waits for what the other must do at
	// once: when the other is silent, watch says so before.
	patience = 2 * Silence
	// overhead bounds what a phase takes beside its time: connections, the end.
	overhead = 2 * Silence
)

// Params is what a measurement may cost.
type Params struct {
	Time    time.Duration `json:"time_ns"`   // of each phase, [MinTime] to [MaxTime]
	Streams int           `json:"streams"`   // of the phases with several, 1 to [MaxStreams]
	Bytes   int64         `json:"max_bytes"` // of all phases together, payload, both directions; [MinBytes] to [MaxBytes]
}

// Defaults returns the parameters with the defaults in place of zeros.
func (p Params) Defaults() Params {
	if p.Time == 0 {
		p.Time = DefaultTime
	}
	if p.Streams == 0 {
		p.Streams = DefaultStreams
	}
	if p.Bytes == 0 {
		p.Bytes = DefaultBytes
	}
	return p
}

// Check returns an error if a parameter is out of range.
func (p Params) Check() error {
	switch {
	case p.Time < MinTime || p.Time > MaxTime:
		return fmt.Errorf("--time %v is out of range; give %v to %v", p.Time, MinTime, MaxTime)
	case p.Streams < 1 || p.Streams > MaxStreams:
		return fmt.Errorf("--streams %d is out of range; give 1 to %d", p.Streams, MaxStreams)
	case p.Bytes < MinBytes || p.Bytes > MaxBytes:
		return fmt.Errorf("--max-bytes %d is out of range; give %d (1M) to %d (1T)", p.Bytes, int64(MinBytes), int64(MaxBytes))
	}
	return nil
}

// Limit is the longest that a measurement can take.
func (p Params) Limit() time.Duration {
	return time.Duration(len(Plan(p)))*(p.Time+overhead) + overhead
}

// Kind is what a phase measures.
type Kind uint8

// The kinds of phases.
const (
	Latency Kind = iota // requests and responses, one at a time
	Streams             // TCP
	Packets             // datagrams of [PacketSize]
)

// Phase is one part of a measurement.
type Phase struct {
	Kind    Kind
	Back    bool // the other node sends; else the asking one
	Streams int  // of TCP
	Time    time.Duration
	Bytes   int64 // of payload, at most
}

// String names the phase for people.
func (p Phase) String() string {
	direction := "there"
	if p.Back {
		direction = "back"
	}
	switch {
	case p.Kind == Latency:
		return "request/response"
	case p.Kind == Packets:
		return "small packets " + direction
	case p.Streams == 1:
		return "1 stream " + direction
	}
	return fmt.Sprintf("%d streams %s", p.Streams, direction)
}

// Plan returns the phases in their order, the same on both ends. Each has an
// equal part of the bytes.
func Plan(p Params) []Phase {
	phases := []Phase{{Kind: Latency, Streams: 1}, {Kind: Streams, Streams: 1}, {Kind: Streams, Streams: 1, Back: true}}
	if p.Streams > 1 {
		phases = append(phases, Phase{Kind: Streams, Streams: p.Streams}, Phase{Kind: Streams, Streams: p.Streams, Back: true})
	}
	phases = append(phases, Phase{Kind: Packets}, Phase{Kind: Packets, Back: true})
	for i := range phases {
		phases[i].Time, phases[i].Bytes = p.Time, p.Bytes/int64(len(phases))
	}
	return phases
}

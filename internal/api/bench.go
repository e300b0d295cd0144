// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/netip"
	"time"
)

// BenchRequest asks to measure the way to another node. Zeros stand for the
// defaults.
type BenchRequest struct {
	Node    string        `json:"node"`    // its name, or the beginning of its NodeID
	Time    time.Duration `json:"time_ns"` // of each phase
	Streams int           `json:"streams"`
	Bytes   int64         `json:"max_bytes"` // of all phases together
}

// BenchProgress tells how far a measurement is, and what the phase shows so far
// or, when Done, in all.
type BenchProgress struct {
	Phase   string  `json:"phase"`
	Step    int     `json:"step"` // of Steps, from 1
	Steps   int     `json:"steps"`
	Elapsed float64 `json:"elapsed_seconds"` // of the phase
	Done    bool    `json:"done"`

	// By what the phase measures.
	Bits    float64       `json:"bits_per_second,omitempty"`
	Rate    float64       `json:"packets_per_second,omitempty"`
	Loss    *float64      `json:"loss_percent,omitempty"` // when Done
	Latency *BenchLatency `json:"latency,omitempty"`      // only the samples before Done
}

// BenchResult is the answer of `weft bench`. "There" is from this node to the
// other, "back" the other way.
type BenchResult struct {
	From    BenchNode    `json:"from"` // this node
	To      BenchNode    `json:"to"`
	Path    string       `json:"path"`          // as of a Peer
	Via     []string     `json:"via,omitempty"` // as of a Peer
	Suite   string       `json:"suite,omitempty"`
	MTU     int          `json:"overlay_mtu_bytes"`        // the smaller one of the two nodes'
	PathMTU int          `json:"path_mtu_bytes,omitempty"` // largest packet of the overlay that was seen to get there; 0: not known
	Started time.Time    `json:"started"`
	Elapsed float64      `json:"elapsed_seconds"`
	Time    float64      `json:"time_per_phase_seconds"`
	Bytes   int64        `json:"max_bytes"`
	Latency BenchLatency `json:"latency"`
	TCP     []BenchTCP   `json:"tcp"`
	Packets []BenchUDP   `json:"packets"`
	// Strangers counts connections and datagrams that were not of the measurement and were turned away.
	Strangers int64 `json:"turned_away"`
}

// BenchNode is one end of a measurement.
type BenchNode struct {
	Name    string     `json:"name"`
	NodeID  string     `json:"node_id"`
	Build   string     `json:"build"`
	Address netip.Addr `json:"address"` // on the overlay
}

// BenchLatency is the time between a request of 64 bytes and its response, by
// TCP, one at a time on an otherwise idle way.
type BenchLatency struct {
	Samples int     `json:"samples"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	Max     float64 `json:"max_us"`
}

// BenchTCP is what a number of TCP streams carried.
type BenchTCP struct {
	Direction string   `json:"direction"` // "there" or "back"
	Streams   int      `json:"streams"`
	Bytes     int64    `json:"bytes"` // of payload, that arrived
	Seconds   float64  `json:"seconds"`
	Bits      float64  `json:"bits_per_second"`
	CPU       BenchCPU `json:"cpu"`
	Capped    bool     `json:"ended_by_max_bytes"` // not by the time
}

// BenchUDP is what arrived of datagrams that were sent without holding back.
type BenchUDP struct {
	Direction string   `json:"direction"`
	Payload   int      `json:"payload_bytes"` // of each
	Sent      int64    `json:"sent"`
	Delivered int64    `json:"delivered"`
	Seconds   float64  `json:"seconds"`
	Rate      float64  `json:"delivered_per_second"`
	Loss      float64  `json:"loss_percent"`
	CPU       BenchCPU `json:"cpu"`
	Capped    bool     `json:"ended_by_max_bytes"`
}

// BenchCPU is processor time of the two daemons for each 10^9 bits of payload
// that arrived. Process is all of a daemon, the load generator or sink in it
// included; engine is its packet threads alone.
type BenchCPU struct {
	From       float64 `json:"from_process_seconds_per_gbit"`
	FromEngine float64 `json:"from_engine_seconds_per_gbit"`
	To         float64 `json:"to_process_seconds_per_gbit"`
	ToEngine   float64 `json:"to_engine_seconds_per_gbit"`
}

// Bench measures the way to another node; progress is called as it comes. When
// ctx ends, so does the measurement, on both nodes.
func (c *Client) Bench(ctx context.Context, r BenchRequest, progress func(BenchProgress)) (BenchResult, error) {
	return follow[BenchProgress, BenchResult](ctx, c, "bench", r, progress)
}

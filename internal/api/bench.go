// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
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
	Path    string       `json:"path"`
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

// benchEvent is a line of the answer to a request to measure: any number with
// progress, then one with the result or an error.
type benchEvent struct {
	Progress *BenchProgress `json:"progress,omitempty"`
	Result   *BenchResult   `json:"result,omitempty"`
	Error    string         `json:"error,omitempty"`
}

const (
	pathBench    = "bench"
	maxEventLine = 64 << 10
	// eventTime is how long a client may take to accept a line.
	eventTime = 5 * time.Second
)

// bench answers line by line. The request's context ends when the client hangs
// up.
func (s *Server) bench(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/"+pathBench, func(w http.ResponseWriter, r *http.Request) {
		var q BenchRequest
		if !decode(w, r, pathBench, &q) {
			return
		}
		// That the client hangs up is seen only once its request has been read to the end.
		_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody))
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		begun := false
		rc := http.NewResponseController(w)
		say := func(e benchEvent) {
			if !begun {
				w.Header().Set("Content-Type", "application/x-ndjson")
				begun = true
			}
			err := rc.SetWriteDeadline(time.Now().Add(eventTime))
			if err == nil {
				encode(w, e)
				err = rc.Flush()
			}
			if err != nil {
				cancel() // nobody is there any more
			}
		}
		res, err := s.svc.Bench(ctx, q, func(p BenchProgress) { say(benchEvent{Progress: &p}) })
		switch {
		case err != nil && !begun:
			answer(w, nil, err)
		case err != nil:
			say(benchEvent{Error: err.Error()})
		default:
			say(benchEvent{Result: &res})
		}
	})
}

// Bench measures the way to another node; progress is called as it comes. When
// ctx ends, so does the measurement, on both nodes.
func (c *Client) Bench(ctx context.Context, r BenchRequest, progress func(BenchProgress)) (BenchResult, error) {
	res, err := c.send(ctx, http.MethodPost, pathBench, r)
	if err != nil {
		return BenchResult{}, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		if err != nil {
			return BenchResult{}, c.brokeOff(err)
		}
		return BenchResult{}, c.refusal(res, b)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxEventLine)
	for lines.Scan() {
		var e benchEvent
		if err := json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &e); err != nil {
			return BenchResult{}, fmt.Errorf("the daemon's answer cannot be read: %w; are weft and its daemon of the same version?", err)
		}
		switch {
		case e.Error != "":
			return BenchResult{}, errors.New(e.Error)
		case e.Result != nil:
			return *e.Result, nil
		case e.Progress != nil && progress != nil:
			progress(*e.Progress)
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return BenchResult{}, c.brokeOff(err)
}

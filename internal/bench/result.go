// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math"
	"slices"
	"time"
)

// Usage is what a process has used of the processors so far.
type Usage struct {
	Process time.Duration `json:"process_ns"` // user and system, all threads, load generator and sink included
	Engine  time.Duration `json:"engine_ns"`  // of which the threads that carry packets
}

func (u Usage) since(before Usage) Usage {
	return Usage{Process: u.Process - before.Process, Engine: u.Engine - before.Engine}
}

// Figures is what one phase has shown.
type Figures struct {
	Phase
	Bytes   int64         // payload that arrived
	Elapsed time.Duration // from the first byte or packet that arrived to the last

	Sent, Delivered int64 // Packets
	P50, P99, Max   time.Duration
	Samples         int // Latency

	Here, There Usage // of the asking node's process, and the other's
	Capped      bool  // ended by the bytes, not by the time
}

// BitsPerSecond is the payload that arrived per second; 0 if none did.
func (f Figures) BitsPerSecond() float64 { return perSecond(8*f.Bytes, f.Elapsed) }

// PacketsPerSecond is the packets that arrived per second; 0 if none did.
func (f Figures) PacketsPerSecond() float64 { return perSecond(f.Delivered, f.Elapsed) }

// Loss is the part of the sent packets that did not arrive, 0 to 1.
func (f Figures) Loss() float64 {
	if f.Sent <= 0 {
		return 0
	}
	return max(0, 1-float64(f.Delivered)/float64(f.Sent))
}

func perSecond(n int64, d time.Duration) float64 {
	if n <= 0 || d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// PerGbit is the processor time for each 10^9 bits that arrived, in seconds; 0 if none did.
func PerGbit(d time.Duration, bytes int64) float64 {
	if bytes <= 0 {
		return 0
	}
	return d.Seconds() / (8 * float64(bytes) / 1e9)
}

// quantile returns the smallest sample that at least the part q of the samples,
// which are sorted, do not exceed (nearest rank); 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// summarize sorts the samples and puts their quantiles into f.
func (f *Figures) summarize(samples []time.Duration) {
	slices.Sort(samples)
	f.Samples = len(samples)
	f.P50, f.P99 = quantile(samples, 0.5), quantile(samples, 0.99)
	if len(samples) > 0 {
		f.Max = samples[len(samples)-1]
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
)

// kind is a measurement that can be asked for by -measure.
type kind string

const (
	tcpKind     kind = "tcp"     // one stream and several, CPU
	udpKind     kind = "udp"     // floods of short and of long datagrams
	latencyKind kind = "latency" // request and response, idle and beside a stream
	lossKind    kind = "loss"    // a stream while the network loses packets
	pacedKind   kind = "paced"   // the most datagrams a second of which hardly any is lost
	fairKind    kind = "fair"    // what one workload's flood leaves to others
	memoryKind  kind = "memory"  // resident memory, before and under the streams and floods
	byHandKind  kind = "byhand"  // a stream by a kernel path, in short turns with the same made by hand
)

// kinds are all of them, in the order in which they are measured.
func kinds() []kind { return append(common(), byHandKind) }

// common are those that are not for kernel paths alone.
func common() []kind {
	return []kind{tcpKind, udpKind, pacedKind, latencyKind, lossKind, fairKind, memoryKind}
}

// metric is one column of the tables.
type metric struct {
	kind   kind
	key    string // in JSON
	title  string
	digits int  // behind the point
	ratio  bool // to the others is worth a column
}

// The keys of all metrics.
const (
	oneStream   = "one_stream_gbps"
	manyStreams = "four_streams_gbps"
	cpuPerGbit  = "cpu_seconds_per_gbit"

	oneStreamCPU = "one_stream_machine_cpu_seconds_per_gbit"

	udpShort    = "udp_64_kpps"
	udpShortOut = "udp_64_lost_percent"
	udpLong     = "udp_1300_kpps"
	udpLongOut  = "udp_1300_lost_percent"
	idleP50     = "idle_p50_us"
	idleP99     = "idle_p99_us"
	loadedP50   = "loaded_p50_us"
	loadedP99   = "loaded_p99_us"
	pacedShort  = "paced_64_kpps"
	pacedLong   = "paced_1300_kpps"
	loss0       = "loss_0_gbps"
	loss1       = "loss_1_gbps"
	loss1Rel    = "loss_1_percent"
	loss5       = "loss_5_gbps"
	loss5Rel    = "loss_5_percent"
	idleRSS     = "idle_rss_mib"
	loadedRSS   = "loaded_rss_mib"

	byHandRate = "by_hand_stream_ratio"
	byHandCPU  = "by_hand_cpu_ratio"

	fairAlone     = "fair_alone_gbps"
	fairFlood     = "fair_flood_gbps"
	fairAloneP50  = "fair_alone_p50_us"
	fairFloodP50  = "fair_flood_p50_us"
	fairFloodKpps = "fair_flood_kpps"
)

// metrics are the columns in their order.
func metrics() []metric {
	return []metric{
		{tcpKind, oneStream, "1 stream, Gb/s", 2, true},
		{tcpKind, manyStreams, "4 streams, Gb/s", 2, true},
		{tcpKind, cpuPerGbit, "CPU s/Gbit", 3, false},
		{tcpKind, oneStreamCPU, "1 stream, all CPU s/Gbit", 3, true},
		{udpKind, udpShort, "64 B, kpps", 0, true},
		{udpKind, udpShortOut, "64 B lost, %", 0, false},
		{udpKind, udpLong, "1300 B, kpps", 0, true},
		{udpKind, udpLongOut, "1300 B lost, %", 0, false},
		{pacedKind, pacedShort, "64 B, kpps", 0, true},
		{pacedKind, pacedLong, "1300 B, kpps", 0, true},
		{latencyKind, idleP50, "idle p50, µs", 0, true},
		{latencyKind, idleP99, "idle p99, µs", 0, true},
		{latencyKind, loadedP50, "loaded p50, µs", 0, true},
		{latencyKind, loadedP99, "loaded p99, µs", 0, false},
		{lossKind, loss0, "no loss, Gb/s", 2, false},
		{lossKind, loss1, "1%, Gb/s", 2, true},
		{lossKind, loss1Rel, "1%, % of its own", 0, false},
		{lossKind, loss5, "5%, Gb/s", 2, true},
		{lossKind, loss5Rel, "5%, % of its own", 0, false},
		{fairKind, fairAlone, "alone, Gb/s", 2, false},
		{fairKind, fairFlood, "beside a flood, Gb/s", 2, false},
		{fairKind, fairAloneP50, "alone p50, µs", 0, false},
		{fairKind, fairFloodP50, "beside a flood p50, µs", 0, false},
		{fairKind, fairFloodKpps, "the flood, kpps", 0, false},
		{memoryKind, idleRSS, "idle RSS, MiB", 1, false},
		{memoryKind, loadedRSS, "loaded RSS, MiB", 1, false},
		{byHandKind, byHandRate, "1 stream", 2, false},
		{byHandKind, byHandCPU, "all CPU per Gbit", 2, false},
	}
}

// samples are the values of a contender's metrics, one for each round.
type samples map[string][]float64

// add notes a value.
func (s samples) add(key string, value float64) { s[key] = append(s[key], value) }

// last tells the newest value of a metric in the table's words, "" if there is none.
func (s samples) last(m metric) string {
	v := s[m.key]
	if len(v) == 0 {
		return ""
	}
	return fmt.Sprintf("%s %.*f", m.title, m.digits, v[len(v)-1])
}

// spread is the middle and the ends of a series.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func summarize(v []float64) spread {
	if len(v) == 0 {
		return spread{}
	}
	v = slices.Sorted(slices.Values(v))
	mid := len(v) / 2
	s := spread{Median: v[mid], Min: v[0], Max: v[len(v)-1]}
	if len(v)%2 == 0 {
		s.Median = (v[mid-1] + v[mid]) / 2
	}
	return s
}

// percentile returns the smallest of the sorted values that p percent of them do not exceed; zero if there are none.
func percentile[T cmp.Ordered](sorted []T, p int) T {
	if len(sorted) == 0 {
		var zero T
		return zero
	}
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

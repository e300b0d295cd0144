// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// spread is the middle and the ends of a series.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// result is one contender's line of the table.
type result struct {
	Name      string  `json:"name"`
	One       spread  `json:"one_stream_gbps"`
	Many      spread  `json:"four_streams_gbps"`
	P50       float64 `json:"latency_p50_us"`
	P99       float64 `json:"latency_p99_us"`
	Processes bool    `json:"has_processes"` // the next two mean something
	CPU       float64 `json:"cpu_seconds_per_gbit"`
	RSS       float64 `json:"rss_mib"`
	// Ratios to wireguard-go, of the medians; 0 if it was not measured.
	OneRatio     float64 `json:"one_stream_ratio"`
	ManyRatio    float64 `json:"four_streams_ratio"`
	LatencyRatio float64 `json:"latency_p50_ratio"`
}

// results sums the samples up.
func results(all []*contender) []result {
	var rows []result
	for _, c := range all {
		series := func(of func(measurement) float64) spread {
			var v []float64
			for _, m := range c.samples {
				v = append(v, of(m))
			}
			return summarize(v)
		}
		rows = append(rows, result{
			Name:      c.name,
			One:       series(func(m measurement) float64 { return m.one }),
			Many:      series(func(m measurement) float64 { return m.many }),
			P50:       series(func(m measurement) float64 { return micros(m.p50) }).Median,
			P99:       series(func(m measurement) float64 { return micros(m.p99) }).Median,
			Processes: len(c.pids()) > 0,
			CPU:       series(func(m measurement) float64 { return m.cpu }).Median,
			RSS:       series(func(m measurement) float64 { return m.rss }).Max,
		})
	}
	compare(rows)
	return rows
}

// compare fills in the ratios to wireguard-go.
func compare(rows []result) {
	i := slices.IndexFunc(rows, func(r result) bool { return r.Name == wgName })
	if i < 0 {
		return
	}
	base := rows[i]
	for i := range rows {
		r := &rows[i]
		r.OneRatio = ratio(r.One.Median, base.One.Median)
		r.ManyRatio = ratio(r.Many.Median, base.Many.Median)
		r.LatencyRatio = ratio(r.P50, base.P50)
	}
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
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

// table lays the results out in columns.
func table(rows []result) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "contender\t1 stream Gb/s\t%d streams Gb/s\tp50 µs\tp99 µs\tCPU s/Gbit\tRSS MiB\t"+
		"1 stream / wg-go\t%d / wg-go\tp50 / wg-go\t\n", streams, streams)
	for _, r := range rows {
		cpu, rss := "-", "-"
		if r.Processes {
			cpu, rss = fmt.Sprintf("%.3f", r.CPU), fmt.Sprintf("%.1f", r.RSS)
		}
		fmt.Fprintf(w, "%s\t%v\t%v\t%.0f\t%.0f\t%s\t%s\t%.2f\t%.2f\t%.2f\t\n",
			r.Name, r.One, r.Many, r.P50, r.P99, cpu, rss, r.OneRatio, r.ManyRatio, r.LatencyRatio)
	}
	if err := w.Flush(); err != nil { // a strings.Builder takes everything
		return err.Error()
	}
	return b.String()
}

// String returns the spread as the table shows it.
func (s spread) String() string { return fmt.Sprintf("%.2f (%.2f-%.2f)", s.Median, s.Min, s.Max) }

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

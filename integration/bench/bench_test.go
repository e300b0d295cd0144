// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestSummarize(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want spread
	}{
		{nil, spread{}},
		{[]float64{7}, spread{7, 7, 7}},
		{[]float64{3, 1, 2}, spread{2, 1, 3}},
		{[]float64{4, 1, 3, 2}, spread{2.5, 1, 4}},
	} {
		if got := summarize(tt.in); got != tt.want {
			t.Errorf("summarize(%v) = %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var v []int
	for i := range 200 {
		v = append(v, i+1)
	}
	for p, want := range map[int]int{0: 1, 50: 100, 99: 198, 100: 200} {
		if got := percentile(v, p); got != want {
			t.Errorf("p%d = %d, want %d", p, got, want)
		}
	}
	if got := percentile([]int(nil), 99); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
	if got := percentile([]int{5}, 99); got != 5 {
		t.Errorf("of one: %d", got)
	}
}

func TestParse(t *testing.T) {
	stat := "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 250 0 0 20"
	if got, err := parseStat(stat); err != nil || got != 4 {
		t.Errorf("parseStat: %v, %v", got, err)
	}
	if _, err := parseStat("42 (a) S 1"); err == nil {
		t.Error("a short line is accepted")
	}
	if got := field("a : b\nmodel name\t: X 1\nmodel name\t: Y\n", "model name"); got != "X 1" {
		t.Errorf("field: %q", got)
	}
}

func TestBusy(t *testing.T) {
	if got := busy([]float64{0, 0.09}, "Rates are too low"); got != nil {
		t.Errorf("idle: %q", got)
	}
	want := "The machine was busy with something else before 2 of the 3 rounds: up to 75% of its processors' time. Rates are too low, and ratios uncertain."
	if got := busy([]float64{0.5, 0, 0.75}, "Rates are too low"); !slices.Equal(got, []string{want}) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	before, err := parseProcessors("cpu  100 0 50 800 40 5 5 0 7 0\ncpu0 1 2 3\n")
	if err != nil || before != (processors{idle: 840, all: 1000}) {
		t.Errorf("%+v, %v", before, err)
	}
	for after, want := range map[processors]float64{{idle: 940, all: 1100}: 0, {idle: 890, all: 1100}: 0.5, {idle: 840, all: 1100}: 1, before: 0} {
		if got := after.used(before); got != want {
			t.Errorf("%+v: %v, want %v", after, got, want)
		}
	}
	later, err := parseProcessors("cpu  300 0 100 900 40 5 5 50 7 0\n")
	if got := later.seconds(before); err != nil || got != 2.5 || before.seconds(later) != 0 {
		t.Errorf("%v seconds, %v", got, err)
	}
	for _, bad := range []string{"", "intr 1 2 3 4 5 6 7 8 9", "cpu 1 2 3", "cpu 1 2 3 x 5 6 7 8"} {
		if p, err := parseProcessors(bad); err == nil {
			t.Errorf("%q: %+v", bad, p)
		}
	}
	// What runs is seen.
	var over atomic.Bool
	var spinner sync.WaitGroup
	spinner.Go(func() {
		for n := 0; !over.Load(); n++ {
			runtime.KeepAlive(n)
		}
	})
	defer spinner.Wait()
	defer over.Store(true)
	if used, err := look(t.Context(), 300*time.Millisecond); err != nil || used < 0.5/float64(runtime.NumCPU()) {
		t.Errorf("with one processor busy: %v, %v", used, err)
	}
}

func TestSheets(t *testing.T) {
	rows := results([]*contender{
		{name: wgName, samples: samples{oneStream: {2, 3, 1}, cpuPerGbit: {0.5}, udpShort: {100}}},
		{name: "other", samples: samples{oneStream: {3, 3, 4}}},
	})
	if r := rows[1]; r.Ratios[oneStream] != 1.5 || r.Metrics[oneStream] != (spread{3, 3, 4}) {
		t.Errorf("other: %+v", r)
	}
	var got []string
	for _, s := range sheets(rows) {
		got = append(got, s.markdown())
	}
	want := []string{
		"|  | 1 stream, Gb/s | / wg-go | CPU s/Gbit |\n|---|---:|---:|---:|\n" +
			"| wireguard-go | 2.00 (1.00-3.00) | 1.00 | 0.500 (0.500-0.500) |\n" +
			"| other | 3.00 (3.00-4.00) | 1.50 | - |\n",
		"|  | 64 B, kpps | / wg-go |\n|---|---:|---:|\n| wireguard-go | 100 (100-100) | 1.00 |\n",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-no-such-flag"}, 2, "flag provided but not defined"},
		{[]string{"-rounds", "0"}, 2, "-rounds and -seconds must be positive"},
		{[]string{"-measure", "tcp,weight"}, 2, `there is no "weight", but tcp,udp`},
		{[]string{"-contenders", "pigeons"}, 2, `there is no "pigeons", but veth,`},
		{[]string{"-weft", "/nonexistent/weft"}, 1, "stat /nonexistent/weft: no such file or directory; build it with: make bench"},
	} {
		var out, errs bytes.Buffer
		if code := run(tt.args, &out, &errs); code != tt.code || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("bench %v: code %d, %s", tt.args, code, &errs)
		}
	}
}

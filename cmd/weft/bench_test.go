// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func benchDaemon() *apitest.Daemon {
	d := daemon()
	loss := 12.5
	d.Phases = []api.BenchProgress{
		{Phase: "request/response", Elapsed: 1, Latency: &api.BenchLatency{Samples: 5000}},
		{Phase: "request/response", Elapsed: 3, Latency: &api.BenchLatency{Samples: 9000, P50: 143, P99: 12345}, Done: true},
		{Phase: "1 stream there", Elapsed: 3, Bits: 8.051e9, Done: true},
		{Phase: "small packets there", Elapsed: 1, Rate: 300000},
		{Phase: "small packets there", Elapsed: 3, Rate: 312000.4, Loss: &loss, Done: true},
	}
	d.Measured = api.BenchResult{
		From: api.BenchNode{Name: "n1", Build: "1.2.3", Address: netip.MustParseAddr("10.32.0.1")},
		To:   api.BenchNode{Name: "n2", Build: "1.2.4", Address: netip.MustParseAddr("10.40.0.0")},
		Path: "udp", Suite: "aes-256-gcm", MTU: 1408, Latency: api.BenchLatency{Samples: 9000, P50: 143.4, P99: 999, Max: 12345},
		TCP: []api.BenchTCP{
			{Direction: "there", Streams: 1, Bytes: 3e9, Seconds: 3, Bits: 8.051e9, CPU: api.BenchCPU{From: 0.1234, FromEngine: 0.1, To: 0.2, ToEngine: 0.15}},
			{Direction: "back", Streams: 4, Bytes: 3e6, Seconds: 3, Bits: 8.051e6, Capped: true},
		},
		Packets: []api.BenchUDP{{Direction: "there", Payload: 64, Sent: 8, Delivered: 7, Rate: 312000.4, Loss: 12.5, Capped: true}},
	}
	return d
}

func TestBenchPrints(t *testing.T) {
	d := benchDaemon()
	dir := apitest.Serve(t, d)
	code, out, errs := run(t, dir, "bench", "n2", "--time", "3s", "--streams", "4", "--max-bytes", "2G")
	want := `n1 (1.2.3, 10.32.0.1) to n2 (1.2.4, 10.40.0.0)
path udp, aes-256-gcm, overlay MTU 1408

MEASURED                       RESULT            NOTE                              CPU S/GBIT n1  CPU S/GBIT n2
request/response, 64 bytes     p50 143 µs        p99 999 µs, max 12.3 ms           -              -
1 TCP stream there             8.05 Gbit/s       -                                 0.123 (0.100)  0.200 (0.150)
4 TCP streams back             8.1 Mbit/s        ended by --max-bytes              0.000 (0.000)  0.000 (0.000)
UDP packets of 64 bytes there  312000 packets/s  12.5% lost, ended by --max-bytes  0.000 (0.000)  0.000 (0.000)

CPU: seconds of the weft process for each 10^9 bits of payload that arrived, making and taking the load
included; in parentheses its packet threads alone. Small packets are sent without holding back: what is lost
was more than the way carries; where next to nothing is, the sender could not make more.
`
	progress := `2/5 request/response: p50 143 µs, p99 12.3 ms
3/5 1 stream there: 8.05 Gbit/s
5/5 small packets there: 312000 packets/s, 12.5% lost
`
	if code != exitDone || out != want || errs != progress {
		t.Errorf("exit %d, printed\n%s\nwant\n%s\nprogress\n%s\nwant\n%s", code, out, want, errs, progress)
	}
	var res api.BenchResult
	code, out, _ = run(t, dir, "bench", "n2", "--json")
	if err := json.Unmarshal([]byte(out), &res); code != exitDone || err != nil || !reflect.DeepEqual(res, d.Measured) {
		t.Errorf("exit %d, %v, %s", code, err, out)
	}
	d.Measured.PathMTU = 1376
	if _, out, _ = run(t, dir, "bench", "n2"); !strings.Contains(out, "path udp, aes-256-gcm, overlay MTU 1408, path MTU 1376\n") {
		t.Errorf("printed\n%s", out)
	}
	d.Measured.Strangers = 3
	if _, out, _ = run(t, dir, "bench", "n2"); !strings.HasSuffix(out, "3 connections or datagrams that were not of this measurement were turned away.\n") {
		t.Errorf("printed\n%s", out)
	}
}

func TestBenchRefusals(t *testing.T) {
	dir := apitest.Serve(t, benchDaemon())
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"bench n9", exitFailed, "weft: no node is named n9\n"},
		{"bench", exitUsage, "weft: accepts 1 arg(s), received 0\nweft: try: weft help\n"},
		{"bench n2 --time soon", exitUsage, "weft: invalid argument \"soon\" for \"--time\" flag: time: invalid duration \"soon\"\nweft: try: weft help\n"},
		{"bench n2 --time 0s", exitUsage, "weft: --time and --streams cannot be 0; leave them out for the defaults\nweft: try: weft help\n"},
		{"bench n2 --max-bytes lots", exitUsage, "weft: --max-bytes \"lots\" is no number of bytes; give such as 500M or 32G\nweft: try: weft help\n"},
		{"bench n2 --max-bytes 0", exitUsage, "weft: --max-bytes \"0\" is no number of bytes; give such as 500M or 32G\nweft: try: weft help\n"},
	} {
		if code, out, errs := run(t, dir, strings.Fields(c.args)...); code != c.code || out != "" || errs != c.want {
			t.Errorf("weft %s: exit %d, %q, stderr\n%s\nwant\n%s", c.args, code, out, errs, c.want)
		}
	}
}

func TestBenchInterrupted(t *testing.T) {
	d := benchDaemon()
	d.Endless = make(chan struct{})
	dir := apitest.Serve(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // as Ctrl-C does
	defer cancel()
	var out, errs bytes.Buffer
	code := execute(ctx, []string{"bench", "n2", "--run-dir", dir}, env{out: &out, err: &errs, getenv: func(string) string { return "" }})
	if want := "weft: interrupted: the measurement ends on both nodes\n"; code != exitFailed || out.Len() > 0 || !strings.HasSuffix(errs.String(), want) {
		t.Errorf("exit %d, %q, stderr %q", code, out.String(), errs.String())
	}
	select {
	case <-d.Endless:
	case <-time.After(5 * time.Second):
		t.Error("the daemon goes on")
	}
}

func TestBenchLiveProgress(t *testing.T) {
	var w bytes.Buffer
	b := benchProgress{w: &w, live: true}
	for i, p := range benchDaemon().Phases[:2] {
		p.Step, p.Steps = i+1, 2
		b.print(p)
	}
	b.print(api.BenchProgress{Phase: "1 stream back", Step: 3, Steps: 7, Bits: 5e5})
	b.end()
	want := "\r\x1b[K1/2 request/response: 5000 requests\r\x1b[K2/2 request/response: p50 143 µs, p99 12.3 ms\n" +
		"\r\x1b[K3/7 1 stream back: 500.0 kbit/s\r\x1b[K"
	if w.String() != want {
		t.Errorf("got  %q\nwant %q", w.String(), want)
	}
}

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]int64{"": 0, "1": 1, "64K": 64 << 10, "500M": 500 << 20, "32G": 32 << 30, "1T": 1 << 40} {
		if n, err := parseBytes(s); err != nil || n != want {
			t.Errorf("%q: %d, %v", s, n, err)
		}
	}
	for _, s := range []string{"x", "K", "-1", "0", "1.5G", "9999999999T", "1 G", "99999999999999999999"} {
		if n, err := parseBytes(s); err == nil {
			t.Errorf("%q: %d", s, n)
		}
	}
}

func TestCompleteNodes(t *testing.T) {
	dir := apitest.Serve(t, daemon())
	for args, want := range map[string]string{
		"bench n":    "n2\nn4\n:4\n", // node-three has failed
		"bench x":    ":4\n",
		"bench n2 n": ":4\n",
	} {
		if code, out, _ := run(t, dir, append([]string{"__completeNoDesc"}, strings.Fields(args)...)...); code != exitDone || out != want {
			t.Errorf("%s: exit %d, %q, want %q", args, code, out, want)
		}
	}
}

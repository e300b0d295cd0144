// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// The measurements of UDP start this program anew as the sender.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if run := part(os.Args[1]); run != nil {
			os.Exit(run(os.Args[2:], os.Stdout, os.Stderr))
		}
	}
	os.Exit(m.Run())
}

// bareLink is a benchmark that has no contender but the bare link.
func bareLink(t *testing.T) (*bench, *contender) {
	t.Helper()
	b := &bench{ctx: t.Context(), options: options{length: 200 * time.Millisecond}}
	l := lab.New(t)
	lan := l.Switch("switch")
	b.hosts = [hosts]*lab.Host{l.Host("host1", lan), l.Host("host2", lan)}
	b.third = l.Host("host3", lan)
	c, err := b.plain()
	if err != nil {
		t.Fatal(err)
	}
	return b, c
}

func TestUDP(t *testing.T) {
	b, c := bareLink(t)
	const rate = 5000
	for _, lost := range []float64{0, 0.5} {
		b.hosts[1].Link().Lose(lost)
		d, err := udp(b.ctx, c, shortBytes, rate, b.length)
		if err != nil {
			t.Fatal(err)
		}
		// Each of them is lost by chance.
		deviation := math.Sqrt(lost * (1 - lost) / float64(d.sent))
		if math.Abs(d.loss-lost) > 0.01+6*deviation {
			t.Errorf("%.2f of %d are lost, the link loses %.2f", d.loss, d.sent, lost)
		}
		if d.offered > rate*1.01 {
			t.Errorf("offers %.0f a second instead of %d", d.offered, rate)
		}
	}
	b.hosts[1].Link().Lose(0)
	if d, err := udp(b.ctx, c, longBytes, 0, b.length); err != nil || d.sent < floodBatch {
		t.Errorf("without a limit: %+v, %v", d, err)
	}
}

func TestTurn(t *testing.T) {
	b, c := bareLink(t)
	b.measure = without(common(), pacedKind)
	if err := b.turn(c); err != nil {
		t.Fatal(err)
	}
	for _, m := range metrics() {
		want := 1
		if m.kind == pacedKind || m.kind == memoryKind || m.kind == byHandKind || m.key == cpuPerGbit { // not asked for; the bare link has no process
			want = 0
		}
		if got := len(c.samples[m.key]); got != want {
			t.Errorf("%s has %d values, not %d", m.key, got, want)
		}
	}
	if d, err := udp(b.ctx, c, shortBytes, 1000, b.length); err != nil || d.loss > 0.01 {
		t.Errorf("the link still loses %.2f: %v", d.loss, err)
	}
}

// The search comes close to what a link takes that loses what is too much, and finds nothing on one that always loses.
func TestSearch(t *testing.T) {
	for _, tt := range []struct{ takes, sends, loses float64 }{
		{100_000, 400_000, 0},
		{100_000, 100_000, 0}, // the sender is what cannot do more
		{3_000, 1_000_000, 0},
		{100_000, 400_000, 0.02},
	} {
		got, err := search(func(rate float64) (datagrams, error) {
			if rate == 0 || rate > tt.sends {
				rate = tt.sends
			}
			arrive := min(rate, tt.takes) * (1 - tt.loses)
			return datagrams{offered: rate, rate: arrive, loss: 1 - arrive/rate}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if tt.loses > 0 {
			if got != 0 {
				t.Errorf("%+v: %.0f", tt, got)
			}
		} else if got < tt.takes*0.9 || got > tt.takes*1.01 {
			t.Errorf("%+v: %.0f", tt, got)
		}
	}
	if got, err := search(func(rate float64) (datagrams, error) {
		if rate > 0 {
			return datagrams{}, errNothing
		}
		return datagrams{offered: 1000, rate: 1000}, nil
	}); got != 0 || err != nil {
		t.Errorf("nothing arrives: %.0f, %v", got, err)
	}
}

// What loss relies on: hosts send single frames when told so, and the measurement would notice if they did not.
func TestFrames(t *testing.T) {
	b, c := bareLink(t)
	send := func() float64 {
		before, err := b.sentFrames()
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream(b.ctx, c, 1, b.length)
		for n := 0; n < 20 && errors.Is(err, errSilent); n++ { // the machine is busy
			_, err = stream(b.ctx, c, 1, b.length)
		}
		if err != nil {
			t.Fatal(err)
		}
		after, err := b.sentFrames()
		if err != nil {
			t.Fatal(err)
		}
		return after.sub(before).mean()
	}
	if mean := send(); mean <= wireFrame {
		t.Errorf("offloaded: %.0f bytes on average", mean)
	}
	b.hosts[0].Link().Segmented()
	if mean := send(); mean > wireFrame || mean < wireFrame/2 {
		t.Errorf("segmented: %.0f bytes on average", mean)
	}
	b.hosts[0].Link().Whole()
	if mean := send(); mean <= wireFrame {
		t.Errorf("whole again: %.0f bytes on average", mean)
	}
}

func TestFloodUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-speed", "1"}, 2, "flag provided but not defined"},
		{[]string{"-to", "here"}, 1, "bench flood: not an ip:port"},
		{[]string{"-to", "127.0.0.1:9", "-size", "0"}, 1, "bench flood: size must be positive and rate not negative"},
	} {
		var out, errs strings.Builder
		if code := flood(tt.args, &out, &errs); code != tt.code || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("flood %v: code %d, %s", tt.args, code, errs.String())
		}
	}
}

func TestPingUsage(t *testing.T) {
	for _, tt := range []struct {
		part string
		args []string
		code int
		want string
	}{
		{pingCommand, []string{"-speed", "1"}, 2, "flag provided but not defined"},
		{pingCommand, []string{"-to", "here"}, 1, "bench ping: dial tcp: address here: missing port in address"},
		{pongCommand, []string{"-speed", "1"}, 2, "flag provided but not defined"},
		{pongCommand, []string{"-at", "here"}, 1, "bench pong: listen tcp: address here: missing port in address"},
	} {
		var out, errs strings.Builder
		if code := part(tt.part)(tt.args, &out, &errs); code != tt.code || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("%s %v: code %d, %s", tt.part, tt.args, code, errs.String())
		}
	}
}

func TestDocument(t *testing.T) {
	d := document{
		date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), machine: "a machine", versions: []string{"weft 1"}, notes: []string{"a note"},
		rounds: 3, length: 2 * time.Second, took: time.Minute,
		rows: results([]*contender{
			{name: weftName, samples: samples{oneStream: {8}, idleP50: {90}}},
			{name: wgName, samples: samples{oneStream: {4}}},
		}),
	}
	text := d.markdown()
	for _, want := range []string{
		"# Benchmarks\n", "* 2 January 2026\n* a machine\n* weft 1\n* a note\n* 3 rounds, 2s a measurement, 1m0s in all\n",
		"|  | weft / wireguard-go |\n|---|---:|\n| TCP streams: 1 stream, Gb/s | 2.00 |\n\n",
		"## TCP streams\n\n|  | 1 stream, Gb/s | / wg-go |\n", "## Latency of request and response\n\n|  | idle p50, µs |\n", "## Method\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

// What is compared with something made by hand is so in turns, with ratios of all of them.
func TestByHand(t *testing.T) {
	b, c := bareLink(t)
	same := *c
	same.samples = samples{}
	c.name, same.name = weftDirect, routedVeth
	pairByHand([]*contender{c, &same})
	if c.hand != &same || !slices.Contains(c.kinds, byHandKind) || same.hand != nil {
		t.Fatalf("%+v", c)
	}
	if err := b.byTurns(c, 2); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{byHandRate, byHandCPU} {
		if v := c.samples[key]; len(v) != 1 || v[0] < 0.2 || v[0] > 5 { // it is the same link
			t.Errorf("%s: %v", key, v)
		}
	}
}

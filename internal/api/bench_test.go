// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func benching() *apitest.Daemon {
	return &apitest.Daemon{
		Nodes: []api.Peer{{Name: "n2"}},
		Phases: []api.BenchProgress{
			{Phase: "request/response", Elapsed: 3, Latency: &api.BenchLatency{Samples: 9, P50: 143}, Done: true},
			{Phase: "1 stream there", Elapsed: 1, Bits: 8e9},
		},
		Measured: api.BenchResult{
			From: api.BenchNode{Name: "n1"}, To: api.BenchNode{Name: "n2"}, Path: "udp",
			TCP: []api.BenchTCP{{Direction: "there", Streams: 1, Bits: 8e9, CPU: api.BenchCPU{From: 0.1}}}, Packets: []api.BenchUDP{},
		},
	}
}

func TestBench(t *testing.T) {
	d := benching()
	c := api.NewClient(apitest.Serve(t, d))
	var told []api.BenchProgress
	res, err := c.Bench(t.Context(), api.BenchRequest{Node: "n2"}, func(p api.BenchProgress) { told = append(told, p) })
	if err != nil || !reflect.DeepEqual(res, d.Measured) {
		t.Errorf("%+v, %v", res, err)
	}
	if len(told) != 2 || told[0].Latency.P50 != 143 || told[1] != (api.BenchProgress{Phase: "1 stream there", Step: 2, Steps: 2, Elapsed: 1, Bits: 8e9}) {
		t.Errorf("told %+v", told)
	}
	if _, err := c.Bench(t.Context(), api.BenchRequest{Node: "n9"}, nil); err == nil || err.Error() != "no node is named n9" {
		t.Errorf("refused before it began: %v", err)
	}
	d.Broken = "node n2 is gone"
	if _, err := c.Bench(t.Context(), api.BenchRequest{Node: "n2"}, nil); err == nil || err.Error() != d.Broken {
		t.Errorf("broken off in the middle: %v", err)
	}
}

// A client that hangs up ends the measurement.
func TestBenchEndsWithItsClient(t *testing.T) {
	d := benching()
	d.Endless = make(chan struct{})
	c := api.NewClient(apitest.Serve(t, d))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Bench(ctx, api.BenchRequest{Node: "n2"}, func(p api.BenchProgress) {
		if p.Step == p.Steps {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the client says %v", err)
	}
	select {
	case <-d.Endless:
	case <-time.After(5 * time.Second):
		t.Error("the daemon goes on measuring")
	}
}

// So does the end of the daemon.
func TestBenchEndsWithItsDaemon(t *testing.T) {
	d := benching()
	d.Endless = make(chan struct{})
	c := api.NewClient(apitest.Serve(t, d))
	_, err := c.Bench(t.Context(), api.BenchRequest{Node: "n2"}, func(p api.BenchProgress) {
		if p.Step == p.Steps {
			d.Stop(api.StopRequest{})
		}
	})
	if err == nil || err.Error() != context.Canceled.Error() {
		t.Errorf("the client is told %v", err)
	}
}

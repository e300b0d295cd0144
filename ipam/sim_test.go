// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The simulator runs whole clusters of allocators in one goroutine, over a network, clocks and disks that misbehave. All
// decisions are drawn from one seed, so a run can be repeated: what it prints when it fails says how.
//
//	sim_test.go        the tests
//	simrun_test.go     what a run consists of, and what may go wrong in it
//	simnet_test.go     the network and who seems to be alive
//	simnode_test.go    a node: start, crash, disk, clock
//	simcalls_test.go   what its users do
//	simcheck_test.go   what must hold after every step
//	simsettle_test.go  what must hold when nothing goes wrong any more
//	simcrash_test.go   crashes at every commit of a run, one after another
var (
	simSeed  = flag.Uint64("sim.seed", 0, "run only this seed of TestSimulation, and print what happens")
	simFirst = flag.Uint64("sim.first", 1, "the first seed of TestSimulation")
	simRuns  = flag.Uint64("sim.runs", 300, "how many seeds TestSimulation runs")
	simSoak  = flag.Duration("sim.soak", 0, "how long TestSimulationSoak runs; 0: not at all")
)

func TestSimulation(t *testing.T) {
	if s, err := strconv.ParseUint(os.Getenv("WEFT_SIM_SEED"), 10, 64); err == nil {
		*simSeed = s
	}
	if *simSeed != 0 {
		if s := simulate(*simSeed, os.Stderr); s.err != nil {
			t.Fatalf("seed %d, step %d: %v", *simSeed, s.step, s.err)
		}
		return
	}
	c := campaign{first: *simFirst, runs: *simRuns}
	c.run(t)
	t.Log(c.report())
	if c.retired.Load() == 0 || c.granted.Load() == 0 {
		t.Error("no run had a grant, or no run a retirement")
	}
}

// TestSimulationSoak runs new seeds for as long as it is told to, until a run fails.
func TestSimulationSoak(t *testing.T) {
	if *simSoak <= 0 {
		return // make soak
	}
	c := campaign{first: uint64(time.Now().UnixNano()) / 1000, end: time.Now().Add(*simSoak), report1: time.Minute}
	fmt.Printf("the first seed is %d\n", c.first)
	c.run(t)
	fmt.Println(c.report())
}

// A run depends on its seed alone.
func TestSimulationIsDeterministic(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		var traces [2]bytes.Buffer
		for i := range traces {
			simulate(seed, &traces[i])
		}
		x, y := strings.Split(traces[0].String(), "\n"), strings.Split(traces[1].String(), "\n")
		for i := range min(len(x), len(y)) {
			if x[i] != y[i] {
				t.Fatalf("seed %d, line %d: %s, and then %s", seed, i, x[i], y[i])
			}
		}
		if len(x) != len(y) {
			t.Fatalf("seed %d: %d lines, and then %d", seed, len(x), len(y))
		}
	}
}

// campaign runs many seeds, on all processors.
type campaign struct {
	first   uint64
	runs    uint64    // how many; 0: until end
	end     time.Time // when the last run begins
	report1 time.Duration

	began                                    time.Time
	next, done, steps, retired, granted, big atomic.Uint64
	failed                                   atomic.Bool
}

func (c *campaign) run(t *testing.T) {
	c.began = time.Now()
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !c.failed.Load() && c.more() {
				c.one(t, c.first+c.next.Add(1)-1)
			}
		})
	}
	stop := make(chan struct{})
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		if c.report1 == 0 {
			return
		}
		tick := time.NewTicker(c.report1)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				fmt.Println(c.report())
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-reported
}

func (c *campaign) more() bool {
	if c.runs > 0 {
		return c.next.Load() < c.runs
	}
	return time.Now().Before(c.end)
}

// one runs a seed, and repeats it with a trace if it fails.
func (c *campaign) one(t *testing.T, seed uint64) {
	s := simulate(seed, nil)
	c.done.Add(1)
	c.steps.Add(uint64(s.step))
	c.retired.Add(uint64(len(s.log)))
	c.granted.Add(uint64(len(s.handed)))
	if len(s.nodes) > 12 {
		c.big.Add(1)
	}
	if s.err != nil && !c.failed.Swap(true) {
		t.Errorf("%s", explain(seed))
	}
}

func (c *campaign) report() string {
	d := time.Since(c.began)
	return fmt.Sprintf("%v: %d seeds, %d of them of more than 12 nodes; %d steps, %.0f in a minute; %d nodes retired",
		d.Round(time.Second), c.done.Load(), c.big.Load(), c.steps.Load(), float64(c.steps.Load())/d.Minutes(), c.retired.Load())
}

// simulate runs a seed. trace may be nil.
func simulate(seed uint64, trace io.Writer) *sim {
	s := newSim(seed)
	s.trace = trace
	s.run()
	return s
}

// explain repeats a run that failed and returns how it came to that.
func explain(seed uint64) string {
	var trace bytes.Buffer
	s := simulate(seed, &trace)
	lines := strings.Split(strings.TrimSpace(trace.String()), "\n")
	const most = 60
	if n := len(lines); n > most {
		lines = append([]string{lines[0], fmt.Sprintf("... %d lines ...", n-most)}, lines[n-most:]...)
	}
	return fmt.Sprintf("seed %d, step %d: %v\n%s\nall of it: go test ./ipam -run '^TestSimulation$' -sim.seed=%d",
		seed, s.step, s.err, strings.Join(lines, "\n"), seed)
}

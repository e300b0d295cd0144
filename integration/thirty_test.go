// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestThirty has many daemons on one machine, with -soak thirty, of which a third is killed and launched again, several times over. All pairs of workloads talk
// after each time, and no daemon ever has more memory than it may.
func TestThirty(t *testing.T) {
	nodes, rounds := 12, 2
	if *soak {
		nodes, rounds = 30, 10
	}
	l := lab.New(t)
	lan := l.Switch("lan")
	var hosts []*lab.Host
	for i := range nodes {
		hosts = append(hosts, l.Host(fmt.Sprintf("node%02d", i+1), lan))
	}
	start := time.Now()
	hosts[0].Launch("--range", lab.DefaultRange)
	ready := func(some []*lab.Host) {
		t.Helper()
		for _, h := range some {
			if err := h.WaitReady(time.Minute); err != nil {
				t.Fatal(err)
			}
		}
	}
	ready(hosts[:1])
	secret := hosts[0].Token()
	for _, h := range hosts[1:] {
		h.Join(secret, hosts[:3], "--range", lab.DefaultRange)
	}
	ready(hosts)
	workloads := attach(t, nodes, hosts...)
	t.Logf("%d daemons are up after %v", nodes, time.Since(start).Round(time.Millisecond))
	everyPair := func(when string) {
		t.Helper()
		start := time.Now()
		if err := allPairs(time.Minute, workloads); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		t.Logf("%s: all %d pairs of workloads talk after %v", when, nodes*(nodes-1)/2, time.Since(start).Round(time.Millisecond))
	}
	everyPair("at first")
	for round := range rounds {
		var killed []*lab.Host
		for _, i := range rand.Perm(nodes)[:nodes/3] {
			hosts[i].Kill()
			killed = append(killed, hosts[i])
		}
		time.Sleep(time.Duration(rand.IntN(5000)) * time.Millisecond) // some are noticed, some are not
		for _, h := range killed {
			h.Relaunch()
		}
		ready(killed)
		everyPair(fmt.Sprintf("round %d", round+1))
		eventually(t, time.Minute, func() error { return seenAlive(hosts...) })
	}
	var highest, sum int
	for _, h := range hosts {
		now, most := memory(t, h.Daemon().Pid())
		highest, sum = max(highest, most), sum+now
		if most > mostMemory {
			t.Errorf("%s had %.1f MiB in memory, more than %d", h.Name(), float64(most)/(1<<20), mostMemory>>20)
		}
	}
	t.Logf("a daemon had %.1f MiB at most, %.1f MiB on average now", float64(highest)/(1<<20), float64(sum/nodes)/(1<<20))
	if _, err := sameRing(hosts...); err != nil {
		t.Error(err)
	}
}

// allPairs checks that all workloads reach each other, several at a time.
func allPairs(within time.Duration, workloads []*lab.Workload) error {
	const workers = 4
	deadline := time.Now().Add(within)
	errs := make([]error, workers)
	var wait sync.WaitGroup
	for k := range workers {
		wait.Go(func() {
			for i := k; i < len(workloads) && errs[k] == nil; i += workers {
				for _, to := range workloads {
					for _, a := range to.Addrs() {
						if to == workloads[i] || errs[k] != nil {
							continue
						}
						_, errs[k] = workloads[i].Reach(a, max(time.Until(deadline), time.Second))
					}
				}
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

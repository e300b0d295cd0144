// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// resumed is how long after its launch a daemon's workloads may need to be reachable again.
const resumed = 3 * time.Second

// healed is how long after the end of a partition all workloads may need to reach each other.
const healed = 10 * time.Second

// TestRestart ends a daemon in three ways and starts it again with the same flags. Its workloads are not touched.
func TestRestart(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *lab.Host)
	}{
		{"kill -9", func(_ *testing.T, h *lab.Host) { h.Kill() }},
		{"SIGTERM", func(t *testing.T, h *lab.Host) {
			if code := h.Terminate(); code != 0 {
				t.Errorf("exit code %d after SIGTERM", code)
			}
		}},
		{"weft stop", func(t *testing.T, h *lab.Host) { done(t, h.Weft("stop")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := lab.Mesh(t, 3, lab.PerHost(2))
			allReach(t, patience, m.Workloads...)
			h := m.Hosts()[1]
			local := m.Workloads[2:4]
			remote := []*lab.Workload{m.Workloads[0], m.Workloads[4]}
			before := ask[[]workload](t, h, "ps")
			hostBefore := snapshot(t, h.Namespace)

			tt.end(t, h)
			leaks := m.Capture(h.Namespace, h.Link().Device(), 0)
			allReach(t, silence, local...) // the host's own workloads need no daemon
			for _, r := range remote {
				for _, a := range r.Addrs() {
					unreachable(t, local[0].Namespace, a)
				}
			}
			leaks.Stop()
			noPlaintext(t, leaks, addrs(m.Workloads...))
			same(t, "host without its daemon", hostBefore, snapshot(t, h.Namespace))

			start := time.Now()
			h.Relaunch()
			for _, r := range remote {
				for _, w := range local {
					for _, a := range w.Addrs() {
						if _, err := r.Reach(a, resumed-time.Since(start)); err != nil {
							t.Fatalf("after the launch: %v", err)
						}
					}
				}
			}
			t.Logf("all reachable %v after the launch", time.Since(start).Round(time.Millisecond))
			if err := h.WaitReady(patience); err != nil {
				t.Fatal(err)
			}
			allReach(t, patience, m.Workloads...)
			after := ask[[]workload](t, h, "ps")
			if !slices.EqualFunc(before, after, func(a, b workload) bool {
				return a.ID == b.ID && slices.Equal(a.Addresses, b.Addresses) && a.HostIf == b.HostIf && b.State == "up"
			}) {
				t.Errorf("workloads before: %+v\nafter: %+v", before, after)
			}
			same(t, "host after the restart", hostBefore, snapshot(t, h.Namespace))
		})
	}
}

// noPlaintext checks that no frame holds one of the addresses.
func noPlaintext(t *testing.T, c *lab.Capture, addresses []netip.Addr) {
	t.Helper()
	for _, a := range addresses {
		if n := c.Count(a.AsSlice()); n != 0 {
			t.Errorf("%d frames on the underlay hold the overlay's address %v in clear", n, a)
		}
	}
}

// TestWorkloadGoneMeanwhile deletes a workload's namespace while no daemon runs: the next one gives its address back.
func TestWorkloadGoneMeanwhile(t *testing.T) {
	m := lab.Mesh(t, 1, lab.PerHost(2))
	h := m.Hosts()[0]
	h.Kill()
	m.Workloads[0].Delete()
	h.Relaunch()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	// The kernel removes a namespace in the background, so the daemon may find out only when it looks again.
	eventually(t, 2*time.Minute, func() error {
		ps := ask[[]workload](t, h, "ps")
		s := ask[space](t, h, "ipam")
		if len(ps) != 1 || ps[0].Netns != m.Workloads[1].Path() || len(s.Allocations) != 2 {
			return fmt.Errorf("workloads %+v, allocations %+v", ps, s.Allocations)
		}
		return nil
	})
}

// TestPartition cuts one host off. Both sides go on attaching, and are one again after it.
func TestPartition(t *testing.T) {
	m := lab.Mesh(t, 3)
	allReach(t, patience, m.Workloads...)
	hosts := m.Hosts()
	m.Segment.Partition([]*lab.Link{hosts[2].Link()})
	unreachable(t, m.Workloads[0].Namespace, m.Workloads[2].V4)

	workloads := slices.Clone(m.Workloads)
	attach := func() {
		t.Helper()
		for _, h := range hosts {
			w := h.Workload(fmt.Sprintf("during%d", len(workloads)))
			w.Attach()
			workloads = append(workloads, w)
		}
	}
	attach()
	eventually(t, time.Minute, func() error { // both sides have noticed
		for i, want := range []int{2, 2, 1} {
			if s := ask[status](t, hosts[i], "status"); s.Nodes.Alive != want {
				return fmt.Errorf("%s counts %d nodes as alive, not %d", hosts[i].Name(), s.Nodes.Alive, want)
			}
		}
		return nil
	})
	attach()
	allReach(t, patience, workloads[3], workloads[4], workloads[6], workloads[7]) // on the side of the majority
	allReach(t, patience, workloads[5], workloads[8])

	m.Segment.Heal()
	allReach(t, healed, workloads...)
	distinct(t, addrs(workloads...))
	eventually(t, patience, func() error {
		for _, h := range hosts {
			if s := ask[status](t, h, "status"); s.Nodes.Alive != 3 {
				return fmt.Errorf("%s counts %d nodes as alive", h.Name(), s.Nodes.Alive)
			}
		}
		return nil
	})
}

// TestLinkDown pulls the plug of a host for a moment, under a running transfer.
func TestLinkDown(t *testing.T) {
	m := lab.Mesh(t, 2)
	allReach(t, patience, m.Workloads...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	result := make(chan error, 1)
	a, b := m.Workloads[0], m.Workloads[1]
	go func() {
		_, err := m.Transfer(ctx, a.Namespace, b.Namespace, b.V4, 512<<20)
		result <- err
	}()
	time.Sleep(silence)
	m.Hosts()[1].Link().Down()
	time.Sleep(2 * time.Second)
	m.Hosts()[1].Link().Up()
	if err := <-result; err != nil {
		t.Error(err)
	}
	allReach(t, healed, m.Workloads...)
}

// TestLoss moves data over a link that loses packets.
func TestLoss(t *testing.T) {
	m := lab.Mesh(t, 2)
	for _, h := range m.Hosts() {
		h.Link().Segmented()
	}
	m.Hosts()[1].Link().Lose(0.02)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, b := m.Workloads[0], m.Workloads[1]
	if _, err := m.TransferSum(ctx, a.Namespace, b.Namespace, b.V4, 8<<20); err != nil {
		t.Error(err)
	}
}

// TestTwoDaemons starts a second daemon in the network namespace of the first.
func TestTwoDaemons(t *testing.T) {
	m := lab.Mesh(t, 1)
	h := m.Hosts()[0]
	before := snapshot(t, h.Namespace)
	s := ask[status](t, h, "status")
	dir := t.TempDir()
	r := h.Weft("launch", "--name", "second", "--data-dir", dir+"/data", "--run-dir", dir+"/run", "--port", "7000")
	refused(t, r, fmt.Sprint(s.PID), s.Socket)
	if !strings.HasPrefix(s.Socket, h.RunDir()) || s.PID != h.Daemon().Pid() {
		t.Errorf("status tells pid %d and socket %s", s.PID, s.Socket)
	}
	same(t, "host", before, snapshot(t, h.Namespace))
	if left := files(t, dir); left != "" {
		t.Errorf("the second daemon left:\n%s", left)
	}
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestChurn attaches and detaches a thousand times, several at once. Every tenth namespace is deleted without a detach
// before. Nothing of it stays.
func TestChurn(t *testing.T) {
	const workers, cycles, deleteEvery = 4, 250, 10
	m := lab.Mesh(t, 1)
	h := m.Hosts()[0]
	before := snapshot(t, h.Namespace)
	allocations := len(ask[space](t, h, "ipam").Allocations)
	open := descriptors(t, h.Daemon().Pid())

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	errs := make(chan error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for c := range cycles {
				if err := cycle(ctx, m.Lab, h, fmt.Sprintf("w%d.%d", i, c), c%deleteEvery == 0); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	// What the kernel frees in the background takes its time.
	eventually(t, patience, func() error {
		if d := diff(before, snapshot(t, h.Namespace)); len(d) != 0 {
			return fmt.Errorf("left on the host:\n%s", strings.Join(d, "\n"))
		}
		if n := descriptors(t, h.Daemon().Pid()); n > open+10 {
			return fmt.Errorf("the daemon has %d open files, had %d", n, open)
		}
		return nil
	})
	if s := ask[space](t, h, "ipam"); len(s.Allocations) != allocations {
		t.Errorf("%d allocations, were %d: %+v", len(s.Allocations), allocations, s.Allocations)
	}
	if ps := ask[[]workload](t, h, "ps"); len(ps) != len(m.Workloads) {
		t.Errorf("%d workloads, want %d", len(ps), len(m.Workloads))
	}
}

// cycle attaches a new namespace and detaches it.
func cycle(ctx context.Context, l *lab.Lab, h *lab.Host, name string, deleteFirst bool) error {
	n, err := l.TryNamespace(name)
	if err != nil {
		return err
	}
	defer n.Delete()
	path := n.Path()
	for _, verb := range []string{"attach", "detach"} {
		if verb == "detach" && deleteFirst {
			n.Delete()
		}
		r, err := h.TryWeft(ctx, verb, "--netns", path)
		if err != nil {
			return err
		}
		if r.Code != 0 {
			return fmt.Errorf("%s %s: exit code %d: %s", verb, name, r.Code, r.Stderr)
		}
	}
	return nil
}

// descriptors counts the open files of a process.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

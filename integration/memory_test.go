// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// mostMemory is what a daemon may have in memory under load, in bytes.
const mostMemory = 40 << 20

// TestMemory moves data in both directions, by several streams, and looks at how much memory the daemons have.
func TestMemory(t *testing.T) {
	for _, shards := range []int{2, 8} {
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			m := lab.Mesh(t, 2, lab.Flags("--shards", fmt.Sprint(shards)))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			a, b := m.Workloads[0], m.Workloads[1]
			var streams sync.WaitGroup
			for range 3 {
				for _, x := range [][2]*lab.Workload{{a, b}, {b, a}} {
					streams.Go(func() {
						if _, err := m.Transfer(ctx, x[0].Namespace, x[1].Namespace, x[1].V4, 128<<20); err != nil {
							t.Error(err)
						}
					})
				}
			}
			streams.Wait()
			for _, h := range m.Hosts() {
				now, most := memory(t, h.Daemon().Pid())
				t.Logf("%s: %.1f MiB, %.1f MiB at most", h.Name(), float64(now)/(1<<20), float64(most)/(1<<20))
				if most > mostMemory {
					t.Errorf("%s had %d bytes in memory, more than %d", h.Name(), most, mostMemory)
				}
			}
		})
	}
}

// memory returns how many bytes a process has in memory, and the most it ever had.
func memory(t *testing.T, pid int) (now, most int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch {
		case name != "VmRSS" && name != "VmHWM":
		case err != nil:
			t.Fatalf("%q: %v", line, err)
		case name == "VmRSS":
			now = kib << 10
		default:
			most = kib << 10
		}
	}
	return now, most
}

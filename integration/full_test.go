// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestFullRange fills a range of sixteen addresses on three hosts. Every one that may be handed out is; what is asked for
// beyond is refused at once, by an error that names the holders; and one address that is given back and has rested makes
// the next request succeed, on any host.
func TestFullRange(t *testing.T) {
	const (
		capacity   = 14 // of 16, without the first and the last
		atOnce     = 100 * time.Millisecond
		quarantine = 3 * time.Second
	)
	m := founders(t, 3, "--range", "10.32.0.0/28", "--quarantine", quarantine.String())
	hosts := m.Hosts()
	workloads := attach(t, capacity-len(hosts), hosts...)
	all := addrs(workloads...)
	for _, h := range hosts {
		all = append(all, ask[status](t, h, "status").Addresses...)
	}
	distinct(t, all)
	if len(all) != capacity {
		t.Errorf("%d addresses are held", len(all))
	}

	// What a command takes that asks nobody else is not the request's.
	timed := func(h *lab.Host, args ...string) (lab.Result, time.Duration) {
		start := time.Now()
		r := h.Weft(args...)
		return r, time.Since(start)
	}
	var base []time.Duration
	for range 9 {
		_, took := timed(hosts[0], "ps")
		base = append(base, took)
	}
	slices.Sort(base)
	extra := hosts[0].Workload("extra")
	var quickest time.Duration
	for i, h := range hosts {
		w := extra
		if i > 0 {
			w = h.Workload("extra")
		}
		r, took := timed(h, "attach", "--netns", w.Path())
		if i == 0 || took < quickest {
			quickest = took
		}
		refused(t, r, "no address left in 10.32.0.0/28: 14 of 14 in use (", "host1 ", "host2 ", "host3 ", "; detach workloads or start a mesh with a larger range")
		t.Logf("the first request too many on %s: refused after %v, of which weft ps takes %v: %s",
			h.Name(), took.Round(100*time.Microsecond), base[len(base)/2].Round(100*time.Microsecond), strings.TrimSpace(r.Stderr))
	}
	// Each of the three was the first one on its host; a machine that is busy with something else may delay one or two of them.
	if took := quickest - base[len(base)/2]; took > atOnce {
		t.Errorf("refused after %v, not %v", took, atOnce)
	}

	free := workloads[1]
	if free.Host() == hosts[0] {
		t.Fatalf("the workload is on %s", hosts[0].Name())
	}
	free.Detach()
	start := time.Now()
	time.Sleep(silence) // what the others have just said may be repeated for a moment
	r := hosts[0].Weft("attach", "--netns", extra.Path())
	if time.Since(start) < quarantine {
		refused(t, r, "13 of 14 in use (", "1 resting after their release (host2 1)")
	}
	eventually(t, patience, func() error { return extra.TryAttach() })
	took := time.Since(start)
	if took < quarantine-time.Second/2 || extra.V4 != free.V4 {
		t.Errorf("attached with %v after %v; %v was given back", extra.V4, took, free.V4)
	}
	t.Logf("%v of %s, given back, is in use on %s after %v; it rests for %v", free.V4, free.Host().Name(), extra.Host().Name(), took.Round(time.Millisecond), quarantine)
	allReach(t, patience, append([]*lab.Workload{extra, workloads[0]}, workloads[2:]...)...)
	if r := hosts[1].Weft("attach", "--netns", hosts[1].Workload("again").Path()); r.Code == 0 {
		t.Errorf("one more than there are: %s", r.Stdout)
	}
}

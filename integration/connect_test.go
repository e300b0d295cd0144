// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestConnect tells a running node by whom to join, and takes it back; both are kept over a restart.
func TestConnect(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	a, b, nobody := l.Host("a", lan), l.Host("b", lan), l.Host("nobody", lan)
	a.Launch("--range", lab.DefaultRange)
	if err := a.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	target := func(h *lab.Host, of *lab.Host) (string, bool) {
		var s status
		if err := h.Query(&s, "status"); err != nil {
			return err.Error(), false
		}
		targets := s.Targets
		i := slices.IndexFunc(targets, func(x struct {
			Host  string `json:"host"`
			State string `json:"state"`
		},
		) bool {
			return strings.HasPrefix(x.Host, of.Link().V4().String())
		})
		if i < 0 {
			return "", false
		}
		return targets[i].State, true
	}

	b.Join(a.Token(), []*lab.Host{a}, "--range", lab.DefaultRange)
	if err := b.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	workloads := attach(t, 2, a, b)
	allReach(t, patience, workloads...)
	// The founder, which was told nothing, is told of the other one, and of one that does not answer.
	done(t, a.Weft("connect", b.Link().V4().String(), nobody.Link().V4().String()))
	eventually(t, patience, func() error {
		joined, _ := target(a, b)
		waiting, _ := target(a, nobody)
		if joined != "joined" || !strings.HasPrefix(waiting, "waiting") {
			return fmt.Errorf("the targets that were given at run time: %q and %q", joined, waiting)
		}
		return nil
	})
	refused(t, a.Weft("connect", "not/a/host"), "not/a/host")
	refused(t, a.Weft("disconnect", "198.51.100.77"), "198.51.100.77")

	restart := func() {
		t.Helper()
		a.Kill()
		a.Launch("--range", lab.DefaultRange)
		if err := a.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
	}
	restart()
	allReach(t, patience, workloads...)
	for _, h := range []*lab.Host{b, nobody} {
		if _, ok := target(a, h); !ok {
			t.Errorf("the target %s was forgotten over a restart", h.Name())
		}
	}
	done(t, a.Weft("disconnect", nobody.Link().V4().String()))
	restart()
	if state, ok := target(a, nobody); ok {
		t.Errorf("the target that was taken back is there again after a restart: %q", state)
	}
	if _, ok := target(a, b); !ok {
		t.Error("the other one was forgotten")
	}
	allReach(t, patience, workloads...)
}

// TestClone launches a daemon with a copy of another host's data directory, as on a cloned machine, while the other one runs and after it was restarted.
// The copy is refused with what to do; what was copied goes on undisturbed.
func TestClone(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 2)
	hosts := m.Hosts()
	clone := m.Host("clone", m.Segment)
	allReach(t, patience, m.Workloads...)
	calmFrom := steady(t, hosts...)
	done(t, hosts[1].Weft("status"))
	copyDir(t, clone.DataDir(), hosts[1].DataDir())
	all := talk(t, m.Lab, pairs(m.Workloads...)...)
	since := time.Now()
	clone.Launch("--range", lab.DefaultRange)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case <-clone.Daemon().Done():
	case <-ctx.Done():
		eventually(t, patience, func() error {
			s := ask[status](t, clone, "status")
			said := s.WaitsFor + strings.Join(s.Warnings, " ")
			for _, x := range s.Targets {
				said += x.State
			}
			if s.Ready || !strings.Contains(said, "copy") || !strings.Contains(said, "weft reset") {
				return fmt.Errorf("the clone: %+v", s)
			}
			return nil
		})
	}
	if !clone.Running() {
		log := clone.Log()
		if !strings.Contains(log, "copy") || !strings.Contains(log, "weft reset") {
			t.Errorf("the clone was refused with:\n%s", log)
		}
		t.Logf("refused after %v", time.Since(since).Round(time.Millisecond))
	} else {
		clone.Kill()
	}
	all.within(t, "beside a clone", since, time.Second, hosts...)
	all.stop(t)
	calmFrom.still(t, hosts)

	// What it was told helps.
	done(t, clone.Weft("reset", "--data-dir", clone.DataDir()))
	clone.Join(m.Token, hosts[:1], "--range", lab.DefaultRange)
	if err := clone.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	allReach(t, patience, append(attach(t, 1, clone), m.Workloads...)...)
}

// copyDir copies a directory of files with their modes.
func copyDir(t *testing.T, to, from string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err == nil {
		err = os.Mkdir(to, 0o700)
	}
	for _, e := range entries {
		var b []byte
		if b, err = os.ReadFile(filepath.Join(from, e.Name())); err == nil {
			err = os.WriteFile(filepath.Join(to, e.Name()), b, 0o600)
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

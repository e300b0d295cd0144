// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// TestFullDisk fills the disk of a data directory below a running daemon. Workloads are refused then, or attached for good; nothing
// is done by half, and the daemon goes on by itself when there is room again.
func TestFullDisk(t *testing.T) {
	l := lab.New(t)
	h := l.Host("h", l.Switch("lan"))
	disk := l.SmallDisk(1 << 20)
	h.Launch("--data-dir", filepath.Join(disk, "data"))
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	pid := ask[status](t, h, "status").PID
	var all []*lab.Workload
	have := map[string]netip.Addr{}
	attach := func() (refusal lab.Result, w *lab.Workload) {
		t.Helper()
		w = h.Workload(fmt.Sprint("w", len(all)))
		all = append(all, w)
		before, mine := settled(t, h.Namespace), snapshot(t, w.Namespace)
		if r := h.Weft("attach", "--netns", w.Path()); r.Code != 0 {
			same(t, "the host after an attach that was refused", before, settled(t, h.Namespace))
			same(t, "the workload that was not attached", mine, snapshot(t, w.Namespace))
			return r, w
		}
		w.Attach() // again: the same answer
		have[w.Path()] = w.Addrs()[0]
		return lab.Result{}, w
	}
	// attached compares what the daemon says with what it answered for.
	attached := func(when string) {
		t.Helper()
		list := ask[[]workload](t, h, "ps")
		for _, w := range list {
			if w.Addresses[0] != have[w.Netns] {
				t.Errorf("%s %s has %v, was given %v", when, w.Netns, w.Addresses, have[w.Netns])
			}
		}
		if allocated := ask[space](t, h, "ipam").Allocations; len(list) != len(have) || len(allocated) != len(have)+1 {
			t.Errorf("%s %d workloads and %d addresses, with the host's; want %d workloads", when, len(list), len(allocated), len(have))
		}
	}
	for range 4 {
		if r, _ := attach(); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
	}
	for round := range 3 {
		fill(t, filepath.Join(disk, "filler"))
		var r lab.Result
		for range 100 { // the file itself may have some room
			if r, _ = attach(); r.Code != 0 {
				break
			}
		}
		refused(t, r, "saving to "+filepath.Join(disk, "data"), "the disk is full (no space left on device)", "nothing was changed: free some space there and try again")
		attached("on a full disk")
		// A detach that cannot be kept is refused, too, and succeeds when there is room.
		leaving := all[round]
		r = h.Weft("detach", "--netns", leaving.Path())
		t.Logf("detach on a full disk: exit code %d", r.Code)
		if r.Code != 0 {
			refused(t, r, "saving to "+filepath.Join(disk, "data"), "the disk is full (no space left on device)")
			attached("after a detach on a full disk")
		} else {
			delete(have, leaving.Path())
		}
		if s := ask[status](t, h, "status"); s.PID != pid || !s.Ready {
			t.Errorf("on a full disk: %+v", s)
		}
		if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
			t.Fatal(err)
		}
		done(t, h.Weft("detach", "--netns", leaving.Path()))
		delete(have, leaving.Path())
		r, w := attach()
		if r.Code != 0 {
			t.Fatalf("with room again: %s", r.Stderr)
		}
		allReach(t, patience, w, all[3])
		done(t, h.Weft("detach", "--netns", w.Path()))
		delete(have, w.Path())
		attached(fmt.Sprint("after round ", round))
		distinct(t, slices.Collect(maps.Values(have)))
	}
	h.Kill()
	h.Relaunch()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	attached("after a crash")
}

// settled is snapshot without the link-local addresses, which the kernel gives to the veths of workloads that were attached some
// time after it.
func settled(t *testing.T, n *lab.Namespace) []string {
	t.Helper()
	return slices.DeleteFunc(snapshot(t, n), func(line string) bool { return strings.Contains(line, "fe80::") })
}

// TestDamagedState damages a node's state. The node does not start any more, which is said each time, until somebody decides:
// the copy of the stopped node makes it the same node again, reset a new one.
func TestDamagedState(t *testing.T) {
	l := lab.New(t)
	h := l.Host("h", l.Switch("lan"))
	w := h.Workload("w")
	h.Launch()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	w.Attach()
	had := w.Addrs()
	id := ask[status](t, h, "status").NodeID
	h.Terminate()
	file := filepath.Join(h.DataDir(), "weft.db")
	good, err := os.ReadFile(filepath.Clean(file))
	if err != nil {
		t.Fatal(err)
	}
	damage(t, h.DataDir())
	first := h.RunLaunch()
	refusedLaunch(t, first, "is corrupt", "kept as weft.db.corrupt-", "put a copy there as weft.db that was made after this node ran last", "weft reset")
	if again := h.RunLaunch(); again.Stderr != first.Stderr {
		t.Errorf("the second launch says %s\nthe first said %s", again.Stderr, first.Stderr)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Relaunch()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	if s := ask[status](t, h, "status"); s.NodeID != id {
		t.Errorf("with the copy it is node %s, was %s", s.NodeID, id)
	}
	if ps := ask[[]workload](t, h, "ps"); len(ps) != 1 || !slices.Equal(ps[0].Addresses, had) {
		t.Errorf("with the copy: %+v, had %v", ps, had)
	}
	h.Terminate()
	damage(t, h.DataDir())
	if err := os.Rename(file, file+".corrupt-20261231T235959Z"); err != nil { // and damaged a second time
		t.Fatal(err)
	}
	refusedLaunch(t, h.RunLaunch(), "kept as weft.db.corrupt-20261231T235959Z")
	out := done(t, h.Weft("reset", "--data-dir", h.DataDir()))
	if _, err := os.Stat(h.DataDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reset left the data directory: %v\n%s", err, out)
	}
	h.Relaunch()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	if s := ask[status](t, h, "status"); s.NodeID == id {
		t.Error("after the reset it is the same node")
	}
}

// fill makes a file that leaves no room on its disk.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(filepath.Clean(path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for b := make([]byte, os.Getpagesize()); err == nil; {
		_, err = f.Write(b)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

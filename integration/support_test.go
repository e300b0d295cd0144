// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

const (
	// patience is how long something may take that has no limit of its own.
	patience = 20 * time.Second
	// silence is how long to wait before saying that nothing comes.
	silence = 300 * time.Millisecond
)

// status is what the tests read of `weft status --json`.
type status struct {
	Phase     string       `json:"phase"`
	Ready     bool         `json:"ready"`
	WaitsFor  string       `json:"waits_for"`
	NodeID    string       `json:"node_id"`
	PID       int          `json:"pid"`
	Socket    string       `json:"socket"`
	MTU       int          `json:"mtu"`
	Device    string       `json:"device"`
	TUN       string       `json:"tun"`
	Shards    int          `json:"shards"`
	Offloads  []string     `json:"offloads"`
	Addresses []netip.Addr `json:"addresses"`
	Nodes     struct {
		Total int `json:"total"`
		Alive int `json:"alive"`
	} `json:"nodes"`
	Workloads int `json:"workloads"`
	Targets   []struct {
		Host  string `json:"host"`
		State string `json:"state"`
	} `json:"targets"`
	Warnings []string `json:"warnings"`
	Reach    struct {
		Blocked []string `json:"blocked"`
	} `json:"reach"`
}

// workload is a row of `weft ps --json`.
type workload struct {
	ID        string       `json:"id"`
	Netns     string       `json:"netns"`
	IfName    string       `json:"ifname"`
	HostIf    string       `json:"host_if"`
	Addresses []netip.Addr `json:"addresses"`
	MTU       int          `json:"mtu"`
	State     string       `json:"state"`
	CNI       struct {
		Network      string `json:"network"`
		ContainerID  string `json:"container_id"`
		PodNamespace string `json:"pod_namespace"`
		PodName      string `json:"pod_name"`
	} `json:"cni"`
}

// holding is one node's part of the range, in `weft ipam --json`.
type holding struct {
	Node     string         `json:"node"`
	NodeID   string         `json:"node_id"`
	Slots    uint64         `json:"slots"`
	Prefixes []netip.Prefix `json:"prefixes"`
}

// space is what the tests read of `weft ipam --json`.
type space struct {
	Size        uint64    `json:"size"`
	Reserve     string    `json:"reserve"`
	Reserved    uint64    `json:"reserved"`
	Holdings    []holding `json:"holdings"`
	Allocations []struct {
		Owner     string       `json:"owner"`
		Addresses []netip.Addr `json:"addresses"`
	} `json:"allocations"`
	Free        uint64 `json:"free"`
	Quarantined uint64 `json:"quarantined"`
	Pending     uint64 `json:"pending"`
	Takeovers   []struct {
		Node string `json:"node"`
		Text string `json:"text"`
	} `json:"takeovers"`
	Retirements []struct {
		NodeID string `json:"node_id"`
		Heir   string `json:"heir"`
		HeirID string `json:"heir_id"`
		Forced bool   `json:"forced"`
	} `json:"retirements"`
}

// ask runs a command with --json on the host.
func ask[T any](t *testing.T, h *lab.Host, args ...string) T {
	t.Helper()
	var v T
	if err := h.Query(&v, args...); err != nil {
		t.Fatal(err)
	}
	return v
}

// eventually waits until f says that all is well; what it says otherwise ends up in the failure.
func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// allReach checks that all pairs of workloads reach each other in time.
func allReach(t *testing.T, within time.Duration, workloads ...*lab.Workload) {
	t.Helper()
	took, err := lab.AllReach(within, workloads...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("all pairs of %d workloads reach each other after %v", len(workloads), took.Round(time.Millisecond))
}

// unreachable checks that the workload cannot reach an address.
func unreachable(t *testing.T, from *lab.Namespace, to netip.Addr) {
	t.Helper()
	if _, err := from.Ping(lab.Ping{To: to, Timeout: silence}); err == nil {
		t.Errorf("%s reaches %v", from.Name(), to)
	}
}

// snapshot describes the network configuration of a namespace.
func snapshot(t *testing.T, n *lab.Namespace) []string {
	t.Helper()
	s, err := n.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// same compares two snapshots and shows what differs.
func same(t *testing.T, what string, before, after []string) {
	t.Helper()
	for _, l := range diff(before, after) {
		t.Errorf("%s: %s", what, l)
	}
}

// diff returns the lines that only one of the snapshots has.
func diff(before, after []string) []string {
	var out []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			out = append(out, "gone: "+l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			out = append(out, "new: "+l)
		}
	}
	return out
}

// files lists the files below a directory with their sizes and modes, "" if there is no directory.
func files(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintf(&b, "%s %v %d\n", p, info.Mode(), info.Size())
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return b.String()
}

// refused checks that a command was refused with exit code 1, nothing on standard output and one line on standard error
// that has all the parts.
func refused(t *testing.T, r lab.Result, parts ...string) {
	t.Helper()
	if strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("more or less than one line on stderr:\n%s", r.Stderr)
	}
	refusedLaunch(t, r, parts...)
}

// refusedLaunch is refused for a daemon, which may have written to its log, which is on standard error too, before.
func refusedLaunch(t *testing.T, r lab.Result, parts ...string) {
	t.Helper()
	var said []string
	for line := range strings.Lines(r.Stderr) {
		if strings.HasPrefix(line, "weft: ") {
			said = append(said, line)
		}
	}
	if r.Code != 1 || r.Stdout != "" || len(said) != 1 {
		t.Errorf("exit code %d, stdout %q, stderr:\n%s\nwant exit code 1 and one line with the reason", r.Code, r.Stdout, r.Stderr)
		return
	}
	for _, p := range parts {
		if !strings.Contains(said[0], p) {
			t.Errorf("refused with %q, which lacks %q", said[0], p)
		}
	}
}

// done checks that a command ended well and returns what it printed.
func done(t *testing.T, r lab.Result) string {
	t.Helper()
	if r.Code != 0 || r.Stderr != "" {
		t.Fatalf("exit code %d, stderr %q", r.Code, r.Stderr)
	}
	return r.Stdout
}

// token makes a token for a mesh that does not exist yet.
func token(t *testing.T, h *lab.Host) string {
	t.Helper()
	return strings.TrimSpace(done(t, h.Weft("token", "--generate")))
}

// addrs returns all addresses of the workloads.
func addrs(workloads ...*lab.Workload) []netip.Addr {
	var out []netip.Addr
	for _, w := range workloads {
		out = append(out, w.Addrs()...)
	}
	return out
}

// distinct checks that no address is there twice.
func distinct(t *testing.T, all []netip.Addr) {
	t.Helper()
	seen := map[netip.Addr]bool{}
	for _, a := range all {
		if seen[a] {
			t.Errorf("%v is held twice", a)
		}
		seen[a] = true
	}
}

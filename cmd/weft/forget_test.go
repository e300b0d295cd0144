// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

const warned = "weft: warning: --force asks for no majority: if the other side of a partition does the same, both sides give the same " +
	"addresses out twice; use it only if the nodes that do not answer are gone for good\n"

func forgetDaemon() *apitest.Daemon {
	d := daemon()
	at := time.Date(2026, 11, 21, 15, 4, 5, 0, time.FixedZone("CET", 3600))
	gone := api.Retirement{
		Node: "node-three", NodeID: "00000000000000a3", Heir: "n2", HeirID: "00000000000000a2", By: "n1", ByID: "00000000000000a1", At: at,
	}
	d.Progress = []string{
		"takeover of node-three: 41% of the range has voted, 51% needed, waiting for node5",
		"takeover of node-three: decided, n2 takes over 4096 addresses",
	}
	d.Forgotten.Forgotten = []api.Forgotten{{Retirement: gone, Addresses: 4096}}
	forced := gone
	forced.Node, forced.Forced = "node-four", true
	d.Space.Retirements = []api.Retirement{gone, forced}
	d.Space.Takeovers = []api.Takeover{{Node: "node-six", Text: "takeover of node-six: 10% of the range has voted, 51% needed, waiting for node5"}}
	d.History = []string{"10.32.0.5 was given to n1", "here it is free"}
	d.Garbage = []api.Garbage{
		{Owner: "net:[1]/eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.7"), netip.MustParseAddr("fd00::7")}, Netns: "/run/netns/a", Reason: "its namespace is gone"},
		{Owner: "net:[2]/eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.8")}, Reason: "no workload is attached under this name"},
	}
	return d
}

func TestForget(t *testing.T) {
	d := forgetDaemon()
	dir := apitest.Serve(t, d)
	progress := strings.Join(d.Progress, "\n") + "\n"
	code, out, errs := run(t, dir, "forget", "node-three")
	if code != exitDone || out != "n2 took over 4096 addresses of node-three\n" || errs != progress {
		t.Errorf("exit %d, %q, stderr %q", code, out, errs)
	}
	code, out, errs = run(t, dir, "forget", "node-three", "--json")
	var res api.ForgetResult
	if err := json.Unmarshal([]byte(out), &res); code != exitDone || err != nil || len(res.Forgotten) != 1 || res.Forgotten[0].Addresses != 4096 ||
		!res.Forgotten[0].At.Equal(d.Forgotten.Forgotten[0].At) || errs != progress {
		t.Errorf("exit %d, %v, %s, stderr %q", code, err, out, errs)
	}
	d.Forgotten.Forgotten[0].Forced = true
	d.Forgotten.Forgotten = append(d.Forgotten.Forgotten, api.Forgotten{Retirement: api.Retirement{Node: "seed", Heir: "n2"}})
	code, out, errs = run(t, dir, "forget", "node-three", "--force")
	want := "n2 took over 4096 addresses of node-three (decided without a majority)\nseed is retired; it had no addresses left\n"
	if code != exitDone || out != want || errs != warned+progress {
		t.Errorf("exit %d, %q, stderr %q", code, out, errs)
	}
	if code, _, errs := run(t, dir, "forget", "n2"); code != exitFailed || errs != "weft: node n2 answers\n" {
		t.Errorf("a node that is alive: exit %d, %q", code, errs)
	}
	if code, _, errs := run(t, dir, "forget", "n2", "--yes-it-is-gone"); code != exitDone || errs != progress {
		t.Errorf("a node that is alive, and gone all the same: exit %d, %q", code, errs)
	}
	d.Broken = "no disk is left"
	if code, out, errs := run(t, dir, "forget", "node-three"); code != exitFailed || out != "" || errs != progress+"weft: no disk is left\n" {
		t.Errorf("broken off: exit %d, %q, %q", code, out, errs)
	}
	for args, want := range map[string]string{
		"forget":                       "accepts 1 arg(s), received 0",
		"forget a b":                   "accepts 1 arg(s), received 2",
		"forget a --now":               "unknown flag: --now",
		"leave --drain --force":        "--drain and --force exclude each other; give one of them",
		"ipam explain":                 "accepts 1 arg(s), received 0",
		"ipam explain there":           `"there" is no IP address`,
		"ipam gc now":                  `unknown command "now" for "weft ipam gc"`,
		"ipam frobnicate":              `unknown command "frobnicate" for "weft ipam"`,
		"launch --reclaim-after never": `invalid argument "never" for "--reclaim-after" flag: time: invalid duration "never"`,
	} {
		if code, out, errs := run(t, dir, strings.Fields(args)...); code != exitUsage || out != "" || errs != "weft: "+want+"\nweft: try: weft help\n" {
			t.Errorf("weft %s: exit %d, stdout %q, stderr\n%swant\nweft: %s", args, code, out, errs, want)
		}
	}
}

// interrupted runs a command that goes on for ever, as if Ctrl-C came after a while, and returns what it says.
func interrupted(t *testing.T, d *apitest.Daemon, args ...string) (code int, out, errs string) {
	t.Helper()
	d.Endless = make(chan struct{})
	dir := apitest.Serve(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var o, e bytes.Buffer
	code = execute(ctx, append(args, "--run-dir", dir), env{out: &o, err: &e, getenv: func(string) string { return "" }})
	select {
	case <-d.Endless:
	case <-time.After(5 * time.Second):
		t.Error("the daemon goes on")
	}
	return code, o.String(), e.String()
}

func TestForgetInterrupted(t *testing.T) {
	code, out, errs := interrupted(t, forgetDaemon(), "forget", "node-three")
	want := "weft: interrupted: this node does no more to have node-three forgotten; what has been voted so far stands, so other nodes may complete it, and weft forget node-three goes on with it\n"
	if code != exitFailed || out != "" || !strings.HasSuffix(errs, "\n"+want) {
		t.Errorf("exit %d, %q, stderr %q", code, out, errs)
	}
}

func TestDrainInterrupted(t *testing.T) {
	d := daemon()
	d.Progress = []string{"waiting until 1 workload is detached (/run/netns/a)"}
	code, out, errs := interrupted(t, d, "leave", "--drain")
	want := d.Progress[0] + "\nweft: interrupted: the drain has ended, and this node goes on as before\n"
	if code != exitFailed || out != "" || errs != want {
		t.Errorf("exit %d, %q, stderr %q", code, out, errs)
	}
}

func TestDrain(t *testing.T) {
	d := daemon()
	d.Progress = []string{"waiting until 1 workload is detached (/run/netns/a)"}
	d.Left = api.LeaveResult{Granted: []api.Grant{{To: "n2", Addresses: 12}}}
	code, out, errs := run(t, apitest.Serve(t, d), "leave", "--drain")
	if code != exitDone || out != "12 addresses went to n2\n" || errs != d.Progress[0]+"\ngiving the addresses away\n" {
		t.Errorf("exit %d, %q, stderr %q", code, out, errs)
	}
}

func TestIPAMShowsReclaim(t *testing.T) {
	dir := apitest.Serve(t, forgetDaemon())
	code, out, errs := run(t, dir, "ipam")
	want := `
ALLOCATED TO  ADDRESSES
host          10.32.0.1

DECLARED GONE  NODEID            HEIR  BY  AT                       DECIDED
node-three     00000000000000a3  n2    n1  2026-11-21 14:04:05 UTC  by a majority
node-four      00000000000000a3  n2    n1  2026-11-21 14:04:05 UTC  by force
takeover of node-six: 10% of the range has voted, 51% needed, waiting for node5
note: something waits
`
	if code != exitDone || errs != "" || !strings.HasSuffix(out, want) {
		t.Errorf("exit %d, %q, printed\n%s", code, errs, out)
	}
	code, out, _ = run(t, dir, "ipam", "--json")
	var space api.IPAM
	if err := json.Unmarshal([]byte(out), &space); code != exitDone || err != nil || len(space.Retirements) != 2 || len(space.Takeovers) != 1 {
		t.Errorf("exit %d, %v, %s", code, err, out)
	}
}

func TestIPAMExplain(t *testing.T) {
	d := forgetDaemon()
	dir := apitest.Serve(t, d)
	if code, out, errs := run(t, dir, "ipam", "explain", "10.32.0.5"); code != exitDone || errs != "" || out != "10.32.0.5 was given to n1\nhere it is free\n" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	code, out, _ := run(t, dir, "ipam", "explain", "10.32.0.5", "--json")
	var e api.Explanation
	if err := json.Unmarshal([]byte(out), &e); code != exitDone || err != nil || !reflect.DeepEqual(e, api.Explanation{Address: netip.MustParseAddr("10.32.0.5"), Lines: d.History}) {
		t.Errorf("exit %d, %v, %s", code, err, out)
	}
	d.Refuse = "address 192.0.2.1 lies outside"
	if code, out, errs := run(t, dir, "ipam", "explain", "192.0.2.1"); code != exitFailed || out != "" || errs != "weft: address 192.0.2.1 lies outside\n" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

func TestIPAMGC(t *testing.T) {
	d := forgetDaemon()
	dir := apitest.Serve(t, d)
	lines := "10.32.0.7 fd00::7 of /run/netns/a: its namespace is gone\n" + "WOULD 10.32.0.8 of net:[2]/eth0: no workload is attached under this name\n"
	dry := "would release " + strings.Replace(lines, "WOULD", "would release", 1)
	for _, args := range []string{"ipam gc --dry-run", "ipam gc --dry-run"} {
		if code, out, errs := run(t, dir, strings.Fields(args)...); code != exitDone || out != dry || errs != "" {
			t.Errorf("weft %s: exit %d, %q, %q", args, code, out, errs)
		}
	}
	if code, out, errs := run(t, dir, "ipam", "gc", "--json", "--dry-run"); code != exitDone || !strings.Contains(out, `"reason": "its namespace is gone"`) || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	if code, out, errs := run(t, dir, "ipam", "gc"); code != exitDone || out != strings.ReplaceAll(dry, "would release", "released") || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	if code, out, errs := run(t, dir, "ipam", "gc"); code != exitDone || out != "nothing to release: every address is in use\n" || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

// Nodes that are done with are listed on demand only, in a table and in JSON.
func TestPeersAll(t *testing.T) {
	d := daemon()
	d.Nodes = append(d.Nodes, api.Peer{Name: "n7", State: "retired", Gone: true}, api.Peer{Name: "n8", State: "retired"})
	dir := apitest.Serve(t, d)
	for args, want := range map[string]string{
		"peers": "n2 n4 node-three n8", "peers --json": "n2 n4 node-three n8", "peers --all": "n2 n4 node-three n7 n8", "peers --all --json": "n2 n4 node-three n7 n8",
	} {
		code, out, errs := run(t, dir, strings.Fields(args)...)
		var names []string
		for _, n := range []string{"n2", "n4", "node-three", "n7", "n8"} {
			if strings.Contains(out, `"name": "`+n+`"`) || strings.Contains(out, "\n"+n+" ") {
				names = append(names, n)
			}
		}
		if got := strings.Join(names, " "); code != exitDone || errs != "" || got != want {
			t.Errorf("weft %s: exit %d, %q, lists %s, want %s", args, code, errs, got, want)
		}
	}
	// Completion names whom one would forget.
	for args, want := range map[string]string{"forget n": "node-three\n:4\n", "forget x": ":4\n", "forget n2 n": ":4\n"} {
		if code, out, _ := run(t, dir, append([]string{"__completeNoDesc"}, strings.Fields(args)...)...); code != exitDone || out != want {
			t.Errorf("%s: exit %d, %q, want %q", args, code, out, want)
		}
	}
}

func TestRetiredStatus(t *testing.T) {
	d := daemon()
	d.State.Phase, d.State.WaitsFor = api.Retired, "this node was declared gone by n1"
	code, out, errs := run(t, apitest.Serve(t, d), "status")
	if code != exitDone || errs != "" || !strings.Contains(out, "\nstate:         retired: this node was declared gone by n1\n") {
		t.Errorf("exit %d, %q, printed\n%s", code, errs, out)
	}
}

func TestForgottenOfOneName(t *testing.T) {
	f := api.Forgotten{Retirement: api.Retirement{Node: "n2", NodeID: "00000000000000a1", Heir: "n2", HeirID: "00000000000000a2"}, Addresses: 7}
	if got, want := forgotten(f), "n2 (00000000000000a2) took over 7 addresses of n2 (00000000000000a1)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Whoever switches it on reads what it does to nodes that are well.
func TestReclaimAfterSaysWhomItHits(t *testing.T) {
	code, out, _ := run(t, t.TempDir(), "launch", "--help")
	out = strings.Join(strings.Fields(out), " ")
	if want := "also if they are only cut off or stopped (weft stop), as weft forget does: they have to be reset"; code != exitDone || !strings.Contains(out, want) {
		t.Errorf("exit %d, printed\n%s", code, out)
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func eventsDaemon() *apitest.Daemon {
	d := daemon()
	at := time.Date(2026, 11, 21, 15, 4, 5, 0, time.FixedZone("CET", 3600))
	d.Happened = []api.EventsProgress{
		{Event: &api.Event{Seq: 7, Time: at, Kind: "start", Node: "n1", NodeID: "00000000000000a1", Text: "weft 1 starts on n1"}},
		{Event: &api.Event{Seq: 8, Time: at.Add(time.Minute), Kind: "fail", Node: "n2", NodeID: "00000000000000a2", Text: "n2 does not answer", Cause: "no answer from 192.0.2.2:6783 since 15:05:01"}},
		{Skipped: 3, Event: &api.Event{Seq: 12, Time: at.Add(time.Hour), Kind: "takeover", Text: "this node took over 8 addresses"}},
	}
	return d
}

const (
	line7  = "2026-11-21 15:04:05+01:00  start     weft 1 starts on n1\n"
	line8  = "2026-11-21 15:05:05+01:00  fail      n2 does not answer (no answer from 192.0.2.2:6783 since 15:05:01)\n"
	line12 = "2026-11-21 16:04:05+01:00  takeover  this node took over 8 addresses\n"
	missed = "3 events were skipped: they came faster than they were read\n"
)

func TestEvents(t *testing.T) {
	dir := apitest.Serve(t, eventsDaemon())
	for _, c := range []struct{ args, out, errs string }{
		{"events", line7 + line8 + line12, missed},
		{"events -n 2", line8 + line12, missed},
		{"events -n 0", "", ""},
		{"events --follow", line7 + line8 + line12, missed},
		{"events -f -n 1", line12, missed},
	} {
		if code, out, errs := run(t, dir, strings.Fields(c.args)...); code != exitDone || out != c.out || errs != c.errs {
			t.Errorf("weft %s: exit %d\n%q\n%q", c.args, code, out, errs)
		}
	}
	code, out, errs := run(t, dir, "events", "-n", "-1")
	if code != exitUsage || out != "" || errs != "weft: -n -1 is negative; give a number of events, or leave it out\nweft: try: weft help\n" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

func TestEventsAsJSON(t *testing.T) {
	dir := apitest.Serve(t, eventsDaemon())
	fields := func(m map[string]any) string {
		var names []string
		for _, f := range []string{"seq", "time", "kind", "node", "node_id", "text", "cause"} {
			if _, ok := m[f]; ok {
				names = append(names, f)
			}
		}
		if len(m) != len(names) {
			t.Errorf("more fields than %v: %v", names, m)
		}
		return strings.Join(names, " ")
	}
	const all = "seq time kind node node_id text cause"
	var list []map[string]any
	code, out, _ := run(t, dir, "events", "--json")
	if err := json.Unmarshal([]byte(out), &list); code != exitDone || err != nil || len(list) != 3 || fields(list[0]) != all || list[1]["kind"] != "fail" {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	code, out, _ = run(t, dir, "events", "--json", "--follow")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var one map[string]any
	if err := json.Unmarshal([]byte(lines[2]), &one); code != exitDone || err != nil || len(lines) != 3 || fields(one) != all || one["seq"] != 12.0 {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	d := daemon()
	if code, out, _ := run(t, apitest.Serve(t, d), "events", "--json"); code != exitDone || out != "[]\n" {
		t.Errorf("no events: exit %d, %q", code, out)
	}
}

// Ctrl-C is how following ends, and the daemon notices it.
func TestFollowingEndsWithCtrlC(t *testing.T) {
	d := eventsDaemon()
	d.Endless = make(chan struct{})
	dir := apitest.Serve(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	var o, e bytes.Buffer
	done := make(chan int)
	go func() {
		done <- execute(ctx, []string{"events", "--follow", "--run-dir", dir}, env{out: &o, err: &e, getenv: func(string) string { return "" }})
	}()
	time.AfterFunc(100*time.Millisecond, cancel)
	if code := <-done; code != exitDone {
		t.Errorf("exit %d, %s", code, e.String())
	}
	select {
	case <-d.Endless:
	case <-time.After(10 * time.Second):
		t.Error("the daemon goes on")
	}
}

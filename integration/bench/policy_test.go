// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// The benchmark of policies runs to its end, with few of all. It measures nothing here.
func TestPolicyBench(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out.md")
	var out, errs bytes.Buffer
	code := policyMain([]string{
		"-weft", weftBinary(t), "-policies", "1000", "-workloads", "14", "-rounds", "1", "-applies", "2", "-labels", "1", "-seconds", "0.1", "-o", file,
	}, &out, &errs)
	if code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, &errs, &out)
	}
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\n| 1000 policies in force, s | < 2 | ", "touched by labels | 0 | ", "\n| policies / none | ", "\n| none / none, untracked | ", "## On one host\n",
		"\n| to labels that nobody has | ",
	} {
		if !strings.Contains(string(doc), want) {
			t.Errorf("the document has no %q:\n%s", want, doc)
		}
	}
}

func TestPolicyText(t *testing.T) {
	for _, n := range []int{leastPolicies, 100, 10_000} {
		text := policyText(n)
		if got := strings.Count(text, "\nkind: NetworkPolicy\n"); got != n {
			t.Errorf("%d policies, not %d", got, n)
		}
		if len(text) > 6<<20 {
			t.Errorf("%d policies have %d bytes, more than a mesh takes", n, len(text))
		}
		names := map[string]bool{}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "metadata:") {
				names[line] = true
			}
		}
		if len(names) != n {
			t.Errorf("%d names for %d policies", len(names), n)
		}
	}
	// Each shape occurs, for each application.
	text := policyText(10_000)
	for _, want := range []string{"ipBlock", "except", "endPort", "namespaceSelector", "matchExpressions", "port: web", "SCTP", "UDP", "2001:db8:", "app: a4"} {
		if strings.Count(text, want) < 100 {
			t.Errorf("%q occurs %d times", want, strings.Count(text, want))
		}
	}
}

// A workload's other application is one whose workloads have all other labels alike.
func TestOtherLabels(t *testing.T) {
	for s := range spot(100) {
		found := false
		for o := range spot(100) {
			found = found || o > serverAt && o.space() == s.space() && o.app() == s.other() && o.tier() == s.tier()
		}
		if !found || s.other() == s.app() {
			t.Errorf("%s of %s: nobody is as %s", s.app(), s.space(), s.other())
		}
	}
}

func TestTouched(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd77::1")}
	key := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	var got touched
	got.add(lab.RuleChange{Others: 2, Elements: []lab.Element{
		{Set: "current-a", Key: []byte{2}},
		{Set: "ids4", Key: key("10.32.0.1")},
		{Set: "self6", Key: append(key("fd77::1"), key("fd77::1")...)},
		{Set: "ids4", Key: key("10.32.0.2")},
		{Set: "egress6", Key: key("fd77::2")},
		{Set: "cells", Key: key("10.32.0.1")},
		{Set: "blocks4", Key: key("10.32.0.0")},
	}}, own)
	if want := (touched{own: 2, foreign: 2, verdicts: 2, phases: 1, others: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestPolicySheets(t *testing.T) {
	of := func(name string, rate float64) *variant {
		v := &variant{name: name, pairs: []pair{{name: acrossName}, {name: nearName}}, samples: map[string]samples{acrossName: {}, nearName: {}}}
		for _, m := range wayMetrics() {
			v.samples[acrossName].add(m.key, rate)
			v.samples[acrossName].add(m.key, 4*rate)
		}
		return v
	}
	policies := of(policiesName, 2)
	policies.samples[acrossName][wayCalls] = []float64{1, 4}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	r := policyReport{
		options: policyOptions{policies: 70, workloads: 20},
		times: enactTimes{
			returned: []float64{1}, inForce: [hosts][]float64{{1, 3}, {2, 2}}, cpu: [hosts][]float64{{0.5, 0.7}, {0.25}},
		},
		elements: [hosts]int{8, 9},
		changes: []labelChange{
			{returned: ms(4), inForce: [hosts]time.Duration{ms(5), ms(9)}},
			{watched: true, touched: [hosts]touched{{own: 12}, {own: 4, foreign: 1}}},
			{fresh: true, returned: ms(6), inForce: [hosts]time.Duration{ms(7), ms(8)}},
			{fresh: true, watched: true, touched: [hosts]touched{{own: 12, verdicts: 10}, {own: 4, verdicts: 10}}},
		},
		variants: []*variant{of(noneName, 2), policies, of(untrackedName, 4)},
	}
	want := map[string][]string{
		"In short": {
			"| 70 policies in force, s | < 2 | 2.50 (2.00-3.00) |", "| one label, in force on the workload's host, ms | < 50 | 6 (5-7) |", "| on the other host, ms | - | 8 (8-9) |",
			"addresses touched by labels | 0 | 1 |", "| throughput, policies / none, between hosts | ≥ 0.95 | 1.00 (1.00-1.00) |",
			"| connections, policies / none, between hosts | ≥ 0.9 | 0.50 (0.50-0.50) |", "| throughput, policies / none, on one host | ≥ 0.95 | - |",
		},
		"70 policies, 20 workloads on each host": {
			"| weft policy apply returns, s | 1.00 (1.00-1.00) | - |", "| in force, s | 2.00 (1.00-3.00) | 2.00 (2.00-2.00) |", "| elements of sets | 8 | 9 |",
		},
		"One label": {
			"| to labels that others have | 4 (4-4) | 5 (5-5) | 9 (9-9) | 8 (4-12) | 0 (0-0) | 0 (0-1) |", "| to labels that nobody has | 6 (6-6) | 7 (7-7) | 8 (8-8) | 8 (4-12) | 10 (10-10) | 0 (0-0) |",
		},
		"Between hosts": {
			"| none | 5.00 (2.00-8.00) | 5 (2-8) | 5 (2-8) | 5 (2-8) | 5 (2-8) | 5 (2-8) |",
			"| none / none, untracked | 0.50 (0.50-0.50) |", "| policies / none | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) | 0.50 (0.50-0.50) |",
		},
		"On one host": {"| policies / none | - | - | - | - | - | - |"},
	}
	for _, s := range r.sheets() {
		for _, line := range want[s.title] {
			if !strings.Contains(s.markdown(), line) {
				t.Errorf("%s: no %q in\n%s", s.title, line, s.markdown())
			}
		}
		delete(want, s.title)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

func TestPolicyUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-no-such-flag"}, 2, "flag provided but not defined"},
		{[]string{"-workloads", "12"}, 2, "-policies must be 12 or more, -workloads 13 or more, -rounds, -applies, -labels and -seconds positive"},
		{[]string{"-weft", "/nonexistent/weft"}, 1, "stat /nonexistent/weft: no such file or directory; build it with: make benchpolicy"},
	} {
		var out, errs bytes.Buffer
		if code := policyMain(tt.args, &out, &errs); code != tt.code || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("bench policy %v: code %d, %s", tt.args, code, &errs)
		}
	}
}

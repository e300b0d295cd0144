// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/api"
)

func TestPolicyStatus(t *testing.T) {
	for want, p := range map[string]*api.PolicyStatus{
		"policies:   3 in force, about 2 workloads of this node":      {Policies: 3, Workloads: 2},
		"policies:   3 in force, about 1 workload of this node":       {Policies: 3, Workloads: 1},
		"policies:   3 in force, about no workload of this node":      {Policies: 3},
		"policies:   3, not in force as they should be":               {Policies: 3, Failure: "no memory"},
		"policies:   waiting for the API server to tell the policies": {WaitsFor: "the API server to tell the policies"},
		"": nil,
	} {
		var out strings.Builder
		if err := showStatus(&out, api.Status{Policies: p}); err != nil {
			t.Fatal(err)
		}
		got := ""
		for line := range strings.Lines(out.String()) {
			if strings.HasPrefix(line, "policies:") {
				got = strings.TrimSpace(line)
			}
		}
		if strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

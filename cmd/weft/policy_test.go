// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
	"github.com/weftnet/weft/policy"
)

// policyDaemon knows a policy, a workload, and what it says of a connection.
func policyDaemon(t *testing.T) *apitest.Daemon {
	t.Helper()
	w := policy.NewWorld()
	w.SetPolicy(&policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "shop", Name: "deny"}}, Tier: policy.Network, Isolates: [2]bool{true, false},
	})
	db := policy.Endpoint{Name: policy.Name{Namespace: "shop", Name: "db@n1"}, Node: "n1", Addrs: []netip.Addr{netip.MustParseAddr("10.32.0.2")}}
	web := policy.Endpoint{Name: policy.Name{Namespace: "shop", Name: "web@n2"}, Node: "n2", Addrs: []netip.Addr{netip.MustParseAddr("10.40.0.2")}}
	w.SetEndpoint(db)
	w.SetEndpoint(web)
	s, ok := w.Summary(db.Name)
	if !ok {
		t.Fatal("no summary")
	}
	d := daemon()
	d.Summaries = []policy.Summary{s}
	d.Explained = []policy.Explanation{w.Why(policy.Connection{Src: web.Addrs[0], Dst: db.Addrs[0], Protocol: policy.TCP, Port: 5432})}
	d.Changes = api.PolicyChanges{
		Objects: []api.PolicyChange{
			{PolicyObject: api.PolicyObject{Kind: "NetworkPolicy", Namespace: "shop", Name: "deny"}, Done: "created"},
			{PolicyObject: api.PolicyObject{Kind: "Namespace", Name: "shop"}, Done: "unchanged"},
		},
		Warnings: []string{"something"},
	}
	d.Listed = api.PolicyList{
		Policies: []api.Policy{
			{
				PolicyObject: api.PolicyObject{Kind: "ClusterNetworkPolicy", Name: "fence"}, Tier: "Admin", Priority: 10, Selects: 1, Mesh: 2, Allowed: 3, Denied: 4,
				Problems: []string{"spec.x: such a field is not known here"}, Manifest: []byte(`{"kind":"ClusterNetworkPolicy","metadata":{"name":"fence"}}`),
			},
			{PolicyObject: api.PolicyObject{Kind: "NetworkPolicy", Namespace: "shop", Name: "deny"}, Tier: "Network", Manifest: []byte(`{"kind":"NetworkPolicy"}`)},
		},
		Namespaces: []api.PolicyNamespace{{Name: "shop", Manifest: []byte(`{"kind":"Namespace"}`)}},
		Awaits:     "another node",
	}
	denied := api.Denied{
		Seq: 1, Time: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Src: web.Addrs[0], SrcName: "shop/web@n2", Dst: db.Addrs[0], Protocol: "tcp", Port: 5432, End: "ingress",
		Why: "the destination's ingress is isolated by NetworkPolicy shop/deny, and nothing allows it", Untold: 2,
	}
	d.Denials = []api.PolicyLogProgress{{Denied: &denied}}
	return d
}

func TestPolicyTexts(t *testing.T) {
	dir := apitest.Serve(t, policyDaemon(t))
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte("kind: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args, out, errs string
		code            int
	}{
		{"apply -f " + file, "NetworkPolicy shop/deny created\nNamespace shop unchanged\n", "weft: warning: something\n", exitDone},
		{"apply --dry-run -f " + file, "NetworkPolicy shop/deny created (dry run)\nNamespace shop unchanged (dry run)\n", "weft: warning: something\n", exitDone},
		{"apply", "", "weft: which manifests? give -f FILE, or -f - for standard input\nweft: try: weft help\n", exitUsage},
		{"apply -f /nowhere", "", "weft: the manifests cannot be read: open /nowhere: no such file or directory\n", exitFailed},
		{"apply -f -", "", "weft: the manifests cannot be read: there is no standard input; give -f FILE\n", exitFailed},
		{
			"delete netpol/a networkpolicies/b cnp/c NS/d -n shop",
			"NetworkPolicy shop/a deleted\nNetworkPolicy shop/b deleted\nClusterNetworkPolicy c deleted\nNamespace d deleted\n", "", exitDone,
		},
		{"delete netpol/a", "NetworkPolicy default/a deleted\n", "", exitDone},
		{"delete", "", "weft: what is to be deleted? give KIND/NAME, or several, or -f FILE\nweft: try: weft help\n", exitUsage},
		{"delete a", "", "weft: \"a\" names no object; give KIND/NAME, with networkpolicy, clusternetworkpolicy or namespace as the KIND\nweft: try: weft help\n", exitUsage},
		{
			"list", `POLICY                      TIER     PRIORITY  SELECTS HERE  IN ALL  ALLOWED  DENIED  PROBLEMS
ClusterNetworkPolicy fence  Admin    10        1             2       3        4       1
NetworkPolicy shop/deny     Network  -         0             0       0        0       -
ClusterNetworkPolicy fence is enforced more strictly than it says: spec.x: such a field is not known here
`, "weft: warning: nothing new is in force yet: waiting for another node\n", exitDone,
		},
		{"list -o yaml", "---\nkind: Namespace\n---\nkind: ClusterNetworkPolicy\nmetadata:\n  name: fence\n---\nkind: NetworkPolicy\n", "", exitDone},
		{"list -o xml", "", "weft: -o \"xml\" is no format; give table, json or yaml\nweft: try: weft help\n", exitUsage},
		{"show nobody", "", "weft: nobody: no endpoint of that name\n", exitFailed},
		{"why a b", "", "weft: accepts 3 arg(s), received 2\nweft: try: weft help\n", exitUsage},
		{
			"log", "2030-01-02 03:04:05+00:00  shop/web@n2 (10.40.0.2) to 10.32.0.2, TCP 5432: the destination's ingress is isolated by NetworkPolicy shop/deny, and nothing allows it" +
				" (and 2 before it that were left out)\n", "", exitDone,
		},
		{"log --last -1", "", "weft: --last -1 is negative; give a number of connections, or leave it out\nweft: try: weft help\n", exitUsage},
	} {
		if code, out, errs := run(t, dir, append([]string{"policy"}, strings.Fields(c.args)...)...); code != c.code || out != c.out || errs != c.errs {
			t.Errorf("weft policy %s: exit %d\n%s%s", c.args, code, out, errs)
		}
	}
}

func TestPolicyWhyAndShow(t *testing.T) {
	d := policyDaemon(t)
	dir := apitest.Serve(t, d)
	code, out, errs := run(t, dir, "policy", "why", "web", "db", "5432")
	if code != exitFailed || out != d.Explained[0].Text() || errs != "" || !strings.HasPrefix(out, "denied: ") {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	var why api.PolicyWhy
	code, out, _ = run(t, dir, "policy", "why", "web", "db", "5432", "--json")
	if err := json.Unmarshal([]byte(out), &why); code != exitFailed || err != nil || why.Allowed || !reflect.DeepEqual(why.Connections, d.Explained) {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	if code, out, _ = run(t, dir, "policy", "show"); code != exitDone || out != d.Summaries[0].Text() {
		t.Errorf("exit %d, %q", code, out)
	}
	var shown api.PolicyShown
	code, out, _ = run(t, dir, "policy", "show", "shop/db@n1", "--json")
	if err := json.Unmarshal([]byte(out), &shown); code != exitDone || err != nil || !reflect.DeepEqual(shown.Workloads, d.Summaries) {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	var denials []api.Denied
	code, out, _ = run(t, dir, "policy", "log", "--json")
	if err := json.Unmarshal([]byte(out), &denials); code != exitDone || err != nil || len(denials) != 1 || denials[0].Port != 5432 {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	d.Explained[0].Allowed = true
	if code, _, errs := run(t, dir, "policy", "why", "web", "db", "5432"); code != exitDone || errs != "" {
		t.Errorf("allowed: exit %d, %q", code, errs)
	}
	var list api.PolicyList
	code, out, _ = run(t, dir, "policy", "list", "--json")
	if err := json.Unmarshal([]byte(out), &list); code != exitDone || err != nil || len(list.Policies) != 2 {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
}

func TestPolicyApplyReadsStandardInput(t *testing.T) {
	d := policyDaemon(t)
	dir := apitest.Serve(t, d)
	var out, errs bytes.Buffer
	e := env{in: strings.NewReader("kind: y\n"), out: &out, err: &errs, getenv: func(string) string { return dir }}
	if code := execute(t.Context(), []string{"policy", "apply", "-n", "shop", "-f", "-", "--json"}, e); code != exitDone || d.Applied.Manifests != "kind: y\n" || d.Applied.Namespace != "shop" {
		t.Errorf("exit %d, %+v, %s", code, d.Applied, &errs)
	}
	var c api.PolicyChanges
	if err := json.Unmarshal(out.Bytes(), &c); err != nil || len(c.Objects) != 2 || c.Objects[0].Done != "created" {
		t.Errorf("%v: %s", err, &out)
	}
}

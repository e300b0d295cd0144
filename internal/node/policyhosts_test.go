// SPDX-License-Identifier: Apache-2.0

package node

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/mesh/memnet"
	"github.com/weftnet/weft/policy/replica"
)

// denyAll isolates all of a namespace, and allowWeb lets app=web reach app=db there.
const (
	denyAll = `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
`
	allowWeb = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-to-db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: pg}]
`
)

// labelled attaches a workload with labels, and a port pg.
func (c *cluster) labelled(m *machine, name, app string) api.Workload {
	c.t.Helper()
	c.attach(m, name)
	w, err := m.service().Attach(c.t.Context(), api.AttachRequest{Netns: "/run/netns/" + name, IfName: "eth0", Policy: &api.Identity{
		Labels: map[string]string{"app": app}, Ports: []api.NamedPort{{Name: "pg", Protocol: "tcp", Port: 5432}},
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	return w
}

func (c *cluster) apply(m *machine, manifests string) []string {
	c.t.Helper()
	res, err := m.service().PolicyApply(c.t.Context(), api.PolicyApplyRequest{Manifests: manifests})
	if err != nil {
		c.t.Fatalf("%s: %v", m.name, err)
	}
	return doneTo(res)
}

func doneTo(r api.PolicyChanges) (lines []string) {
	for _, o := range r.Objects {
		lines = append(lines, o.PolicyObject.String()+" "+o.Done)
	}
	return lines
}

// allows says what m thinks of a connection, "?" if it cannot tell.
func allows(m *machine, from, to, port string) string {
	svc := m.service()
	if svc == nil {
		return "?"
	}
	w, err := svc.PolicyWhy(api.PolicyWhyRequest{From: from, To: to, Port: port})
	switch {
	case err != nil:
		return "?"
	case w.Allowed:
		return "yes"
	}
	return "no"
}

// agree waits until all machines think the same of a connection.
func (c *cluster) agree(want, from, to, port string, ms ...*machine) {
	c.t.Helper()
	c.eventually(30*time.Second, want+" from "+from+" to "+to, func() bool {
		for _, m := range ms {
			if allows(m, from, to, port) != want {
				return false
			}
		}
		return true
	})
}

func TestPoliciesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, nil, "n1")
		c.start(n3, nil, "n1")
		c.ready(n2)
		c.ready(n3)
		c.net.Faults(0.1, 0.1)
		c.labelled(n1, "db", "db")
		c.labelled(n2, "web", "web")
		c.labelled(n3, "other", "other")
		c.agree("yes", "other", "db", "5432", n1, n2, n3)

		if got := strings.Join(c.apply(n2, denyAll+"---"+allowWeb), ", "); got != "NetworkPolicy default/deny created, NetworkPolicy default/web-to-db created" {
			t.Error(got)
		}
		c.agree("no", "other", "db", "pg", n1, n2, n3)
		c.agree("yes", "web", "db", "pg", n1, n2, n3)
		c.agree("no", "web", "db", "80", n1, n2, n3)
		if got := strings.Join(c.apply(n3, allowWeb), ", "); got != "NetworkPolicy default/web-to-db unchanged" {
			t.Error(got)
		}

		// Labels, here and elsewhere.
		if _, err := n3.service().Label(t.Context(), api.LabelRequest{Workload: "other", Set: map[string]string{"app": "web"}}); err != nil {
			t.Fatal(err)
		}
		c.agree("yes", "other", "db", "pg", n1, n2, n3)
		if _, err := n1.service().Label(t.Context(), api.LabelRequest{Workload: "db", Remove: []string{"app"}}); err != nil {
			t.Fatal(err)
		}
		c.agree("no", "other", "db", "pg", n1, n2, n3)
		if _, err := n1.service().Label(t.Context(), api.LabelRequest{Workload: "db", Set: map[string]string{"app": "db"}}); err != nil {
			t.Fatal(err)
		}

		// What comes back after a restart is what there is, and what was deleted meanwhile is not.
		if err := n3.stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := n1.service().PolicyDelete(t.Context(), api.PolicyDeleteRequest{Manifests: allowWeb}); err != nil {
			t.Fatal(err)
		}
		c.start(n3, nil)
		c.ready(n3)
		c.agree("no", "web", "db", "pg", n1, n2, n3)
		c.eventually(time.Minute, "one policy on n3", func() bool {
			l, err := n3.service().PolicyList(t.Context())
			return err == nil && len(l.Policies) == 1 && l.Policies[0].Name == "deny" && l.Policies[0].Selects == 1 && l.Policies[0].Mesh == 3 && len(l.Policies[0].Manifest) > 0
		})
		if _, err := n3.service().PolicyDelete(t.Context(), api.PolicyDeleteRequest{Objects: []api.PolicyObject{{Kind: "NetworkPolicy", Namespace: "default", Name: "deny"}}}); err != nil {
			t.Fatal(err)
		}
		c.agree("yes", "other", "db", "1", n1, n2, n3)

		// The workloads of a node that is gone for good are nobody's.
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := n1.service().Forget(t.Context(), api.ForgetRequest{Node: "n2"}, func(api.ForgetProgress) {}); err != nil {
			t.Fatal(err)
		}
		c.agree("?", "web", "db", "1", n1, n3)
	})
}

// Two sides of a partition write apart, and one of them hears of nothing for a long while.
func TestPoliciesInAPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, nil, "n1")
		c.ready(n2)
		c.apply(n1, denyAll)
		keys := func(m *machine) string {
			l, err := m.service().PolicyList(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, p := range l.Policies {
				names = append(names, p.Name)
			}
			return strings.Join(names, " ")
		}
		c.eventually(10*time.Second, "the policy on n2", func() bool { return keys(n2) == "deny" })
		c.net.Partition([]*memnet.Host{n1.net}, []*memnet.Host{n2.net})
		c.apply(n2, allowWeb)
		if _, err := n1.service().PolicyDelete(t.Context(), api.PolicyDeleteRequest{Manifests: denyAll}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if keys(n1) != "" || keys(n2) != "deny web-to-db" {
			t.Fatalf("%q, %q", keys(n1), keys(n2))
		}
		c.net.Heal()
		c.eventually(time.Minute, "both the same", func() bool { return keys(n1) == "web-to-db" && keys(n2) == "web-to-db" })
	})
}

func TestPolicyRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := one(t)
		c.apply(m, denyAll)
		apply := func(text string) error {
			_, err := m.service().PolicyApply(t.Context(), api.PolicyApplyRequest{Manifests: text})
			return err
		}
		del := func(r api.PolicyDeleteRequest) error {
			_, err := m.service().PolicyDelete(t.Context(), r)
			return err
		}
		gone := api.PolicyObject{Kind: "NetworkPolicy", Namespace: "default", Name: "gone"}
		there := api.PolicyObject{Kind: "NetworkPolicy", Namespace: "default", Name: "deny"}
		for what, c := range map[string]struct {
			err  error
			want string
		}{
			"nothing":   {apply("---\n"), "there is no manifest in what was given; give NetworkPolicies, ClusterNetworkPolicies or Namespaces"},
			"odd field": {apply(allowWeb + "  egres: []\n---\n" + denyAll), "the manifests are refused, and nothing was done: line 10 (document 1, NetworkPolicy default/web-to-db): spec.egres: such a field is not known here; is egress meant?"},
			"absent":    {del(api.PolicyDeleteRequest{Objects: []api.PolicyObject{there, gone}}), "there is no NetworkPolicy default/gone; nothing was deleted: see weft policy list"},
		} {
			if c.err == nil || c.err.Error() != c.want {
				t.Errorf("%s: %v\nwant %s", what, c.err, c.want)
			}
		}
		if err := del(api.PolicyDeleteRequest{Objects: []api.PolicyObject{gone}, Absent: true}); err != nil {
			t.Error(err)
		}
		res, err := m.service().PolicyApply(t.Context(), api.PolicyApplyRequest{Manifests: denyAll + "---" + allowWeb, DryRun: true, Namespace: "shop"})
		if got := strings.Join(doneTo(res), ", "); err != nil || got != "NetworkPolicy shop/deny created, NetworkPolicy shop/web-to-db created" {
			t.Errorf("%q, %v", got, err)
		}
		time.Sleep(time.Second)
		if l, _ := m.service().PolicyList(t.Context()); len(l.Policies) != 1 || l.Policies[0].Name != "deny" || l.Policies[0].Namespace != "default" {
			t.Errorf("%+v", l)
		}
	})
}

// What a newer version has applied is enforced strictly, or at least told.
func TestPolicyOfANewerVersion(t *testing.T) {
	set := replica.New(1, 1, manifestLimits())
	write := func(key, value string) {
		t.Helper()
		if _, _, err := set.Write([]replica.Change{{Key: key, Value: []byte(value)}}); err != nil {
			t.Fatal(err)
		}
	}
	write("networkpolicy/default/a", `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a","namespace":"default"},"spec":{"podSelector":{},"ingress":[{"when":"friday"}]}}`)
	write("networkpolicy/default/b", `{"metadata":{"name":"a","namespace":"default"}}`)
	write("firewall//c", `{}`)
	write("namespace//shop", `{"metadata":{"name":"shop","labels":{"team":"a"}}}`)
	now, news := newHostShare(1), shareNews{manifests: map[string]*replica.Item{}}
	for _, i := range set.Items() {
		news.manifests[i.Key] = &i
	}
	now.update(news, nil, newShareSink())
	p := now.manifests["networkpolicy/default/a"].policy
	if p == nil || len(p.Problems) != 1 || !p.Rules[0][0].Disabled {
		t.Errorf("%+v", p)
	}
	if n := now.manifests["namespace//shop"].namespace; n == nil || n.Labels["team"] != "a" {
		t.Errorf("%+v", n)
	}
	want := "2 of the objects that were applied cannot be enforced by this version of weft; upgrade it: firewall//c: such a kind of object is not known; networkpolicy/default/b: it calls itself otherwise"
	if now.warning() != want {
		t.Errorf("%s", now.warning())
	}
}

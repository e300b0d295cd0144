// SPDX-License-Identifier: Apache-2.0

package node

import (
	"reflect"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
)

// identityOf is what m says of the only workload of that ID or path.
func (c *cluster) identityOf(m *machine, what string) api.Identity {
	c.t.Helper()
	for _, w := range m.service().Workloads() {
		if w.ID == what || w.Netns == what {
			return *w.Policy
		}
	}
	c.t.Fatalf("%s has no workload %s", m.name, what)
	return api.Identity{}
}

func TestLabelsOfWorkloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := one(t)
		c.attach(m, "plain")
		c.attach(m, "db")
		again := func(i *api.Identity) error {
			_, err := m.service().Attach(t.Context(), api.AttachRequest{Netns: "/run/netns/db", IfName: "eth0", Policy: i})
			return err
		}
		if got, want := c.identityOf(m, "/run/netns/plain"), (api.Identity{Namespace: "default", Name: "plain"}); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v", got)
		}
		port := []api.NamedPort{{Name: "pg", Protocol: "tcp", Port: 5432}}
		if err := again(&api.Identity{Namespace: "shop", Labels: map[string]string{"app": "db"}, Ports: port}); err != nil {
			t.Fatal(err)
		}
		if err := again(&api.Identity{Name: "store"}); err != nil {
			t.Fatal(err)
		}
		if err := again(nil); err != nil {
			t.Fatal(err)
		}
		want := api.Identity{Namespace: "shop", Name: "store", Labels: map[string]string{"app": "db"}, Ports: port}
		if got := c.identityOf(m, "/run/netns/db"); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v", got)
		}
		for what, want := range map[*api.Identity]string{
			{Labels: map[string]string{"a b": ""}}: `"a b" is no key of a label; it has to be`,
			{Namespace: "Shop"}:                    `"Shop" is no namespace; use`,
			{Name: "a b"}:                          `"a b" is no name of a workload; use`,
			{Namespace: "default", Name: "plain"}:  `the workload net:[n1plain]/eth0 of this host is called default/plain already; choose another --name`,
			{Ports: []api.NamedPort{{Name: "a", Protocol: "icmp", Port: 1}}}:  `"icmp" is no protocol of a port; give tcp, udp or sctp`,
			{Ports: []api.NamedPort{{Name: "A!", Protocol: "tcp", Port: 80}}}: `"A!" is no name of a port; it has to be`,
		} {
			if err := again(what); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%+v: %v", what, err)
			}
		}
		label := func(what string, set map[string]string, remove ...string) error {
			_, err := m.service().Label(t.Context(), api.LabelRequest{Workload: what, Set: set, Remove: remove})
			return err
		}
		lease := m.service().Workloads()[0].Addresses
		for _, name := range []string{"store", "shop/store", "store@n1", "shop/store@n1", "/run/netns/db", "net:[n1db]/eth0"} {
			if err := label(name, map[string]string{"app": "db", "by": strings.ReplaceAll(strings.Trim(name, "/:[]"), "[", "")[:2]}); err != nil {
				t.Error(err)
			}
		}
		if err := label(lease[0].String(), map[string]string{"x": "y"}); err != nil {
			t.Error(err)
		}
		for what, want := range map[string]string{
			"store@n2": `store@n2 is a workload of the host n2; change its labels there`,
			"other@n1": `no workload of this host is called "other@n1"; see: weft ps`,
			"nobody":   `no workload of this host is called "nobody"; see: weft ps`,
			"store":    `the workload net:[n1db]/eth0 has no label none to remove; see: weft policy show net:[n1db]/eth0`,
		} {
			if err := label(what, nil, "none"); err == nil || err.Error() != want {
				t.Error(err)
			}
		}
		if err := label("store", map[string]string{"-": ""}); err == nil || !strings.HasPrefix(err.Error(), `"-" is no key of a label`) {
			t.Error(err)
		}
		if err := label("store", map[string]string{"app": "web"}, "by"); err != nil {
			t.Error(err)
		}
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(m, nil)
		c.ready(m)
		want.Labels = map[string]string{"app": "web", "x": "y"}
		if got := c.identityOf(m, "/run/netns/db"); !reflect.DeepEqual(got, want) {
			t.Errorf("after a restart %+v", got)
		}
	})
}

func TestLabelsByCNI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := one(t)
		long := strings.Repeat("0123456789abcdef", 4)
		bare, called, pod, given := request(m, long), request(m, "web-frontend-17"), request(m, "c2"), request(m, "c3")
		pod.Pod = cni.Pod{Namespace: "shop", Name: "db-0"}
		given.Pod, given.Namespace, given.Labels = pod.Pod, "other", map[string]string{"app": "db"}
		for _, r := range []cni.Request{bare, called, pod, given} {
			c.add(m, r)
		}
		for id, want := range map[string]api.Identity{
			"cni/" + long + "/eth0":    {Namespace: "default", Name: "0123456789ab"},
			"cni/web-frontend-17/eth0": {Namespace: "default", Name: "web-frontend-17"},
			"cni/c2/eth0":              {Namespace: "shop", Name: "db-0"},
			"cni/c3/eth0":              {Namespace: "other", Name: "db-0", Labels: map[string]string{"app": "db"}},
		} {
			if got := c.identityOf(m, id); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %+v", id, got)
			}
		}
		given.Labels = map[string]string{"app": "web"} // the same ADD by another configuration
		c.add(m, given)
		if got := c.identityOf(m, "cni/c3/eth0"); got.Labels["app"] != "web" {
			t.Errorf("%+v", got)
		}
		bad := request(m, "c4")
		bad.Labels = map[string]string{"a": "b c"}
		_, err := m.service().CNIAttach(t.Context(), bad)
		want := `the network configuration: "b c" is no value of the label a; it has to be empty, or of up to 63 letters, digits, hyphens, dots and underscores, the first and the last a letter or digit`
		if err == nil || err.Error() != want {
			t.Errorf("%v", err)
		}
	})
}

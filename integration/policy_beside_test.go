// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/policy"
)

const (
	// besidePort is what workloads serve, and servicePort that of the service in front of one.
	besidePort  = 5432
	servicePort = 80
)

// app makes a workload that serves besidePort, with a label.
func (w *town) app(t *testing.T, h *lab.Host, name, app string) *lab.Workload {
	t.Helper()
	out := h.Workload(name)
	out.Attach("--label", "app="+app, "--name", name)
	w.settle(t, out.Namespace, []uint16{besidePort}, out.Addrs()...)
	return out
}

// between are connections of both families, by TCP and UDP, of which all should come to be or none.
func between(from *lab.Workload, to []netip.Addr, port uint16, allowed bool) (out []expect) {
	for _, src := range from.Addrs() {
		for _, dst := range to {
			for _, p := range []policy.Protocol{policy.TCP, policy.UDP} {
				if src.Is4() == dst.Is4() {
					out = append(out, expect{policy.Connection{Src: src, Dst: dst, Protocol: p, Port: port}, allowed})
				}
			}
		}
	}
	return out
}

// servicesOf are the lines of a snapshot about the table of Services.
func servicesOf(t *testing.T, h *lab.Host) (out []string) {
	t.Helper()
	for _, l := range snapshot(t, h.Namespace) {
		if f := strings.Fields(l); len(f) > 3 && f[0] == "nft" && f[3] == lab.ServiceTable {
			out = append(out, l)
		}
	}
	return out
}

// TestPoliciesOnEachPath has the same policies in force whichever way packets take between hosts: through the daemons, or by the kernels' paths.
func TestPoliciesOnEachPath(t *testing.T) {
	t.Parallel()
	_, hosts := hostsOf(t, 2, "--trusted-subnets", underlays)
	w := newTown()
	db, near := w.app(t, hosts[0], "db", "db"), w.app(t, hosts[0], "near", "near")
	web, far := w.app(t, hosts[1], "web", "web"), w.app(t, hosts[1], "far", "far")
	onPath(t, "direct", hosts...)
	names := enact(t, hosts, onlyWeb(t), "default/only-web")
	for _, path := range []string{"direct", "vxlan", "udp"} {
		take(t, path, hosts...)
		onPath(t, path, hosts...)
		inForce(t, hosts, names...)
		tries := slices.Concat(between(web, db.Addrs(), besidePort, true), between(near, db.Addrs(), besidePort, false), between(far, db.Addrs(), besidePort, false),
			between(db, web.Addrs(), besidePort, true), between(far, web.Addrs(), besidePort, true))
		if err := w.all(tries); err != nil {
			t.Errorf("by %s: %v", path, err)
		}
	}
}

// TestPoliciesBesideServices has policies in force on hosts whose own tables send connections to services on to workloads, masquerade some of them, and accept
// what they know nothing of: connections are judged by where they go in the end, an endpoint reaches itself through a service unless a
// policy of the Admin tier forbids it, and those tables stay as they are, also when the policies' own table is put back.
func TestPoliciesBesideServices(t *testing.T) {
	t.Parallel()
	_, hosts := hostsOf(t, 2)
	w := newTown()
	db, near, twin := w.app(t, hosts[0], "db", "db"), w.app(t, hosts[0], "near", "near"), w.app(t, hosts[0], "twin", "web")
	web, far := w.app(t, hosts[1], "web", "web"), w.app(t, hosts[1], "far", "far")
	virtual := []netip.Addr{netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("2001:db8:80::80")}
	for _, h := range hosts {
		for i, a := range virtual {
			h.Service(netip.AddrPortFrom(a, servicePort), netip.AddrPortFrom(db.Addrs()[i], besidePort))
		}
	}
	var tables [][]string
	for _, h := range hosts {
		all := servicesOf(t, h)
		if len(all) < 5 {
			t.Fatalf("%s has of the table of services: %q", h.Name(), all)
		}
		tables = append(tables, all)
	}
	through := func(from *lab.Workload, allowed bool) []expect { return between(from, virtual, servicePort, allowed) }
	check := func(what string, tries ...[]expect) {
		t.Helper()
		if err := w.all(slices.Concat(tries...)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("without policies", through(near, true), through(far, true), through(web, true), through(db, true))

	enact(t, hosts, onlyWeb(t), "default/only-web")
	only := [][]expect{through(near, false), through(far, false), through(web, true), through(twin, true), through(db, true), between(near, db.Addrs(), besidePort, false)}
	check("ingress behind a service", only...)

	egress := func(port int) string { // of all that is app=near or far
		return manifests(t, keys{
			"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": keys{"name": "out"},
			"spec": keys{
				"podSelector": keys{"matchExpressions": []keys{{"key": "app", "operator": "In", "values": []string{"near", "far", "db"}}}}, "policyTypes": []string{"Egress"},
				"egress": []keys{{"to": []keys{{"podSelector": keys{"matchLabels": keys{"app": "db"}}}}, "ports": []keys{{"protocol": "TCP", "port": port}, {"protocol": "UDP", "port": port}}}},
			},
		})
	}
	enact(t, hosts, egress(besidePort), "default/out")
	check("egress to the port behind a service", through(near, true), through(far, true), through(db, true), between(near, twin.Addrs(), besidePort, false))
	enact(t, hosts, egress(servicePort), "default/out")
	check("egress to the port of a service alone", through(near, false), through(far, false), through(db, true))

	// The Network tier does not stand between an endpoint and itself; the Admin tier may.
	enact(t, hosts, manifests(t, keys{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": keys{"name": "none"}, "spec": keys{"podSelector": keys{}, "policyTypes": []string{"Ingress", "Egress"}},
	}), "default/none")
	check("to itself through a service, isolated", through(db, true), through(web, false), through(near, false))
	enact(t, hosts, manifests(t, keys{
		"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": keys{"name": "none"},
		"spec": keys{
			"tier": "Admin", "priority": 1, "subject": keys{"pods": keys{"namespaceSelector": keys{}, "podSelector": keys{"matchLabels": keys{"app": "db"}}}},
			"ingress": []keys{{"action": "Deny", "from": []keys{{"namespaces": keys{}}}}},
		},
	}), "none")
	check("to itself through a service, denied by Admin", through(db, false), through(web, false), between(db, web.Addrs(), besidePort, true))

	names := enact(t, hosts, onlyWeb(t), "default/only-web")
	for i, h := range hosts {
		if err := h.DropTable("weft-policy"); err != nil && i == 0 { // the other host has no endpoint with rules
			t.Error(err)
		}
	}
	time.Sleep(silence)
	inForce(t, hosts, names...)
	check("after it was put back", only...)
	for i, h := range hosts {
		same(t, "services of "+h.Name(), tables[i], servicesOf(t, h))
	}
}

// deniedLine is what the tests read of `weft policy log --json`.
type deniedLine struct {
	Src      netip.Addr `json:"src"`
	SrcName  string     `json:"src_name"`
	Dst      netip.Addr `json:"dst"`
	Protocol string     `json:"protocol"`
	Port     uint16     `json:"port"`
	End      string     `json:"end"`
	Policies []string   `json:"policies"`
}

// TestPolicyLogAndCounters follows what is denied, with the policy that denied it, and counts it, and what is allowed.
func TestPolicyLogAndCounters(t *testing.T) {
	t.Parallel()
	_, hosts := hostsOf(t, 2)
	w := newTown()
	db, web, far := w.app(t, hosts[0], "db", "db"), w.app(t, hosts[1], "web", "web"), w.app(t, hosts[1], "far", "far")
	enact(t, hosts, onlyWeb(t), "default/only-web")
	for _, app := range []string{"web", "far"} { // what is denied before they are known is put down to nothing
		labelled(t, hosts, policy.Name{Namespace: "default", Name: app + "@" + hosts[1].Name()}, map[string]string{"app": app})
	}
	var out output
	follower, err := hosts[0].Start(lab.Command{
		Path: os.Getenv(envBinary), Args: []string{"policy", "log", "--follow", "--json"}, Env: []string{"WEFT_RUN_DIR=" + hosts[0].RunDir()}, Stdout: &out,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Kill()
	if err := w.all(slices.Concat(between(web, db.Addrs(), besidePort, true), between(far, db.Addrs(), besidePort, false))); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		found := map[string]bool{}
		for line := range strings.Lines(out.String()) {
			var d deniedLine
			if !strings.HasSuffix(line, "\n") {
				continue
			}
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				return err
			}
			if d.SrcName != "default/far@host2" || !slices.Contains(db.Addrs(), d.Dst) || d.Port != besidePort || d.End != "ingress" ||
				!slices.Equal(d.Policies, []string{"NetworkPolicy default/only-web"}) {
				t.Fatalf("told of %+v", d)
			}
			found[fmt.Sprint(d.Protocol, " ", d.Dst)] = true
		}
		if len(found) != 2*len(db.Addrs()) {
			return fmt.Errorf("told of %v alone", found)
		}
		return nil
	})
	eventually(t, patience, func() error {
		var l policyList
		if err := hosts[0].Query(&l, "policy", "list"); err != nil {
			return err
		}
		for _, p := range l.Policies {
			if p.Name == "only-web" && p.Allowed == uint64(2*len(db.Addrs())) && p.Denied >= uint64(2*len(db.Addrs())) {
				return nil
			}
		}
		return fmt.Errorf("counted: %+v", l.Policies)
	})
}

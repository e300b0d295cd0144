// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/weftnet/weft/policy"
)

// office is a town with policies of all tiers.
func office() *policy.World {
	named := func(name string, r policy.Rule) policy.Rule { r.Name = name; return r }
	lost := np("prod/lost", "app=cache", "ie", rules(disabled(rule(""))), nil)
	lost.Problems = []string{"ingress rule 1: unknown field \"endports\"\x1b[31m: the rule allows nothing"}
	return town(
		cnp("guard", policy.Admin, 10, "team=b", rules(named("monitoring", rule("TCP 9100-9102", both(policy.NameLabel+"=default", "app=api"))), pass(rule("TCP", spaces("")))), nil),
		cnp("no-nodes", policy.Admin, 20, "team", nil, rules(deny(rule("TCP 22, SCTP", nodes(""), block("192.0.2.0/24"))))),
		cnp("floor", policy.Baseline, 1, "", rules(deny(rule("", spaces("team!=b")))), rules(pass(rule("- http, UDP 53", spaces(""))))),
		np("prod/allow-web", "app=db", "i", rules(rule("TCP http", both("", "app=web")), rule("UDP nosuch, TCP 22", block("10.0.0.0/8", "10.32.0.2/32", "10.32.0.3/32"))), nil),
		np("prod/default-deny", "", "i", nil, nil),
		np("default/web", "app=web", "e", nil, rules(rule("TCP 8080", spaces("team=b"), pods("app=api tier!=x|y legacy")), rule(""))),
		lost,
	)
}

func TestWhy(t *testing.T) {
	w := office()
	for _, c := range []struct{ asked, want string }{
		{"198.51.100.7 192.0.2.1 TCP 80", `
allowed: 198.51.100.7 to node n1 (192.0.2.1), TCP 80
  neither end is an endpoint, and policies are about endpoints alone
`},
		{"web prod/db TCP 8080", `
allowed: default/web (10.32.0.1) to prod/db (10.32.0.3), TCP 8080
  egress of default/web: allowed by NetworkPolicy default/web, rule 1: to all endpoints in namespaces with team=b or endpoints with app=api, legacy, tier not in (x, y) in namespace default, TCP 8080
  ingress of prod/db: allowed by NetworkPolicy prod/allow-web, rule 1: from endpoints with app=web to TCP "http" (TCP 8080 of prod/db)
    passed on by ClusterNetworkPolicy guard of the Admin tier, rule 2: from all endpoints to TCP
`},
		{"web prod/db TCP 80", `
denied: default/web (10.32.0.1) to prod/db (10.32.0.3), TCP 80
  egress of default/web: allowed by NetworkPolicy default/web, rule 2: to anyone, any port and protocol
  ingress of prod/db: denied as NetworkPolicy prod/allow-web and NetworkPolicy prod/default-deny isolate it and no rule of theirs allows this
    passed on by ClusterNetworkPolicy guard of the Admin tier, rule 2: from all endpoints to TCP
    nearest: NetworkPolicy prod/allow-web, rule 1, but only TCP "http" (TCP 8080 of prod/db)
    nearest: NetworkPolicy prod/allow-web, rule 2, but only UDP "nosuch" (no such port of prod/db) or TCP 22
`},
		{"api prod/db TCP 8080", `
denied: default/api (10.32.0.2) to prod/db (10.32.0.3), TCP 8080
  egress of default/api: allowed as no policy decides
    passed on by ClusterNetworkPolicy floor of the Baseline tier, rule 1: to all endpoints, port "http" or UDP 53
  ingress of prod/db: denied as NetworkPolicy prod/allow-web and NetworkPolicy prod/default-deny isolate it and no rule of theirs allows this
    passed on by ClusterNetworkPolicy guard of the Admin tier, rule 2: from all endpoints to TCP
    nearest: NetworkPolicy prod/allow-web, rule 1, but only from endpoints with app=web
`},
		{"api prod/db TCP 9101", `
allowed: default/api (10.32.0.2) to prod/db (10.32.0.3), TCP 9101
  egress of default/api: allowed as no policy decides
  ingress of prod/db: allowed by ClusterNetworkPolicy guard of the Admin tier, rule 1 (monitoring): from endpoints with app=api in namespace default to TCP 9100-9102
`},
		{"198.51.100.7 prod/cache ICMP", `
denied: 198.51.100.7 to prod/cache (10.32.0.4), ICMP
  ingress of prod/cache: denied as NetworkPolicy prod/default-deny and NetworkPolicy prod/lost isolate it and no rule of theirs allows this
    not all of NetworkPolicy prod/lost could be understood: see weft policy show prod/cache
`},
		{"192.0.2.1 prod/db SCTP 22", `
allowed: node n1 (192.0.2.1) to prod/db (10.32.0.3), SCTP 22
  ingress of prod/db: allowed as it is on that node
`},
		{"prod/db 192.0.2.1 SCTP 22", `
denied: prod/db (10.32.0.3) to node n1 (192.0.2.1), SCTP 22
  egress of prod/db: denied by ClusterNetworkPolicy no-nodes of the Admin tier, rule 1: to all nodes or addresses in 192.0.2.0/24, TCP 22 or SCTP
`},
		{"web6 web6 TCP 1", `
denied: default/web (fd32::1) to default/web (fd32::1), TCP 1
  egress of default/web: allowed as an endpoint always reaches itself
  ingress of default/web: denied by ClusterNetworkPolicy floor of the Baseline tier, rule 1: from all endpoints in namespaces with team!=b to any port and protocol
  this is about a Service in between; what an endpoint sends to its own address never leaves it and is allowed
`},
		{"prod/cache 198.51.100.7 TCP 1", `
denied: prod/cache (10.32.0.4) to 198.51.100.7, TCP 1
  egress of prod/cache: denied as NetworkPolicy prod/lost isolates it and no rule of that allows this
    not all of NetworkPolicy prod/lost could be understood: see weft policy show prod/cache
`},
	} {
		if got := w.Why(connection(t, w, c.asked)).Text(); got != strings.TrimPrefix(c.want, "\n") {
			t.Errorf("%s:\n%s", c.asked, got)
		}
	}
}

func TestWhyData(t *testing.T) {
	w := office()
	got, err := json.Marshal(w.Why(connection(t, w, "api prod/db UDP 53")))
	const want = `{"source":{"address":"10.32.0.2","endpoint":"default/api"},"destination":{"address":"10.32.0.3","endpoint":"prod/db"},` +
		`"protocol":"UDP","port":53,"allowed":false,` +
		`"egress":{"allowed":true,"decided":"no policy","passed":[{"policy":"ClusterNetworkPolicy floor","tier":"Baseline","number":1,"words":"to all endpoints, port \"http\" or UDP 53"}]},` +
		`"ingress":{"allowed":false,"decided":"isolation","isolated":["NetworkPolicy prod/allow-web","NetworkPolicy prod/default-deny"]}}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestSummary(t *testing.T) {
	w := office()
	for _, c := range []struct{ who, want string }{
		{"prod/db", `
prod/db on node n1
  addresses  10.32.0.3, fd32::3
  labels     app=db, tier=back
  ports      http TCP 8080, dns UDP 53, dns TCP 53
ingress: isolated by NetworkPolicy prod/allow-web and NetworkPolicy prod/default-deny
  Admin tier
    ClusterNetworkPolicy guard, priority 10
      1. Accept (monitoring) from endpoints with app=api in namespace default to TCP 9100-9102
      2. Pass from all endpoints to TCP
  Network tier
    NetworkPolicy prod/allow-web
      1. Accept from endpoints with app=web to TCP "http" (TCP 8080 of prod/db)
      2. Accept from addresses in 10.0.0.0/8 but for 10.32.0.2/32, 10.32.0.3/32 to UDP "nosuch" (no such port of prod/db) or TCP 22
    NetworkPolicy prod/default-deny
      allows nothing
  Baseline tier (not asked, as the endpoint is isolated)
    ClusterNetworkPolicy floor, priority 1
      1. Deny from all endpoints in namespaces with team!=b to any port and protocol
  all else is denied
egress: not isolated
  Admin tier
    ClusterNetworkPolicy no-nodes, priority 20
      1. Deny to all nodes or addresses in 192.0.2.0/24, TCP 22 or SCTP
  Baseline tier
    ClusterNetworkPolicy floor, priority 1
      1. Pass to all endpoints, port "http" or UDP 53
  all else is allowed
`},
		{"prod/cache", `
prod/cache on node n2
  addresses  10.32.0.4, fd32::4
  labels     app=cache, tier=back
  ports      http TCP 80
ingress: isolated by NetworkPolicy prod/default-deny and NetworkPolicy prod/lost
  Admin tier
    ClusterNetworkPolicy guard, priority 10
      1. Accept (monitoring) from endpoints with app=api in namespace default to TCP 9100-9102
      2. Pass from all endpoints to TCP
  Network tier
    NetworkPolicy prod/default-deny
      allows nothing
    NetworkPolicy prod/lost
      1. Accept says nothing, as it could not be understood
      problem: ingress rule 1: unknown field "endports" [31m: the rule allows nothing
  Baseline tier (not asked, as the endpoint is isolated)
    ClusterNetworkPolicy floor, priority 1
      1. Deny from all endpoints in namespaces with team!=b to any port and protocol
  all else is denied
egress: isolated by NetworkPolicy prod/lost
  Admin tier
    ClusterNetworkPolicy no-nodes, priority 20
      1. Deny to all nodes or addresses in 192.0.2.0/24, TCP 22 or SCTP
  Network tier
    NetworkPolicy prod/lost
      allows nothing
      problem: ingress rule 1: unknown field "endports" [31m: the rule allows nothing
  Baseline tier (not asked, as the endpoint is isolated)
    ClusterNetworkPolicy floor, priority 1
      1. Pass to all endpoints, port "http" or UDP 53
  all else is denied
`},
	} {
		n, err := w.FindEndpoint(c.who)
		if err != nil {
			t.Fatal(err)
		}
		s, ok := w.Summary(n)
		if got := s.Text(); !ok || got != strings.TrimPrefix(c.want, "\n") {
			t.Errorf("%s:\n%s", c.who, got)
		}
	}
	bare := policy.NewWorld()
	bare.SetEndpoint(policy.Endpoint{Name: policy.Name{Namespace: "default", Name: "new"}})
	s, _ := bare.Summary(policy.Name{Namespace: "default", Name: "new"})
	if got, want := s.Text(), "default/new\n  addresses  none\n  labels     none\n  ports      none\ningress: no policy, all is allowed\negress: no policy, all is allowed\n"; got != want {
		t.Errorf("%s", got)
	}
	data, err := json.Marshal(s)
	const want = `{"endpoint":"default/new","node":"","addresses":[],"labels":{},"ports":[],"directions":[` +
		`{"direction":"ingress","isolatedBy":[],"policies":[],"rest":"allowed"},{"direction":"egress","isolatedBy":[],"policies":[],"rest":"allowed"}]}`
	if err != nil || string(data) != want {
		t.Errorf("%v\n%s", err, data)
	}
	if _, ok := bare.Summary(policy.Name{}); ok {
		t.Error("a summary of nobody")
	}
}

func TestConnections(t *testing.T) {
	w := town()
	w.SetEndpoint(policy.Endpoint{Name: policy.Name{Namespace: "prod", Name: "waiting"}})
	for _, c := range []struct{ from, to, port, want string }{
		{"web", "prod/db", "80", "10.32.0.1 -> 10.32.0.3 TCP 80; fd32::1 -> fd32::3 TCP 80"},
		{"web", "db", "53/udp", "10.32.0.1 -> 10.32.0.3 UDP 53; fd32::1 -> fd32::3 UDP 53"},
		{"10.32.0.1", "db", "7/SCTP", "10.32.0.1 -> 10.32.0.3 SCTP 7"},
		{"fd32::1", "db", "icmp", "fd32::1 -> fd32::3 ICMPv6"},
		{"198.51.100.7", "::ffff:198.51.100.8", "icmp", "198.51.100.7 -> 198.51.100.8 ICMP"},
		{"n1", "db", "http", "192.0.2.1 -> 10.32.0.3 TCP 8080; fd32::101 -> fd32::3 TCP 8080"},
		{"10.32.0.1", "db", "dns", "10.32.0.1 -> 10.32.0.3 UDP 53; 10.32.0.1 -> 10.32.0.3 TCP 53"},
		{"web", "n2", "22/tcp", "10.32.0.1 -> 192.0.2.2 TCP 22; fd32::1 -> fd32::102 TCP 22"},
		{"ghost/web", "198.51.100.7", "443", "10.32.0.5 -> 198.51.100.7 TCP 443"},

		{"nosuch", "db", "80", "nosuch: no endpoint of that name: use NAMESPACE/NAME of an endpoint, the name of a node, or an address"},
		{"prod/web", "db", "80", "prod/web: no endpoint of that name: use NAMESPACE/NAME of an endpoint, the name of a node, or an address"},
		{"web", "a b", "80", `"a b": no endpoint of that name: use NAMESPACE/NAME of an endpoint, the name of a node, or an address`},
		{"waiting", "db", "80", "prod/waiting has no address yet: try again when it runs"},
		{"fd32::1", "10.32.0.1", "80", "fd32::1 and 10.32.0.1 have no addresses of the same family"},
		{"fe80::1%eth0", "db", "80", "fe80::1%eth0: leave out the zone"},
		{"web", "db", "0", "0 is no port: use NUMBER, NUMBER/udp, NUMBER/sctp, icmp, or the name of a port of the destination"},
		{"web", "db", "65536", "65536 is no port: use NUMBER, NUMBER/udp, NUMBER/sctp, icmp, or the name of a port of the destination"},
		{"web", "db", "80/gre", "80/gre is no port: use NUMBER, NUMBER/udp, NUMBER/sctp, icmp, or the name of a port of the destination"},
		{"web", "api", "http", "http is no port: use NUMBER, NUMBER/udp, NUMBER/sctp, icmp, or the name of a port of the destination"},
		{"web", "db", "icmp/udp", "icmp/udp is no port: use NUMBER, NUMBER/udp, NUMBER/sctp, icmp, or the name of a port of the destination"},
	} {
		found, err := w.Connections(c.from, c.to, c.port)
		var all []string
		for _, f := range found {
			all = append(all, f.String())
		}
		got := strings.Join(all, "; ")
		if err != nil {
			got += err.Error()
		}
		if got != c.want {
			t.Errorf("%s %s %s: %s\nwant %s", c.from, c.to, c.port, got, c.want)
		}
	}
	w.SetEndpoint(policy.Endpoint{Name: policy.Name{Namespace: "prod", Name: "api2"}})
	w.SetEndpoint(policy.Endpoint{Name: policy.Name{Namespace: "ghost", Name: "api2"}})
	if _, err := w.FindEndpoint("api2"); err == nil || err.Error() != "api2 is in several namespaces: say which of ghost/api2, prod/api2" {
		t.Error(err)
	}
}

// TestLongLists shows that lists and names of others are cut.
func TestLongLists(t *testing.T) {
	var ports []string
	var isolating []*policy.Policy
	for i := range 100 {
		ports = append(ports, fmt.Sprintf("TCP %d", i+1))
		isolating = append(isolating, np(fmt.Sprintf("prod/p%02d", i), "", "i", nil, nil))
	}
	r := rule(strings.Join(ports, ","), both("", "app=web"))
	r.Name = strings.Repeat("x y ", 60)
	w := town(append(isolating, np("prod/p", "", "i", rules(r), nil))...)
	got := w.Why(connection(t, w, "web prod/db UDP 1")).Text()
	want := `denied: default/web (10.32.0.1) to prod/db (10.32.0.3), UDP 1
  egress of default/web: allowed as no policy decides
  ingress of prod/db: denied as NetworkPolicy prod/p, NetworkPolicy prod/p00, NetworkPolicy prod/p01, NetworkPolicy prod/p02, NetworkPolicy prod/p03, NetworkPolicy prod/p04, ` +
		`NetworkPolicy prod/p05, NetworkPolicy prod/p06, NetworkPolicy prod/p07, NetworkPolicy prod/p08, NetworkPolicy prod/p09, NetworkPolicy prod/p10 and 89 more isolate it and no rule of theirs allows this
    nearest: NetworkPolicy prod/p, rule 1 ("` + strings.Repeat("x y ", 25) + `"...), but only TCP 1 or TCP 2 or TCP 3 or TCP 4 or TCP 5 or TCP 6 or TCP 7 or TCP 8 or TCP 9 or TCP 10 or TCP 11 or TCP 12 or 88 more
`
	if got != want {
		t.Errorf("%s", got)
	}
}

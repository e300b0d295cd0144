// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/policytest"
)

var errTest = errors.New("it is a test")

// TestCheckGenerated shows that what the other tests are made of is in order.
func TestCheckGenerated(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := policytest.Generate(policytest.Rapid(t))
		for _, p := range u.Policies {
			if err := p.Check(); err != nil {
				t.Fatal(err)
			}
		}
		for _, e := range u.Endpoints {
			if err := e.Check(); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range u.Namespaces {
			if err := n.Check(); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range u.Nodes {
			if err := n.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func with(p *policy.Policy, change func(*policy.Policy)) *policy.Policy {
	change(p)
	return p
}

func repeat[T any](n int, of T) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = of
	}
	return all
}

func TestCheck(t *testing.T) {
	network := func(r ...policy.Rule) *policy.Policy { return np("prod/p", "", "i", r, nil) }
	cluster := func(in []policy.Rule, out ...policy.Rule) *policy.Policy {
		return cnp("c", policy.Admin, 1, "", in, out)
	}
	requirement := func(r policy.Requirement) policy.Rule {
		return rule("", policy.Peer{Pods: &policy.Selector{r}})
	}
	port := func(p policy.Ports) policy.Rule { return policy.Rule{AnyPeer: true, Ports: []policy.Ports{p}} }
	long := strings.Repeat("n", 64)
	for _, c := range []struct {
		p    *policy.Policy
		want string
	}{
		{np("prod/", "", "i", nil, nil), `NetworkPolicy prod/: its name is "": use at most 253 letters, digits, '-', '_' and '.', with a letter or digit at both ends`},
		{np("prod/p\x1b[2J", "", "i", nil, nil), `NetworkPolicy "prod/p\x1b[2J": its name is "p\x1b[2J": use at most 253 letters, digits, '-', '_' and '.', with a letter or digit at both ends`},
		{np("/p", "", "i", nil, nil), `NetworkPolicy p: its namespace is "": use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends`},
		{np(long+"/p", "", "i", nil, nil), `NetworkPolicy ` + long + `/p: its namespace is ` + long + `: use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends`},
		{with(network(), func(p *policy.Policy) { p.Tier = policy.Admin }), "NetworkPolicy prod/p: it is of the tier Admin, but a NetworkPolicy is of the tier Network"},
		{with(network(), func(p *policy.Policy) { p.Priority = 1 }), "NetworkPolicy prod/p: it has a priority, which only a ClusterNetworkPolicy has"},
		{with(network(), func(p *policy.Policy) { p.Namespaces = sel("") }), "NetworkPolicy prod/p: its subject is in other namespaces than its own: use a ClusterNetworkPolicy"},
		{with(network(), func(p *policy.Policy) { p.Kind = 7 }), "ClusterNetworkPolicy prod/p: it is of the unknown kind 7"},
		{cnp("c", policy.Network, 1, "", nil, nil), "ClusterNetworkPolicy c: it is of the tier Network: use Admin or Baseline"},
		{cnp("c", policy.Admin, 1001, "", nil, nil), "ClusterNetworkPolicy c: its priority is 1001: use one from 0 to 1000"},
		{cnp("c", policy.Admin, -1, "", nil, nil), "ClusterNetworkPolicy c: its priority is -1: use one from 0 to 1000"},
		{with(cluster(nil), func(p *policy.Policy) { p.Namespace = "prod" }), "ClusterNetworkPolicy prod/c: it has a namespace, but is of the whole cluster"},
		{with(cluster(nil), func(p *policy.Policy) { p.Namespaces = nil }), "ClusterNetworkPolicy c: it does not say in which namespaces its subject is: an empty selector means all"},
		{with(cluster(nil), func(p *policy.Policy) { p.Isolates[0] = true }), "ClusterNetworkPolicy c: it isolates its subject, which only a NetworkPolicy does: use a rule that denies"},
		{network(repeat(1001, rule(""))...), "NetworkPolicy prod/p: it has 1001 ingress rules, more than 1000: make several policies of it"},
		{network(rule(""), deny(rule(""))), "NetworkPolicy prod/p: ingress rule 2: its action is Deny, but rules of a NetworkPolicy only accept"},
		{cluster(nil, policy.Rule{Action: 3}), "ClusterNetworkPolicy c: egress rule 1: it has the unknown action 3"},
		{cluster(nil, policy.Rule{Name: strings.Repeat("x", 254)}), "ClusterNetworkPolicy c: egress rule 1: its name has 254 bytes, more than 253"},
		{network(policy.Rule{AnyPeer: true, Peers: []policy.Peer{pods("")}}), "NetworkPolicy prod/p: ingress rule 1: it is for everyone and also lists peers"},
		{network(policy.Rule{AnyPort: true, Ports: []policy.Ports{{Protocol: policy.TCP}}}), "NetworkPolicy prod/p: ingress rule 1: it is for all ports and also lists some"},
		{network(rule("", pods(""), policy.Peer{})), "NetworkPolicy prod/p: ingress rule 1: peer 2: it is of 0 forms: use one of pods, nodes or addresses"},
		{network(rule("", policy.Peer{Pods: sel(""), Block: &policy.Block{}})), "NetworkPolicy prod/p: ingress rule 1: peer 1: it is of 2 forms: use one of pods, nodes or addresses"},
		{network(rule("", nodes(""))), "NetworkPolicy prod/p: ingress rule 1: peer 1: only egress rules of a ClusterNetworkPolicy select nodes"},
		{cluster(rules(rule("", nodes("")))), "ClusterNetworkPolicy c: ingress rule 1: peer 1: only egress rules of a ClusterNetworkPolicy select nodes"},
		{cluster(rules(rule("", block("10.0.0.0/8")))), "ClusterNetworkPolicy c: ingress rule 1: peer 1: ingress rules of a ClusterNetworkPolicy do not know addresses"},
		{cluster(rules(rule("", pods("")))), "ClusterNetworkPolicy c: ingress rule 1: peer 1: it does not say in which namespaces its pods are: an empty selector means all"},
		{network(rule("", policy.Peer{Block: &policy.Block{}})), "NetworkPolicy prod/p: ingress rule 1: peer 1: invalid Prefix is no prefix of IPv4 or IPv6"},
		{network(rule("", block("::ffff:10.0.0.0/104"))), "NetworkPolicy prod/p: ingress rule 1: peer 1: ::ffff:10.0.0.0/104 is no prefix of IPv4 or IPv6"},
		{network(rule("", block("10.0.0.1/8"))), "NetworkPolicy prod/p: ingress rule 1: peer 1: 10.0.0.1/8 has bits beyond its length: write 10.0.0.0/8"},
		{network(rule("", block("10.0.0.0/8", "10.0.0.0/16", "11.0.0.0/16"))), "NetworkPolicy prod/p: ingress rule 1: peer 1: 11.0.0.0/16 is left out of 10.0.0.0/8, but is not in it"},
		{network(rule("", block("10.0.0.0/8", "0.0.0.0/0"))), "NetworkPolicy prod/p: ingress rule 1: peer 1: 0.0.0.0/0 is left out of 10.0.0.0/8, but is not in it"},
		{network(rule("", block("0.0.0.0/0", "::/0"))), "NetworkPolicy prod/p: ingress rule 1: peer 1: ::/0 is left out of 0.0.0.0/0, but is not in it"},
		{network(port(policy.Ports{Protocol: 1})), "NetworkPolicy prod/p: ingress rule 1: port 1: ICMP: use TCP, UDP or SCTP"},
		{network(port(policy.Ports{})), "NetworkPolicy prod/p: ingress rule 1: port 1: it has no protocol: use TCP, UDP or SCTP"},
		{network(port(policy.Ports{Protocol: 6, First: 80, Last: 79})), "NetworkPolicy prod/p: ingress rule 1: port 1: its last port 79 is below its first, 80"},
		{network(port(policy.Ports{Protocol: 6, Last: 79})), "NetworkPolicy prod/p: ingress rule 1: port 1: its first port is 0: use one from 1 to 65535"},
		{network(port(policy.Ports{Protocol: 6, Name: "http", First: 1, Last: 1})), "NetworkPolicy prod/p: ingress rule 1: port 1: it has a name and also a number: use one of them"},
		{network(port(policy.Ports{Name: "a b"})), `NetworkPolicy prod/p: ingress rule 1: port 1: its name is "a b": use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends`},
		{network(requirement(policy.Requirement{Key: "a//b", Operator: policy.Exists})), "NetworkPolicy prod/p: ingress rule 1: peer 1: a//b is no label's key: use NAME or PREFIX/NAME, the name of at most 63 letters, digits, '-', '_' and '.'"},
		{network(requirement(policy.Requirement{Key: "app", Operator: 9})), "NetworkPolicy prod/p: ingress rule 1: peer 1: label app: unknown operator 9: use In, NotIn, Exists or DoesNotExist"},
		{network(requirement(policy.Requirement{Key: "app"})), "NetworkPolicy prod/p: ingress rule 1: peer 1: label app: In has no values: give it some"},
		{network(requirement(policy.Requirement{Key: "app", Operator: policy.Exists, Values: []string{"a"}})), "NetworkPolicy prod/p: ingress rule 1: peer 1: label app: Exists has values: leave them out"},
		{network(requirement(policy.Requirement{Key: "app", Values: []string{"a", "-"}})), "NetworkPolicy prod/p: ingress rule 1: peer 1: label app: - is no label's value: use at most 63 letters, digits, '-', '_' and '.'"},
		{network(requirement(policy.Requirement{Key: "app", Values: []string{"b", "a"}})), "NetworkPolicy prod/p: ingress rule 1: peer 1: label app: the value a is not in its place: sort them, none twice"},
		{network(rule("", policy.Peer{Pods: &policy.Selector{{Key: "b", Operator: policy.Exists}, {Key: "a", Operator: policy.Exists}}})), "NetworkPolicy prod/p: ingress rule 1: peer 1: the requirement a is not in its place: sort them"},
		{with(network(), func(p *policy.Policy) { p.Pods = &policy.Selector{{Key: ""}} }), `NetworkPolicy prod/p: the subject: "" is no label's key: use NAME or PREFIX/NAME, the name of at most 63 letters, digits, '-', '_' and '.'`},
	} {
		if err := c.p.Check(); err == nil || err.Error() != c.want {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
}

// TestHostile shows that no policy costs much: it is refused within a moment, in one short line, or judged and explained within a moment.
func TestHostile(t *testing.T) {
	for _, h := range policytest.Hostile() {
		t.Run(h.What, func(t *testing.T) {
			start := time.Now()
			err := h.Policy.Check()
			switch {
			case (err == nil) != (h.Refused == ""):
				t.Errorf("%v, want %q", err, h.Refused)
			case err != nil && (!strings.Contains(err.Error(), h.Refused) || len(err.Error()) > 1000 || strings.Contains(err.Error(), "\n")):
				t.Errorf("%.2000v, want %q", err, h.Refused)
			}
			if err != nil {
				h.Policy = h.Policy.Closed(err)
				if strings.Contains(h.Refused, "its name") {
					return // an object of that name cannot be
				}
				if err := h.Policy.Check(); err != nil {
					t.Errorf("closed: %v", err)
				}
			}
			w := town(h.Policy)
			for _, c := range []string{"web prod/db TCP 80", "prod/db web UDP 53", "api6 web6 ICMPv6", "web web TCP 80", "web 192.0.2.1 TCP 80"} {
				x := w.Why(connection(t, w, c))
				if text := x.Text(); len(text) > 20_000 {
					t.Errorf("why: %d bytes", len(text))
				}
			}
			for e := range w.Endpoints() {
				if s, _ := w.Summary(e.Name); len(s.Text()) > 2_000_000 {
					t.Errorf("summary: %d bytes", len(s.Text()))
				}
			}
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
}

// TestOddObjects shows that what nobody has checked does no harm either.
func TestOddObjects(t *testing.T) {
	w := town(
		&policy.Policy{Tier: 9, Namespaces: sel(""), Rules: [2][]policy.Rule{{rule("")}, {rule("")}}},
		&policy.Policy{PolicyKey: policy.PolicyKey{Kind: 9}, Tier: policy.Admin, Namespaces: sel(""), Rules: [2][]policy.Rule{{
			{Action: 9, Peers: []policy.Peer{{}, {Block: &policy.Block{Except: make([]netip.Prefix, 3)}}}, Ports: make([]policy.Ports, 2)},
			{Action: 9, Peers: []policy.Peer{{Nodes: &policy.Selector{{Operator: 9}}}, {Pods: &policy.Selector{{}}}}, Ports: []policy.Ports{{First: 9, Last: 1}, {Name: "\x00"}}},
		}}},
	)
	w.SetEndpoint(policy.Endpoint{Addrs: make([]netip.Addr, 3)})
	w.SetNode(policy.Node{Addrs: make([]netip.Addr, 3)})
	w.SetNamespace(policy.Namespace{})
	for _, c := range []policy.Connection{{}, {Protocol: 255, Port: 65535}, connection(t, w, "web prod/db TCP 80")} {
		if d := w.Judge(c); fmt.Sprint(d.Allowed()) != "true" {
			t.Errorf("%v: %+v", c, d)
		}
		if w.Why(c).Text() == "" {
			t.Errorf("%v: no words", c)
		}
	}
	for e := range w.Endpoints() {
		if s, ok := w.Summary(e.Name); !ok || s.Text() == "" {
			t.Errorf("%v: no words", e.Name)
		}
	}
}

func TestCheckObjects(t *testing.T) {
	addrs := func(a ...string) []netip.Addr {
		var all []netip.Addr
		for _, s := range a {
			all = append(all, netip.MustParseAddr(s))
		}
		return all
	}
	name := policy.Name{Namespace: "ns", Name: "e"}
	for _, c := range []struct {
		o    interface{ Check() error }
		want string
	}{
		{policy.Endpoint{Name: name, Addrs: addrs("10.0.0.1", "fd00::1"), Labels: map[string]string{"example.org/a": "", "b": "c"}}, ""},
		{policy.Endpoint{Name: policy.Name{Name: "e"}}, `endpoint e: its namespace is "": use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends`},
		{policy.Endpoint{Name: policy.Name{Namespace: "ns", Name: "-e"}}, `endpoint ns/-e: its name is -e: use at most 253 letters, digits, '-', '_' and '.', with a letter or digit at both ends`},
		{policy.Endpoint{Name: name, ID: strings.Repeat("x", 254)}, "endpoint ns/e: its ID or its node's name has more than 253 bytes"},
		{policy.Endpoint{Name: name, Labels: map[string]string{"a b": ""}}, `endpoint ns/e: "a b" is no label's key: use NAME or PREFIX/NAME, the name of at most 63 letters, digits, '-', '_' and '.'`},
		{policy.Endpoint{Name: name, Labels: map[string]string{"a": "b/c"}}, `endpoint ns/e: label a: b/c is no label's value: use at most 63 letters, digits, '-', '_' and '.'`},
		{policy.Endpoint{Name: name, Addrs: addrs("10.0.0.1", "10.0.0.2")}, "endpoint ns/e: it has the addresses 10.0.0.1 and 10.0.0.2: at most one of IPv4 and one of IPv6"},
		{policy.Endpoint{Name: name, Addrs: addrs("10.0.0.1", "fd00::1", "fd00::2")}, "endpoint ns/e: it has 3 addresses: at most one of IPv4 and one of IPv6"},
		{policy.Endpoint{Name: name, Addrs: addrs("::ffff:10.0.0.1")}, "endpoint ns/e: ::ffff:10.0.0.1 is no address of IPv4 or IPv6"},
		{policy.Endpoint{Name: name, Ports: []policy.NamedPort{{Name: "a", Protocol: 1, Port: 1}}}, "endpoint ns/e: port a is ICMP 1: use TCP, UDP or SCTP and a number from 1 to 65535"},
		{policy.Endpoint{Name: name, Ports: []policy.NamedPort{{Name: "a", Protocol: 6}}}, "endpoint ns/e: port a is TCP 0: use TCP, UDP or SCTP and a number from 1 to 65535"},
		{policy.Endpoint{Name: name, Ports: make([]policy.NamedPort, 1001)}, "endpoint ns/e: it has 1001 named ports, more than 1000"},
		{policy.Namespace{Name: "ns"}, ""},
		{policy.Namespace{Name: "ns", Labels: map[string]string{"/": ""}}, "namespace ns: / is no label's key: use NAME or PREFIX/NAME, the name of at most 63 letters, digits, '-', '_' and '.'"},
		{policy.Node{Name: "n.example.org", Addrs: addrs("10.0.0.1", "10.0.0.2")}, ""},
		{policy.Node{Name: "n", Addrs: addrs("fe80::1%eth0")}, "node n: fe80::1%eth0 is no address of IPv4 or IPv6"},
		{policy.Node{Name: "n", Addrs: make([]netip.Addr, 1001)}, "node n: it has 1001 addresses, more than 1000"},
	} {
		if err := c.o.Check(); c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
}

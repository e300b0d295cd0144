// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"testing"

	"github.com/weftnet/weft/policy"
)

// A verdictCase holds one sentence of a specification.
type verdictCase struct {
	says     string
	policies []*policy.Policy
	asked    map[string]string // connection -> decision, in the words of short
}

func ps(p ...*policy.Policy) []*policy.Policy { return p }

// networkCases are what NetworkPolicy (networking.k8s.io/v1) says.
func networkCases() []verdictCase {
	return []verdictCase{
		{"without policies everything is allowed", nil, map[string]string{
			"web prod/db TCP 80": "open / open", "web6 prod/db6 UDP 53": "open / open", "web prod/db ICMP": "open / open",
			"198.51.100.7 web TCP 80": "- / open", "web 198.51.100.7 TCP 80": "open / -", "198.51.100.7 192.0.2.1 TCP 80": "- / -",
		}},
		{"an empty podSelector selects all pods of the policy's namespace, and those of no other one", ps(np("default/p", "", "i", nil, nil)), map[string]string{
			"prod/db web TCP 80": "open / !p", "prod/db api TCP 80": "open / !p", "web prod/db TCP 80": "open / open", "web ghost/web TCP 80": "open / open",
		}},
		{"a policy without ingress rules isolates and allows nothing, of no protocol", ps(np("default/p", "app=web", "i", nil, nil)), map[string]string{
			"api web TCP 80": "open / !p", "api web UDP 53": "open / !p", "api web SCTP 9": "open / !p", "api web ICMP": "open / !p",
			"198.51.100.7 web TCP 80": "- / !p", "web api TCP 80": "open / open",
		}},
		{"a policy of type Egress alone does not isolate for ingress", ps(np("default/p", "app=web", "e", nil, nil)), map[string]string{
			"web api TCP 80": "!p / open", "api web TCP 80": "open / open",
		}},
		{"rules of a type that policyTypes leaves out say nothing, beside another policy too", ps(
			np("default/p", "app=web", "e", rules(rule("")), nil), np("default/q", "app=web", "i", nil, nil),
		), map[string]string{"api web TCP 80": "open / !q", "web api TCP 80": "!p / open"}},
		{"both types isolate both ways", ps(np("default/p", "app=web", "ie", nil, nil)), map[string]string{
			"web api TCP 80": "!p / open", "api web TCP 80": "open / !p",
		}},
		{"a rule without from and ports allows everything", ps(np("default/p", "", "i", rules(rule("")), nil)), map[string]string{
			"prod/db web TCP 80": "open / +p:1", "198.51.100.7 web ICMP": "- / +p:1", "prod/db6 web6 SCTP 1": "open / +p:1",
		}},
		{"both ends must allow it", ps(np("default/p", "app=web", "e", nil, rules(rule("", pods("app=api")))), np("default/q", "app=api", "i", rules(rule("TCP 80")), nil)), map[string]string{
			"web api TCP 80": "+p:1 / +q:1", "web api TCP 81": "+p:1 / !q", "web prod/db TCP 80": "!p / open", "prod/db api TCP 80": "open / +q:1",
		}},
		{"policies add up", ps(
			np("default/b", "", "i", rules(rule("TCP 80")), nil), np("default/a", "app=web", "i", rules(rule("TCP 443"), rule("TCP 80", pods("app=api"))), nil),
		), map[string]string{
			"prod/db web TCP 80": "open / +b:1", "prod/db web TCP 443": "open / +a:1", "api web TCP 80": "open / +a:2", "prod/db web TCP 22": "open / !a,b",
			"prod/db api TCP 443": "open / !b",
		}},
		{"a podSelector alone is about the policy's namespace", ps(np("default/p", "app=api", "i", rules(rule("", pods("app=web"))), nil)), map[string]string{
			"web api TCP 80": "open / +p:1", "ghost/web api TCP 80": "open / !p",
		}},
		{"an empty podSelector alone is all pods of the policy's namespace", ps(np("default/p", "app=api", "i", rules(rule("", pods(""))), nil)), map[string]string{
			"web api TCP 80": "open / +p:1", "prod/db api TCP 80": "open / !p", "198.51.100.7 api TCP 80": "- / !p", "192.0.2.1 api TCP 80": "- / !p",
		}},
		{"a namespaceSelector alone is all pods of these namespaces", ps(np("default/p", "app=api", "i", rules(rule("", spaces("team=b"))), nil)), map[string]string{
			"prod/db api TCP 80": "open / +p:1", "prod/cache api TCP 80": "open / +p:1", "web api TCP 80": "open / !p", "ghost/web api TCP 80": "open / !p",
		}},
		{"an empty namespaceSelector is all pods, and nobody else", ps(np("default/p", "app=api", "i", rules(rule("", spaces(""))), nil)), map[string]string{
			"ghost/web api TCP 80": "open / +p:1", "web api TCP 80": "open / +p:1", "198.51.100.7 api TCP 80": "- / !p", "192.0.2.1 api TCP 80": "- / !p",
		}},
		{"both selectors in one peer must fit", ps(np("default/p", "app=api", "i", rules(rule("", both("team=b", "app=db"))), nil)), map[string]string{
			"prod/db api TCP 80": "open / +p:1", "prod/cache api TCP 80": "open / !p", "web api TCP 80": "open / !p",
		}},
		{"of two peers one must fit", ps(np("default/p", "app=api", "i", rules(rule("", spaces("team=b"), pods("app=web"))), nil)), map[string]string{
			"prod/cache api TCP 80": "open / +p:1", "web api TCP 80": "open / +p:1", "ghost/web api TCP 80": "open / !p",
		}},
		{"every namespace has its name as a label, also one without an object", ps(np("default/p", "app=api", "i", rules(rule("", spaces(policy.NameLabel+"=ghost"))), nil)), map[string]string{
			"ghost/web api TCP 80": "open / +p:1", "web api TCP 80": "open / !p",
		}},
		{"operators: In, NotIn, Exists, DoesNotExist; the negated ones fit what has no such label", ps(
			np("prod/in", "", "i", rules(rule("TCP 1", both("", "app=web|api"))), nil),
			np("prod/notin", "", "i", rules(rule("TCP 2", both("", "app!=web|api")), rule("TCP 3", both("", "nolabel!=x"))), nil),
			np("prod/there", "", "i", rules(rule("TCP 4", both("", "tier"))), nil),
			np("prod/away", "", "i", rules(rule("TCP 5", both("", "!tier"))), nil),
		), map[string]string{
			"web prod/db TCP 1": "open / +in:1", "prod/cache prod/db TCP 1": "open / !away,in,notin,there",
			"web prod/db TCP 2": "open / !away,in,notin,there", "prod/cache prod/db TCP 2": "open / +notin:1", "web prod/db TCP 3": "open / +notin:2",
			"prod/cache prod/db TCP 4": "open / +there:1", "web prod/db TCP 4": "open / !away,in,notin,there", "web prod/db TCP 5": "open / +away:1",
		}},
		{"all requirements of a selector must fit", ps(np("prod/p", "tier=back app!=db", "i", nil, nil)), map[string]string{
			"web prod/cache TCP 80": "open / !p", "web prod/db TCP 80": "open / open",
		}},
		{"a peer and a port of the same rule must fit", ps(np("prod/p", "app=db", "i", rules(rule("TCP 80", both("", "app=web")), rule("TCP 81", both("", "app=api"))), nil)), map[string]string{
			"web prod/db TCP 80": "open / +p:1", "web prod/db TCP 81": "open / !p", "api prod/db TCP 81": "open / +p:2", "api prod/db TCP 80": "open / !p",
		}},
		{"a port is of its protocol alone", ps(np("prod/p", "app=db", "i", rules(rule("UDP 53, SCTP 7")), nil)), map[string]string{
			"web prod/db UDP 53": "open / +p:1", "web prod/db TCP 53": "open / !p", "web prod/db SCTP 7": "open / +p:1", "web prod/db UDP 7": "open / !p",
		}},
		{"a port without a number is all of the protocol", ps(np("prod/p", "app=db", "i", rules(rule("UDP")), nil)), map[string]string{
			"web prod/db UDP 1": "open / +p:1", "web prod/db UDP 65535": "open / +p:1", "web prod/db TCP 1": "open / !p", "web prod/db ICMP": "open / !p",
		}},
		{"endPort is the last one", ps(np("prod/p", "app=db", "i", rules(rule("TCP 80-90")), nil)), map[string]string{
			"web prod/db TCP 79": "open / !p", "web prod/db TCP 80": "open / +p:1", "web prod/db TCP 90": "open / +p:1", "web prod/db TCP 91": "open / !p", "web prod/db UDP 80": "open / !p",
		}},
		{"a port's name is that of the pod that is reached, of ingress", ps(np("prod/p", "", "i", rules(rule("TCP http")), nil)), map[string]string{
			"web prod/db TCP 8080": "open / +p:1", "web prod/db TCP 80": "open / !p", "web prod/cache TCP 80": "open / +p:1", "web prod/cache TCP 8080": "open / !p",
		}},
		{"a port's name is that of the pod that is reached, of egress", ps(np("default/p", "", "e", nil, rules(rule("TCP http")))), map[string]string{
			"web prod/db TCP 8080": "+p:1 / open", "web prod/cache TCP 80": "+p:1 / open", "web prod/cache TCP 8080": "!p / open", "web 198.51.100.7 TCP 80": "!p / -", "web api TCP 80": "!p / open",
		}},
		{"a port's name is of its protocol", ps(np("prod/p", "", "i", rules(rule("UDP dns, UDP http")), nil)), map[string]string{
			"web prod/db UDP 53": "open / +p:1", "web prod/db TCP 53": "open / !p", "web prod/db UDP 8080": "open / !p",
		}},
		{"a name that the pod does not give to a port allows nothing", ps(np("prod/p", "", "i", rules(rule("TCP nosuch")), nil)), map[string]string{"web prod/db TCP 8080": "open / !p"}},
		{"an ipBlock is about everything with such an address", ps(np("prod/p", "app=db", "i", rules(rule("", block("198.51.100.0/24")), rule("", block("10.32.0.0/24", "10.32.0.2/32"))), nil)), map[string]string{
			"198.51.100.7 prod/db TCP 80": "- / +p:1", "web prod/db TCP 80": "open / +p:2", "api prod/db TCP 80": "open / !p", "192.0.2.2 prod/db TCP 80": "- / !p",
		}},
		{"what one block leaves out another one may allow", ps(np("prod/p", "app=db", "i", rules(rule("", block("10.32.0.0/24", "10.32.0.2/32"), block("10.32.0.2/32"))), nil)), map[string]string{
			"api prod/db TCP 80": "open / +p:1",
		}},
		{"blocks of IPv6, and parts of them that overlap", ps(np("prod/p", "app=db", "i", rules(rule("", block("fd32::/64", "fd32::/126", "fd32::2/128"))), nil)), map[string]string{
			"web6 prod/db6 TCP 80": "open / !p", "api6 prod/db6 TCP 80": "open / !p", "prod/cache6 prod/db6 TCP 80": "open / +p:1", "prod/cache prod/db TCP 80": "open / !p",
		}},
		{"all of IPv4 is nothing of IPv6", ps(np("default/p", "app=web", "e", nil, rules(rule("", block("0.0.0.0/0"))))), map[string]string{
			"web api TCP 80": "+p:1 / open", "web 198.51.100.7 TCP 80": "+p:1 / -", "web6 api6 TCP 80": "!p / open", "web api ICMP": "+p:1 / open",
		}},
		{"a block is about egress, too", ps(np("default/p", "app=web", "e", nil, rules(rule("TCP 443", block("0.0.0.0/0", "10.0.0.0/8"))))), map[string]string{
			"web 198.51.100.7 TCP 443": "+p:1 / -", "web api TCP 443": "!p / open", "web 198.51.100.7 TCP 80": "!p / -",
		}},
		{"from its own node a pod is always reached", ps(np("default/p", "app=web", "i", nil, nil)), map[string]string{
			"192.0.2.1 web TCP 80": "- / node", "10.32.1.1 web ICMP": "- / node", "fd32::101 web6 UDP 1": "- / node", "192.0.2.2 web TCP 80": "- / !p",
		}},
		{"and it always reaches that node", ps(np("default/p", "app=web", "e", nil, nil)), map[string]string{
			"web 192.0.2.1 TCP 80": "node / -", "web6 fd32::101 TCP 80": "node / -", "web 192.0.2.2 TCP 80": "!p / -",
		}},
		{"a pod cannot block access to itself", ps(np("default/p", "app=web", "ie", nil, nil)), map[string]string{"web web TCP 80": "self / self", "web6 web6 TCP 80": "self / self"}},
		{"a policy that selects nothing does nothing", ps(np("default/p", "app=nobody", "ie", nil, nil)), map[string]string{"web api TCP 80": "open / open"}},
		{"a rule that could not be understood allows nothing", ps(np("default/p", "app=web", "i", rules(disabled(rule(""))), nil)), map[string]string{"api web TCP 80": "open / !p"}},
	}
}

func disabled(r policy.Rule) policy.Rule { r.Disabled = true; return r }

// clusterCases are what ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) says.
func clusterCases() []verdictCase {
	const a, b = policy.Admin, policy.Baseline
	all := rule("", spaces(""))
	isolated := np("default/np", "app=web", "ie", nil, nil)
	return []verdictCase{
		{"a policy does not isolate: what no rule fits goes on", ps(cnp("c", a, 1, "", rules(rule("TCP 80", spaces("team=b"))), nil)), map[string]string{
			"prod/db web TCP 80": "open / +c:1", "prod/db web TCP 81": "open / open", "api web TCP 80": "open / open",
		}},
		{"Deny denies, of each end by its own rules", ps(cnp("c", a, 1, "/app=web", rules(deny(rule("", spaces("team=b")))), rules(deny(rule("UDP 53", spaces("")))))), map[string]string{
			"prod/db web TCP 80": "open / -c:1", "web prod/db TCP 80": "open / open", "web prod/db UDP 53": "-c:1 / open", "api web TCP 80": "open / open",
		}},
		{"the first rule that fits decides", ps(cnp("c", a, 1, "/app=web", rules(rule("TCP 80", all.Peers...), deny(all), rule("TCP 81", all.Peers...)), nil)), map[string]string{
			"api web TCP 80": "open / +c:1", "api web TCP 81": "open / -c:2",
		}},
		{"the lower priority is asked first, in whatever order they come", ps(
			cnp("a", a, 9, "", rules(deny(all)), nil), cnp("b", a, 3, "", rules(rule("TCP 80", all.Peers...)), nil),
		), map[string]string{"api web TCP 80": "open / +b:1", "api web TCP 81": "open / -a:1"}},
		{"of the same priority the name decides", ps(cnp("b", a, 3, "", rules(rule("TCP 80", all.Peers...)), nil), cnp("a", a, 3, "", rules(deny(all)), nil)), map[string]string{
			"api web TCP 80": "open / -a:1",
		}},
		{"Accept of the Admin tier goes before a NetworkPolicy", ps(isolated, cnp("c", a, 1, "", rules(rule("TCP 80", all.Peers...)), nil)), map[string]string{
			"api web TCP 80": "open / +c:1", "api web TCP 81": "open / !np",
		}},
		{"Deny of the Admin tier goes before a NetworkPolicy", ps(np("default/np", "", "i", rules(rule("")), nil), cnp("c", a, 1, "", rules(deny(rule("TCP 80", all.Peers...))), nil)), map[string]string{
			"api web TCP 80": "open / -c:1", "api web TCP 81": "open / +np:1",
		}},
		{"Pass goes on to the Network tier, past the rest of its own", ps(isolated, cnp("c", a, 1, "", rules(pass(rule("TCP 80", all.Peers...)), rule("", all.Peers...)), nil), cnp("d", a, 2, "", rules(all), nil)), map[string]string{
			"api web TCP 80": "open / !np", "api web TCP 81": "open / +c:2",
		}},
		{"and where there is no NetworkPolicy, to the Baseline tier", ps(cnp("c", a, 1, "", rules(pass(all), all), nil), cnp("d", b, 1, "", rules(deny(rule("TCP 80", all.Peers...))), nil)), map[string]string{
			"api web TCP 80": "open / -d:1", "api web TCP 81": "open / open",
		}},
		{"Baseline is asked if no NetworkPolicy isolates in that direction", ps(np("default/np", "app=web", "i", rules(rule("TCP 80")), nil), cnp("d", b, 1, "", rules(deny(all)), rules(deny(all)))), map[string]string{
			"api web TCP 80": "-d:1 / +np:1", "198.51.100.7 web TCP 80": "- / +np:1", "api web TCP 81": "-d:1 / !np", "web api TCP 80": "-d:1 / -d:1", "198.51.100.7 api TCP 80": "- / open",
		}},
		{"a NetworkPolicy goes before Accept of the Baseline tier", ps(isolated, cnp("d", b, 1, "", rules(all), nil)), map[string]string{"api web TCP 80": "open / !np", "web api TCP 80": "!np / +d:1"}},
		{"Pass of the Baseline tier leaves it at the default, past the rest of the tier", ps(cnp("d", b, 1, "", rules(pass(rule("TCP 80", all.Peers...)), deny(all)), nil)), map[string]string{
			"api web TCP 80": "open / open", "api web TCP 81": "open / -d:2",
		}},
		{"Admin goes before Baseline whatever the priorities", ps(cnp("c", a, 1000, "", rules(all), nil), cnp("d", b, 0, "", rules(deny(all)), nil)), map[string]string{"api web TCP 80": "open / +c:1"}},
		{"the subject is all pods of its namespaces", ps(cnp("c", a, 1, "team=b", rules(deny(all)), nil)), map[string]string{"web prod/db TCP 80": "open / -c:1", "web prod/cache TCP 80": "open / -c:1", "web api TCP 80": "open / open"}},
		{"or those that also fit a podSelector", ps(cnp("c", a, 1, "team=b/app=db", rules(deny(all)), nil)), map[string]string{"web prod/db TCP 80": "open / -c:1", "web prod/cache TCP 80": "open / open"}},
		{"an empty podSelector is all pods", ps(cnp("c", a, 1, "team=b/", rules(deny(all)), nil)), map[string]string{"web prod/cache TCP 80": "open / -c:1", "prod/cache web TCP 80": "open / open"}},
		{"a policy without ingress rules does not affect ingress", ps(cnp("c", a, 1, "", nil, rules(deny(all)))), map[string]string{"198.51.100.7 web TCP 80": "- / open", "web api TCP 80": "-c:1 / open"}},
		{"namespaces as peers are all their pods, pods as peers those that fit too; neither is a node or the outside", ps(
			cnp("c", a, 1, "/app=web", rules(deny(rule("TCP 80", spaces(""))), deny(rule("TCP 81", both("team=b", "app=db")))), nil),
		), map[string]string{
			"api web TCP 80": "open / -c:1", "198.51.100.7 web TCP 80": "- / open", "192.0.2.2 web TCP 80": "- / open",
			"prod/db web TCP 81": "open / -c:2", "prod/cache web TCP 81": "open / open",
		}},
		{"nodes as peers are all their addresses", ps(cnp("c", a, 1, "", nil, rules(deny(rule("", nodes("zone=y")))))), map[string]string{
			"web 192.0.2.2 TCP 80": "-c:1 / -", "web6 fd32::102 TCP 80": "-c:1 / -", "web 192.0.2.1 TCP 80": "open / -", "web api TCP 80": "open / open", "web 198.51.100.7 TCP 80": "open / -",
		}},
		{"an empty selector of nodes is all nodes, the pod's own too", ps(cnp("c", a, 1, "", nil, rules(deny(rule("", nodes("")))))), map[string]string{
			"web 192.0.2.2 TCP 80": "-c:1 / -", "web 192.0.2.1 TCP 80": "-c:1 / -", "web api TCP 80": "open / open",
		}},
		{"networks are everything with such an address, pods and nodes too, and ICMP", ps(cnp("c", a, 1, "/app=web", nil, rules(deny(rule("", block("0.0.0.0/0")))))), map[string]string{
			"web api TCP 80": "-c:1 / open", "web 198.51.100.7 UDP 1": "-c:1 / -", "web 192.0.2.2 TCP 80": "-c:1 / -", "web api ICMP": "-c:1 / open", "web6 api6 TCP 80": "open / open",
		}},
		{"a rule before it passes the pods", ps(cnp("c", a, 1, "/app=web", nil, rules(pass(all), deny(rule("", block("0.0.0.0/0")))))), map[string]string{
			"web api TCP 80": "open / open", "web 198.51.100.7 TCP 80": "-c:2 / -",
		}},
		{"protocols: of one without a port all ports, ranges with both ends, SCTP", ps(cnp("c", a, 1, "/app=web", rules(deny(rule("UDP, TCP 80-81, SCTP 5", all.Peers...))), nil)), map[string]string{
			"api web UDP 7": "open / -c:1", "api web TCP 79": "open / open", "api web TCP 81": "open / -c:1", "api web SCTP 5": "open / -c:1", "api web SCTP 6": "open / open", "api web ICMP": "open / open",
		}},
		{"a rule without protocols is about all, also those without ports", ps(cnp("c", a, 1, "/app=web", rules(deny(all)), nil)), map[string]string{"api web ICMP": "open / -c:1", "api6 web6 ICMPv6": "open / -c:1"}},
		{"a destination's port by name, of whatever protocol", ps(cnp("c", a, 1, "", rules(deny(rule("- dns", all.Peers...))), rules(deny(rule("- http", all.Peers...))))), map[string]string{
			"web prod/db UDP 53": "open / -c:1", "web prod/db TCP 53": "open / -c:1", "web prod/db SCTP 53": "open / open", "web api UDP 53": "open / open",
			"web prod/db TCP 8080": "-c:1 / open", "web prod/cache TCP 8080": "open / open", "web prod/cache TCP 80": "-c:1 / open",
		}},
		{"the own node reaches a pod whatever the policies", ps(cnp("c", a, 1, "", rules(deny(rule(""))), nil)), map[string]string{"192.0.2.1 web TCP 80": "- / node", "192.0.2.2 web TCP 80": "- / -c:1"}},
		{"to the own node Admin decides, then nothing that isolates", ps(isolated, cnp("c", a, 1, "", nil, rules(deny(rule("TCP 80", block("192.0.2.0/24"))), pass(rule("TCP 81", nodes(""))))), cnp("d", b, 1, "", nil, rules(deny(rule("", nodes("")))))), map[string]string{
			"web 192.0.2.1 TCP 80": "-c:1 / -", "web 192.0.2.1 TCP 81": "node / -", "web 192.0.2.1 TCP 82": "node / -", "web 192.0.2.2 TCP 81": "!np / -", "prod/db 192.0.2.1 TCP 81": "-d:1 / -",
		}},
		{"through a Service to itself a pod is subject to it, both ways", ps(isolated, cnp("c", a, 1, "/app=web", rules(deny(rule("TCP 80", all.Peers...))), rules(deny(rule("TCP 81", all.Peers...)))), cnp("d", b, 1, "", rules(deny(all)), nil)), map[string]string{
			"web web TCP 80": "self / -c:1", "web web TCP 81": "-c:1 / self", "web web TCP 82": "self / self", "prod/db prod/db TCP 80": "open / -d:1",
		}},
		{"a rule that could not be understood and would accept says nothing", ps(cnp("c", a, 1, "", rules(disabled(all), deny(rule("TCP 80", all.Peers...))), nil)), map[string]string{
			"api web TCP 80": "open / -c:2", "api web TCP 81": "open / open",
		}},
	}
}

func TestJudge(t *testing.T) {
	for _, c := range append(networkCases(), clusterCases()...) {
		t.Run(c.says, func(t *testing.T) {
			for _, p := range c.policies {
				if err := p.Check(); err != nil {
					t.Error(err)
				}
			}
			w := town(c.policies...)
			for asked, want := range c.asked {
				if got := short(w.Judge(connection(t, w, asked))); got != want {
					t.Errorf("%s: %s, want %s", asked, got, want)
				}
			}
		})
	}
}

// TestJudgeFollows changes one object after another.
func TestJudgeFollows(t *testing.T) {
	w := town(np("prod/p", "app=db", "i", rules(rule("TCP http", both("team=a", "app=web"))), nil))
	c := connection(t, w, "web prod/db TCP 8080")
	is := func(step, want string) {
		t.Helper()
		if got := short(w.Judge(c)); got != want {
			t.Errorf("%s: %s, want %s", step, got, want)
		}
	}
	is("the namespace has no such label", "open / !p")
	w.SetNamespace(policy.Namespace{Name: "default", Labels: map[string]string{"team": "a"}})
	is("it has", "open / +p:1")
	web, _ := w.Endpoint(policy.Name{Namespace: "default", Name: "web"})
	relabelled := web
	relabelled.Labels = map[string]string{"app": "other"}
	w.SetEndpoint(relabelled)
	is("the source is another one", "open / !p")
	w.SetEndpoint(web)
	is("and again that", "open / +p:1")
	db, _ := w.Endpoint(policy.Name{Namespace: "prod", Name: "db"})
	moved := db
	moved.Ports = nil
	w.SetEndpoint(moved)
	is("the port has no name", "open / !p")
	moved.Labels = nil
	w.SetEndpoint(moved)
	is("the policy does not select it", "open / open")
	w.SetEndpoint(db)
	w.DeleteNamespace("default")
	is("the namespace is gone, and its label", "open / !p")
	w.SetPolicy(np("prod/p", "app=db", "i", rules(rule("")), nil))
	is("the policy is another one", "open / +p:1")
	w.DeleteEndpoint(web.Name)
	is("the source is gone", "- / +p:1")
	w.DeletePolicy(policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "prod", Name: "p"}})
	is("the policy is gone", "- / open")
	w.DeleteEndpoint(db.Name)
	is("nobody is left", "- / -")
}

// TestUnchecked shows that a policy that no Check has seen allows no more than one that it lets pass.
func TestUnchecked(t *testing.T) {
	w := town(np("default/p", "app=web", "i", rules(deny(rule("")), pass(rule(""))), nil))
	if got := short(w.Judge(connection(t, w, "api web TCP 80"))); got != "open / !p" {
		t.Errorf("%s: rules of a NetworkPolicy that do not accept allow nothing", got)
	}
}

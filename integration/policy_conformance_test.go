// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/policy"
)

// The cases of ClusterNetworkPolicy's conformance suite (sigs.k8s.io/network-policy-api, conformance, v1alpha2), told anew: which rules are asked first, what they say of
// protocols and ports, how the tiers and NetworkPolicies go together, and each form of a peer. Policies are about the workloads of the namespace
// "own"; the others stand for how rules speak of them: "all" whatever the port, "some" at some ports, "rest" at some ports with another rule for the rest.

// conformancePorts are those that all serve.
const conformancePorts = "tcp/80 tcp/8080 udp/53 udp/5353 sctp/9003 sctp/9005"

// houses are the namespaces.
func houses() []string { return []string{"own", "all", "some", "rest"} }

// protocolPort reads a part of conformancePorts.
func protocolPort(s string) (policy.Protocol, uint16) {
	name, number, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		panic(err)
	}
	return map[string]policy.Protocol{"tcp": policy.TCP, "udp": policy.UDP, "sctp": policy.SCTP}[name], uint16(n)
}

// A claim is what should be so of connections from one namespace to another one.
type claim struct {
	from, to string // a namespace, or NAMESPACE/WORKLOAD, or "nodes"
	allowed  string // these ports, and no others
}

// conformance is the lab of all cases.
type conformance struct {
	*town
	t     *testing.T
	hosts []*lab.Host
	addrs map[string][]netip.Addr // by NAMESPACE/WORKLOAD and "nodes/HOST"
}

func newConformance(t *testing.T) *conformance {
	t.Helper()
	m, hosts := hostsOf(t, 2)
	c := &conformance{town: newTown(), t: t, hosts: m.Hosts(), addrs: map[string][]netip.Addr{}}
	var ports []uint16
	for p := range strings.FieldsSeq(conformancePorts) {
		_, n := protocolPort(p)
		ports = append(ports, n)
	}
	for _, h := range hosts {
		known := append(ownAddrs(t, h), h.Link().V4(), h.Link().V6())
		c.settle(t, h.Namespace, ports, known...)
		c.addrs["nodes/"+h.Name()] = known
	}
	for _, house := range houses() {
		for i, name := range []string{"a", "b"} {
			w := hosts[i].Workload(house + "-" + name)
			w.Attach("--namespace", house, "--name", name, "--label", "house="+house, "--label", "pod="+name, "--port", "web=80/tcp", "--port", "dns=53/udp")
			c.settle(t, w.Namespace, ports, w.Addrs()...)
			c.addrs[house+"/"+name] = w.Addrs()
		}
	}
	for _, house := range houses() { // who is about to be denied by its labels has to be known by them everywhere
		for i, name := range []string{"a", "b"} {
			labelled(t, hosts, policy.Name{Namespace: house, Name: name + "@" + hosts[i].Name()}, map[string]string{"house": house, "pod": name})
		}
	}
	return c
}

// who returns the addresses that a word of a claim means.
func (c *conformance) who(word string) (out []netip.Addr) {
	for name, addrs := range c.addrs {
		if name == word || strings.HasPrefix(name, word+"/") {
			out = append(out, addrs...)
		}
	}
	return out
}

// namespaceLabels give each namespace the label by which policies know it.
func namespaceLabels() (out []keys) {
	for _, h := range houses() {
		out = append(out, namespaceManifest(h, map[string]string{"house": h}))
	}
	return out
}

// holds puts the objects in force, and nothing else, and tries what is claimed.
func (c *conformance) holds(objects []keys, claims ...claim) {
	c.t.Helper()
	var names []string
	for _, o := range objects {
		meta := o["metadata"].(keys)
		switch o["kind"] {
		case "NetworkPolicy":
			names = append(names, fmt.Sprintf("%v/%v", meta["namespace"], meta["name"]))
		case "ClusterNetworkPolicy":
			names = append(names, meta["name"].(string))
		}
	}
	enact(c.t, c.hosts, manifests(c.t, objects...), names...)
	var tries []expect
	for _, k := range claims {
		for i, from := range c.who(k.from) {
			for j, to := range c.who(k.to) {
				if from.Is4() != to.Is4() {
					continue
				}
				for n, p := range strings.Fields(conformancePorts) {
					if (i/2+j/2+n)%2 == 0 && !strings.Contains(k.to, "nodes") && !strings.Contains(k.to+k.from, "/") {
						continue // each port between two of four pairs is enough
					}
					protocol, port := protocolPort(p)
					tries = append(tries, expect{policy.Connection{Src: from, Dst: to, Protocol: protocol, Port: port}, slices.Contains(strings.Fields(k.allowed), p)})
				}
			}
		}
	}
	if err := c.all(tries); err != nil {
		c.t.Error(err)
	}
}

// cluster is a ClusterNetworkPolicy about "own".
func cluster(name, tier string, priority int, rules map[string][]keys) keys {
	spec := keys{"tier": tier, "priority": priority, "subject": keys{"namespaces": keys{"matchLabels": keys{"kubernetes.io/metadata.name": "own"}}}}
	for direction, of := range rules {
		spec[direction] = of
	}
	return keys{"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": keys{"name": name}, "spec": spec}
}

// gress are the same rules in both directions.
func gress(rules ...func(side string) keys) map[string][]keys {
	out := map[string][]keys{}
	for direction, side := range map[string]string{"ingress": "from", "egress": "to"} {
		for _, r := range rules {
			out[direction] = append(out[direction], r(side))
		}
	}
	return out
}

// ruleOf is a rule about a peer; ports are none for all, or as conformancePorts.
func ruleOf(action string, ports string, peers ...keys) func(side string) keys {
	return func(side string) keys {
		r := keys{"action": action, side: peers}
		var protocols []keys
		for p := range strings.FieldsSeq(ports) {
			protocol, number, _ := strings.Cut(p, "/")
			if protocol == "named" {
				protocols = append(protocols, keys{"destinationNamedPort": number})
				continue
			}
			port := keys{}
			if first, last, ok := strings.Cut(number, "-"); ok {
				port["range"] = keys{"start": atoi(first), "end": atoi(last)}
			} else {
				port["number"] = atoi(number)
			}
			protocols = append(protocols, keys{protocol: keys{"destinationPort": port}})
		}
		if protocols != nil {
			r["protocols"] = protocols
		}
		return r
	}
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

// house is a peer: a namespace by its name, and by labels of it and of its workloads.
func house(name string) keys {
	return keys{"namespaces": keys{"matchLabels": keys{"kubernetes.io/metadata.name": name}}}
}

func podsOf(name string) keys {
	labels := keys{"matchLabels": keys{"house": name}}
	return keys{"pods": keys{"namespaceSelector": labels, "podSelector": labels}}
}

// everywhere is a peer: all addresses.
func everywhere() keys { return keys{"networks": []string{"0.0.0.0/0", "::/0"}} }

// anyNode is a peer: all hosts.
func anyNode() keys {
	return keys{"nodes": keys{"matchExpressions": []keys{{"key": "kubernetes.io/hostname", "operator": "Exists"}}}}
}

// without are the conformancePorts but for some.
func without(ports string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(conformancePorts), func(p string) bool { return slices.Contains(strings.Fields(ports), p) }), " ")
}

// both claims it in both directions.
func both(with, allowed string) []claim {
	return []claim{{"own", with, allowed}, {with, "own", allowed}}
}

// TestClusterPolicyConformance holds rules that name protocols and ports, in each order, to what they say.
func TestClusterPolicyConformance(t *testing.T) {
	t.Parallel()
	c := newConformance(t)
	labels := namespaceLabels()
	type ports struct{ deny, accept string }
	for name, p := range map[string]ports{
		"TCP":      {"tcp/80", "tcp/8080"},
		"UDP":      {"udp/53", "udp/5353"},
		"SCTP":     {"sctp/9003", "sctp/9003"},
		"combined": {"tcp/80 udp/53 sctp/9003", "tcp/8080 udp/5353 sctp/9003"},
	} {
		accept, deny, pass := ruleOf("Accept", "", house("all")), ruleOf("Deny", "", house("all")), ruleOf("Pass", "", house("all"))
		denySome, passSome := ruleOf("Deny", p.deny, house("some")), ruleOf("Pass", p.deny, house("some"))
		acceptRest, denyRest := ruleOf("Accept", p.accept, house("rest")), ruleOf("Deny", "", house("rest"))
		for _, tier := range []string{"Admin", "Baseline"} {
			orders := map[string]struct {
				rules     []func(string) keys
				all, some string
			}{
				"accept first": {[]func(string) keys{accept, deny, pass, denySome, passSome, acceptRest, denyRest}, conformancePorts, without(p.deny)},
				"deny first":   {[]func(string) keys{deny, accept, pass, denySome, passSome, acceptRest, denyRest}, "", without(p.deny)},
				"pass first":   {[]func(string) keys{pass, deny, accept, passSome, denySome, acceptRest, denyRest}, conformancePorts, conformancePorts},
			}
			for order, o := range orders {
				t.Run(fmt.Sprint(tier, " ", name, " ", order), func(t *testing.T) {
					c.t = t
					claims := slices.Concat(both("all", o.all), both("some", o.some), both("rest", p.accept))
					c.holds(append([]keys{cluster("rules", tier, 15, gress(o.rules...))}, labels...), claims...)
				})
			}
		}
	}
	// Only one direction.
	rules := gress(ruleOf("Deny", "", house("all")))
	for _, tier := range []string{"Admin", "Baseline"} {
		t.Run(tier+" ingress", func(t *testing.T) {
			c.t = t
			c.holds(append([]keys{cluster("rules", tier, 15, map[string][]keys{"ingress": rules["ingress"]})}, labels...), claim{"all", "own", ""}, claim{"own", "all", conformancePorts})
		})
		t.Run(tier+" egress", func(t *testing.T) {
			c.t = t
			c.holds(append([]keys{cluster("rules", tier, 15, map[string][]keys{"egress": rules["egress"]})}, labels...), claim{"all", "own", conformancePorts}, claim{"own", "all", ""})
		})
	}
}

// TestClusterPolicyTiers holds policies to their order: by priority, and by tier, with NetworkPolicies between them.
func TestClusterPolicyTiers(t *testing.T) {
	t.Parallel()
	c := newConformance(t)
	labels := namespaceLabels()
	say := func(action string) map[string][]keys { return gress(ruleOf(action, "", podsOf("some"))) }
	open := slices.Concat(both("some", conformancePorts), both("all", conformancePorts))
	shut := slices.Concat(both("some", ""), both("all", conformancePorts))
	np := keys{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": keys{"name": "some", "namespace": "own"},
		"spec": keys{
			"podSelector": keys{}, "policyTypes": []string{"Ingress", "Egress"},
			"ingress": []keys{{"from": []keys{{"namespaceSelector": keys{"matchLabels": keys{"house": "some"}}}}}},
			"egress":  []keys{{"to": []keys{{"namespaceSelector": keys{"matchLabels": keys{"house": "some"}}}}}},
		},
	}
	isolated := slices.Concat(both("some", conformancePorts), both("all", ""))
	deny, pass, accept := cluster("first", "Admin", 50, say("Deny")), cluster("second", "Admin", 60, say("Pass")), cluster("base", "Baseline", 10, say("Accept"))
	sooner := cluster("second", "Admin", 40, say("Pass"))
	baseDeny := cluster("base", "Baseline", 10, say("Deny"))
	for _, k := range []struct {
		name    string
		objects []keys
		claims  []claim
	}{
		{"the lower priority decides", []keys{deny, pass, accept}, shut},
		{"a priority that changes", []keys{deny, sooner, accept}, open},
		{"accept before deny", []keys{deny, cluster("second", "Admin", 40, say("Accept")), baseDeny}, open},
		{"Baseline by priority", []keys{cluster("base", "Baseline", 10, say("Accept")), cluster("late", "Baseline", 20, say("Deny"))}, open},
		{"Baseline by priority, the other way", []keys{cluster("base", "Baseline", 30, say("Accept")), cluster("late", "Baseline", 20, say("Deny"))}, shut},
		{"Admin denies before NetworkPolicy", []keys{deny, np, baseDeny}, slices.Concat(both("some", ""), both("all", ""))},
		{"Admin passes to NetworkPolicy", []keys{cluster("first", "Admin", 50, say("Pass")), np, baseDeny}, isolated},
		{"Admin passes to Baseline", []keys{cluster("first", "Admin", 50, say("Pass")), baseDeny}, shut},
		{"NetworkPolicy before Baseline", []keys{np, baseDeny}, isolated},
		{"Admin accepts before NetworkPolicy", []keys{cluster("first", "Admin", 50, gress(ruleOf("Accept", "", house("all")))), np}, open},
		{"nothing", nil, open},
	} {
		t.Run(k.name, func(t *testing.T) {
			c.t = t
			c.holds(append(slices.Clone(k.objects), labels...), k.claims...)
		})
	}
}

// TestClusterPolicyPeers holds rules to whom they are about: networks, nodes, workloads by labels that change, ports by their names and ranges of them.
func TestClusterPolicyPeers(t *testing.T) {
	t.Parallel()
	c := newConformance(t)
	labels := namespaceLabels()
	egress := func(tier string, rules ...func(string) keys) keys {
		return cluster("peers", tier, 75, map[string][]keys{"egress": gress(rules...)["egress"]})
	}
	only := func(name string) keys { // an address of each family
		var all []string
		for _, a := range c.addrs[name] {
			all = append(all, netip.PrefixFrom(a, a.BitLen()).String())
		}
		return keys{"networks": all}
	}
	others := slices.DeleteFunc(slices.Clone(labels), func(k keys) bool { return k["metadata"].(keys)["name"] == "some" })
	relabelled := append(others, namespaceManifest("some", map[string]string{"house": "another"}))
	for _, tier := range []string{"Admin", "Baseline"} {
		some, none := ruleOf("Accept", "", podsOf("some")), ruleOf("Deny", "", everywhere())
		nodes := egress(tier, ruleOf("Accept", "tcp/80", anyNode()), ruleOf("Deny", "", podsOf("some"), anyNode(), everywhere()))
		if tier == "Admin" {
			nodes = egress(tier, ruleOf("Accept", "tcp/80", anyNode()), ruleOf("Pass", "udp/53", anyNode()), ruleOf("Deny", "", podsOf("some"), anyNode(), everywhere()))
		}
		toNodes := map[string]string{"Admin": "tcp/80 udp/53", "Baseline": "tcp/80"}[tier]
		for _, k := range []struct {
			name    string
			objects []keys
			claims  []claim
		}{
			{"networks", append([]keys{egress(tier, some, none)}, labels...), []claim{{"own", "some", conformancePorts}, {"own", "all", ""}, {"own", "rest", ""}, {"all", "own", conformancePorts}}},
			{"a namespace that has another label", append([]keys{egress(tier, some, none)}, relabelled...), []claim{{"own", "some", ""}, {"own", "rest", ""}}},
			{"and again the old one", append([]keys{egress(tier, some, none)}, labels...), []claim{{"own", "some", conformancePorts}, {"own", "rest", ""}}},
			{
				"networks of single workloads", append([]keys{egress(tier, ruleOf("Accept", "", only("all/a"), only("rest/a")), some, none)}, labels...),
				[]claim{{"own", "all/a", conformancePorts}, {"own", "rest/a", conformancePorts}, {"own", "all/b", ""}, {"own", "rest/b", ""}, {"own", "some", conformancePorts}},
			},
			{"nodes", append([]keys{nodes}, labels...), []claim{{"own", "nodes", toNodes}, {"own", "some", ""}, {"own", "all", ""}, {"all", "nodes", conformancePorts}}},
			{"a range of ports on nodes", append([]keys{egress(tier, ruleOf("Accept", "tcp/80-8080", anyNode()), ruleOf("Deny", "", anyNode(), everywhere()))}, labels...), []claim{{"own", "nodes", "tcp/80 tcp/8080"}, {"own", "all", ""}}},
			{
				"names of ports", append([]keys{cluster("peers", tier, 75, gress(ruleOf("Accept", "named/web named/dns", house("rest")), ruleOf("Deny", "", house("rest"))))}, labels...),
				both("rest", "tcp/80 udp/53"),
			},
			{
				"ranges of ports", append([]keys{cluster("peers", tier, 75, gress(ruleOf("Accept", "tcp/8000-9000 udp/1-53 sctp/9004-65535", house("rest")), ruleOf("Deny", "", house("rest"))))}, labels...),
				both("rest", "tcp/8080 udp/53 sctp/9005"),
			},
			{
				"workloads by labels", append([]keys{cluster("peers", tier, 75, gress(ruleOf("Deny", "", keys{"pods": keys{"namespaceSelector": keys{}, "podSelector": keys{"matchLabels": keys{"pod": "a"}}}})))}, labels...),
				slices.Concat(both("all/a", ""), both("all/b", conformancePorts)),
			},
		} {
			t.Run(tier+" "+k.name, func(t *testing.T) {
				c.t = t
				c.holds(k.objects, k.claims...)
			})
		}
	}
}

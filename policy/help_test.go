// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/weftnet/weft/policy"
)

// The tables' own words for objects. Selectors: "app=web", "app=web|db", "app!=web", "app", "!app", several with blanks between; "" fits everything.
func sel(text string) *policy.Selector {
	s := policy.Selector{}
	for word := range strings.FieldsSeq(text) {
		r := policy.Requirement{Operator: policy.Exists, Key: word}
		if key, values, ok := strings.Cut(word, "!="); ok {
			r = policy.Requirement{Key: key, Operator: policy.NotIn, Values: strings.Split(values, "|")}
		} else if key, values, ok := strings.Cut(word, "="); ok {
			r = policy.Requirement{Key: key, Operator: policy.In, Values: strings.Split(values, "|")}
		} else if key, ok := strings.CutPrefix(word, "!"); ok {
			r = policy.Requirement{Key: key, Operator: policy.DoesNotExist}
		}
		s = append(s, r)
	}
	s = s.Sorted()
	return &s
}

func pods(text string) policy.Peer   { return policy.Peer{Pods: sel(text)} }
func spaces(text string) policy.Peer { return policy.Peer{Namespaces: sel(text)} }
func nodes(text string) policy.Peer  { return policy.Peer{Nodes: sel(text)} }
func both(spaces, pods string) policy.Peer {
	return policy.Peer{Namespaces: sel(spaces), Pods: sel(pods)}
}

func block(prefix string, except ...string) policy.Peer {
	b := policy.Block{Prefix: netip.MustParsePrefix(prefix)}
	for _, e := range except {
		b.Except = append(b.Except, netip.MustParsePrefix(e))
	}
	return policy.Peer{Block: &b}
}

// rule accepts from or to these peers, anyone if there are none, to ports of these words: "TCP", "TCP 80", "UDP 80-90", "TCP http", "- http"; "" is all.
func rule(ports string, peers ...policy.Peer) policy.Rule {
	r := policy.Rule{Peers: peers, AnyPeer: len(peers) == 0, AnyPort: ports == ""}
	for word := range strings.SplitSeq(ports, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		protocol, port, _ := strings.Cut(word, " ")
		p := policy.Ports{Protocol: protocols[protocol]}
		first, last, ok := strings.Cut(port, "-")
		if !ok {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		b, _ := strconv.ParseUint(last, 10, 16)
		if p.First, p.Last = uint16(a), uint16(b); err != nil {
			p.First, p.Last, p.Name = 0, 0, port
		}
		r.Ports = append(r.Ports, p)
	}
	return r
}

var protocols = map[string]policy.Protocol{"-": 0, "ICMP": 1, "ICMPv6": 58, "TCP": policy.TCP, "UDP": policy.UDP, "SCTP": policy.SCTP}

func deny(r policy.Rule) policy.Rule { r.Action = policy.Deny; return r }
func pass(r policy.Rule) policy.Rule { r.Action = policy.Pass; return r }

// np is a NetworkPolicy NAMESPACE/NAME; types are "i", "e" or "ie".
func np(name, subject, types string, in, out []policy.Rule) *policy.Policy {
	namespace, name, _ := strings.Cut(name, "/")
	return &policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: namespace, Name: name}},
		Tier:      policy.Network,
		Pods:      sel(subject),
		Isolates:  [2]bool{policy.Ingress: strings.Contains(types, "i"), policy.Egress: strings.Contains(types, "e")},
		Rules:     [2][]policy.Rule{policy.Ingress: in, policy.Egress: out},
	}
}

// cnp is a ClusterNetworkPolicy "NAME" with the subject "NAMESPACES / PODS".
func cnp(name string, tier policy.Tier, priority int32, subject string, in, out []policy.Rule) *policy.Policy {
	p := &policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Admin, Name: policy.Name{Name: name}},
		Tier:      tier,
		Priority:  priority,
		Rules:     [2][]policy.Rule{policy.Ingress: in, policy.Egress: out},
	}
	spaces, pods, ok := strings.Cut(subject, "/")
	if p.Namespaces = sel(spaces); ok {
		p.Pods = sel(pods)
	}
	return p
}

func rules(r ...policy.Rule) []policy.Rule { return r }

// town is the world of the tables: a namespace each with and without labels, and one without an object; two nodes.
func town(policies ...*policy.Policy) *policy.World {
	w := policy.NewWorld()
	w.SetNamespace(policy.Namespace{Name: "default"})
	w.SetNamespace(policy.Namespace{Name: "prod", Labels: map[string]string{"team": "b"}})
	for i, zone := range []string{"x", "y"} {
		w.SetNode(policy.Node{Name: fmt.Sprintf("n%d", i+1), Labels: map[string]string{"zone": zone}, Addrs: []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("10.32.1.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd32::10%d", i+1)),
		}})
	}
	for i, e := range []policy.Endpoint{
		{Name: policy.Name{Namespace: "default", Name: "web"}, Node: "n1", Labels: map[string]string{"app": "web"}},
		{Name: policy.Name{Namespace: "default", Name: "api"}, Node: "n2", Labels: map[string]string{"app": "api"}},
		{
			Name: policy.Name{Namespace: "prod", Name: "db"}, Node: "n1", Labels: map[string]string{"app": "db", "tier": "back"},
			Ports: []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: 8080}, {Name: "dns", Protocol: policy.UDP, Port: 53}, {Name: "dns", Protocol: policy.TCP, Port: 53}},
		},
		{
			Name: policy.Name{Namespace: "prod", Name: "cache"}, Node: "n2", Labels: map[string]string{"app": "cache", "tier": "back"},
			Ports: []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: 80}},
		},
		{Name: policy.Name{Namespace: "ghost", Name: "web"}, Node: "n2", Labels: map[string]string{"app": "web"}},
	} {
		e.Addrs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.32.0.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd32::%d", i+1))}
		w.SetEndpoint(e)
	}
	for _, p := range policies {
		w.SetPolicy(p)
	}
	return w
}

// connection reads "FROM TO PROTOCOL PORT" and "FROM TO ICMP"; "6" after a name means IPv6.
func connection(t testing.TB, w *policy.World, text string) policy.Connection {
	t.Helper()
	f := append(strings.Fields(text), "0")
	end := func(who string) netip.Addr {
		name, six := strings.CutSuffix(who, "6")
		if _, err := netip.ParseAddr(who); err == nil {
			name, six = who, false
		}
		a, err := w.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		if six {
			return a[len(a)-1]
		}
		return a[0]
	}
	port, err := strconv.ParseUint(f[3], 10, 16)
	protocol, ok := protocols[f[2]]
	if err != nil || !ok {
		t.Fatalf("%q is no connection", text)
	}
	return policy.Connection{Src: end(f[0]), Dst: end(f[1]), Protocol: protocol, Port: uint16(port)}
}

// short is a decision as the tables have it: "EGRESS / INGRESS", each of which is - (no endpoint), open, self, node, +NAME:RULE, -NAME:RULE or !NAME,NAME (isolated).
func short(d policy.Decision) string {
	end := func(v policy.Verdict) string {
		switch v.Reason {
		case policy.NotAnEndpoint:
			return "-"
		case policy.Open:
			return "open"
		case policy.Itself:
			return "self"
		case policy.OwnNode:
			return "node"
		case policy.Isolated:
			var by []string
			for _, k := range v.Isolating {
				by = append(by, k.Name.Name)
			}
			return "!" + strings.Join(by, ",")
		default:
			return fmt.Sprintf("%s%s:%d", map[bool]string{true: "+", false: "-"}[v.Allowed], v.Policy.Name.Name, v.Rule+1)
		}
	}
	text := end(d.Egress) + " / " + end(d.Ingress)
	for _, v := range []policy.Verdict{d.Egress, d.Ingress} {
		if v.Reason != policy.ByRule && v.Allowed == (v.Reason == policy.Isolated) {
			text += " with the wrong outcome"
		}
	}
	return text
}

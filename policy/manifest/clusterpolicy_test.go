// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/policy"
)

func clusterPolicy(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := ClusterNetworkPolicy(spec(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestClusterNetworkPolicy(t *testing.T) {
	p := clusterPolicy(t, `
tier: Baseline
priority: 1000
subject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}}
ingress:
- {name: one, action: Accept, from: [{namespaces: {}}, {pods: {podSelector: {matchLabels: {e: f}}}}]}
- action: Deny
  from: [{namespaces: {matchLabels: {g: h}}}]
  protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 65535}}}}, {sctp: {destinationPort: {number: 1}}}, {destinationNamedPort: web}]
egress:
- {action: Pass, to: [{nodes: {matchLabels: {k: m}}}, {networks: [10.1.0.0/8, "2001:db8::/32"]}, {pods: {namespaceSelector: {}, podSelector: {}}}]}
`)
	if len(p.Problems) > 0 {
		t.Fatal(p.Problems)
	}
	want := &policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Admin, Name: policy.Name{Name: "p"}}, Tier: policy.Baseline, Priority: 1000,
		Namespaces: selects(is("a", "b")), Pods: selects(is("c", "d")),
		Rules: [2][]policy.Rule{
			policy.Ingress: {
				{Name: "one", Action: policy.Accept, AnyPort: true, Peers: []policy.Peer{{Namespaces: selects()}, {Namespaces: selects(), Pods: selects(is("e", "f"))}}},
				{Action: policy.Deny, Peers: []policy.Peer{{Namespaces: selects(is("g", "h"))}}, Ports: []policy.Ports{
					{Protocol: policy.TCP, First: 80, Last: 80}, {Protocol: policy.UDP, First: 1, Last: 65535}, {Protocol: policy.SCTP, First: 1, Last: 1}, {Name: "web"},
				}},
			},
			policy.Egress: {
				{Action: policy.Pass, AnyPort: true, Peers: []policy.Peer{
					{Nodes: selects(is("k", "m"))}, {Block: block("10.0.0.0/8")}, {Block: block("2001:db8::/32")}, {Namespaces: selects(), Pods: selects()},
				}},
			},
		},
	}
	if !same(p, want) {
		t.Errorf("read as\n%s\nnot\n%s", show(p), show(want))
	}
	p = clusterPolicy(t, "{tier: Admin, priority: 0, subject: {namespaces: {matchLabels: {a: b}}}}")
	want = &policy.Policy{PolicyKey: want.PolicyKey, Tier: policy.Admin, Namespaces: selects(is("a", "b"))}
	if !same(p, want) || len(p.Problems) > 0 {
		t.Errorf("read as\n%s\nnot\n%s", show(p), show(want))
	}
}

// TestClusterRuleIsNarrower pins what becomes of rules that are not understood, and what is said about it.
func TestClusterRuleIsNarrower(t *testing.T) {
	const (
		rule = iota
		peers
		ports
		action
	)
	for name, tt := range map[string]struct {
		rule    string // of egress; ACTION stands for what it does
		problem string
		what    int
	}{
		"field":                   {"{action: ACTION, to: [{namespaces: {}}], log: true}", "spec.egress[0].log: such a field is not known here", rule},
		"name":                    {"{action: ACTION, name: 7, to: [{namespaces: {}}]}", `spec.egress[0].name: it must be a text, and is a number: put "7" in quotes`, rule},
		"no peers":                {"{action: ACTION}", "spec.egress[0].to: there is nobody in it; for all pods write namespaces: {}, for all addresses networks", peers},
		"empty peers":             {"{action: ACTION, to: []}", "spec.egress[0].to: there is nobody in it; for all pods write namespaces: {}, for all addresses networks", peers},
		"peer of nothing":         {"{action: ACTION, to: [{}]}", "spec.egress[0].to[0]: it says nobody; give it one of the fields that a peer has", peers},
		"peer of a new form":      {"{action: ACTION, to: [{namespaces: {}}, {services: {}}]}", "spec.egress[0].to[1].services: such a field is not known here", peers},
		"peer of two forms":       {"{action: ACTION, to: [{namespaces: {}, nodes: {}}]}", "spec.egress[0].to[0]: it says more than one of nodes and others; make a peer of each", peers},
		"pods without a selector": {"{action: ACTION, to: [{pods: {namespaceSelector: {}}}]}", "spec.egress[0].to[0].pods.podSelector: it is missing; write {} for all pods", peers},
		"operator": {
			"{action: ACTION, to: [{namespaces: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}]}",
			`spec.egress[0].to[0].namespaces.matchExpressions[0].operator: "Like" is no operator that is known here; there are In, NotIn, Exists and DoesNotExist`, peers,
		},
		"network":             {"{action: ACTION, to: [{networks: [10.0.0.0]}]}", `spec.egress[0].to[0].networks[0]: "10.0.0.0" is no CIDR, as 192.0.2.0/24 or 2001:db8::/32 is`, peers},
		"no networks":         {"{action: ACTION, to: [{networks: []}]}", "spec.egress[0].to[0].networks: there is none in it", peers},
		"no protocols":        {"{action: ACTION, to: [{namespaces: {}}], protocols: []}", "spec.egress[0].protocols: there is none in it; leave it out for all protocols and ports", ports},
		"protocol":            {"{action: ACTION, to: [{namespaces: {}}], protocols: [{icmp: {}}]}", "spec.egress[0].protocols[0].icmp: such a field is not known here", ports},
		"protocol of nothing": {"{action: ACTION, to: [{namespaces: {}}], protocols: [{}]}", "spec.egress[0].protocols[0]: it says nothing; give it one of tcp, udp, sctp and destinationNamedPort", ports},
		"two protocols": {
			"{action: ACTION, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]}",
			"spec.egress[0].protocols[0]: it says more than one of tcp, udp, sctp and destinationNamedPort; make an entry of each", ports,
		},
		"field of TCP":             {"{action: ACTION, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}, sourcePort: {number: 1}}}]}", "spec.egress[0].protocols[0].tcp.sourcePort: such a field is not known here", ports},
		"TCP of nothing":           {"{action: ACTION, to: [{namespaces: {}}], protocols: [{tcp: {}}]}", "spec.egress[0].protocols[0].tcp: it has no destinationPort", ports},
		"port of nothing":          {"{action: ACTION, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]}", "spec.egress[0].protocols[0].tcp.destinationPort: give it either a number or a range", ports},
		"port of both":             {"{action: ACTION, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}]}", "spec.egress[0].protocols[0].tcp.destinationPort: give it either a number or a range", ports},
		"port 0":                   {"{action: ACTION, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]}", `spec.egress[0].protocols[0].tcp.destinationPort.number: "0" is no number from 1 to 65535`, ports},
		"range without an end":     {"{action: ACTION, to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 1}}}}]}", "spec.egress[0].protocols[0].udp.destinationPort.range.end: it is missing", ports},
		"range backwards":          {"{action: ACTION, to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 2, end: 1}}}}]}", "spec.egress[0].protocols[0].udp.destinationPort.range.end: 1 is less than the start, 2", ports},
		"name of a port":           {"{action: ACTION, to: [{namespaces: {}}], protocols: [{destinationNamedPort: Web}]}", `spec.egress[0].protocols[0].destinationNamedPort: "Web" is no port's name: that is at most 15 small letters, digits and single dashes between them`, ports},
		"name of a node's port":    {"{action: ACTION, to: [{nodes: {}}], protocols: [{destinationNamedPort: web}]}", "spec.egress[0].protocols: only pods give names to ports: nodes, networks and domainNames need numbers", ports},
		"name of a network's port": {"{action: ACTION, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]}", "spec.egress[0].protocols: only pods give names to ports: nodes, networks and domainNames need numbers", ports},
		"action":                   {"{action: Allow, to: [{namespaces: {}}]}", `spec.egress[0].action: "Allow" is no action that is known here; there are Accept, Deny and Pass`, action},
		"no action":                {"{to: [{namespaces: {}}]}", "spec.egress[0].action: it is missing; write Accept, Deny or Pass", action},
		"rule of nothing":          {"null", "spec.egress[0]: there is nothing after the dash; for something without restrictions write {}", rule},
	} {
		for _, does := range []string{"Accept", "Deny", "Pass"} {
			t.Run(name+"/"+does, func(t *testing.T) {
				p := clusterPolicy(t, "{tier: Admin, priority: 5, subject: {namespaces: {}}, egress: ["+strings.ReplaceAll(tt.rule, "ACTION", does)+"]}")
				r := p.Rules[policy.Egress][0]
				want := tt.problem
				written := strings.Contains(tt.rule, "ACTION")
				switch {
				case written && does == "Accept":
					want += "; until that is mended the rule accepts nothing"
					if !r.Disabled || r.Action != policy.Accept {
						t.Errorf("it is enforced as %+v", r)
					}
				case tt.what == action:
					want += "; until that is mended the rule denies, whatever the port"
					if r.Disabled || r.Action != policy.Deny || r.AnyPeer || len(r.Peers) != 1 {
						t.Errorf("it is enforced as %+v", r)
					}
				default:
					want += "; until that is mended "
					if tt.rule == "null" {
						want += "it denies"
					} else {
						want += "the rule denies"
					}
					if tt.what != ports {
						want += ", whoever it is"
					}
					want += ", whatever the port"
					if r.Disabled || r.Action != policy.Deny || r.AnyPeer != (tt.what != ports) || !r.AnyPort {
						t.Errorf("it is enforced as %+v", r)
					}
				}
				if !slices.Contains(p.Problems, want) {
					t.Errorf("the problem\n%s\nis told as\n%s", want, strings.Join(p.Problems, "\n"))
				}
			})
		}
	}
}

// TestClusterRuleKeepsTheRest has rules that deny keep what is understood of them.
func TestClusterRuleKeepsTheRest(t *testing.T) {
	p := clusterPolicy(t, "{tier: Admin, priority: 5, subject: {namespaces: {}}, egress: [{action: Deny, to: [{what: 1}], protocols: [{tcp: {destinationPort: {number: 7}}}]}]}")
	r := p.Rules[policy.Egress][0]
	if r.Action != policy.Deny || !r.AnyPeer || r.AnyPort || len(r.Ports) != 1 || r.Ports[0].First != 7 {
		t.Errorf("%+v", r)
	}
	if want := "spec.egress[0].to[0].what: such a field is not known here; until that is mended the rule denies, whoever it is"; !slices.Equal(p.Problems, []string{want}) {
		t.Error(p.Problems)
	}
}

// TestDomainNames are not supported: nobody is accepted for them, and nothing that they are denied is let through.
func TestDomainNames(t *testing.T) {
	for does, tt := range map[string]struct {
		rest    string
		want    policy.Rule
		instead string
	}{
		"Accept":  {"", policy.Rule{Disabled: true}, "they are nobody's"},
		"Accept ": {", {networks: [10.0.0.0/8]}", policy.Rule{AnyPort: true, Peers: []policy.Peer{{Block: block("10.0.0.0/8")}}}, "they are nobody's"},
		"Deny":    {"", policy.Rule{Action: policy.Deny, AnyPeer: true, AnyPort: true}, "the rule denies, whoever it is, whatever the port"},
		"Pass":    {", {networks: [10.0.0.0/8]}", policy.Rule{Action: policy.Deny, AnyPeer: true, AnyPort: true}, "the rule denies, whoever it is, whatever the port"},
	} {
		p := clusterPolicy(t, "{tier: Admin, priority: 5, subject: {namespaces: {}}, egress: [{action: "+does+", to: [{domainNames: [example.org]}"+tt.rest+"]}]}")
		got := &policy.Policy{Rules: [2][]policy.Rule{p.Rules[policy.Egress]}}
		if want := (&policy.Policy{Rules: [2][]policy.Rule{{tt.want}}}); !same(got, want) {
			t.Errorf("%s is enforced as %s", does, show(got))
		}
		if want := "spec.egress[0].to[0].domainNames: names of domains are not supported; write networks; until that is mended " + tt.instead; !slices.Equal(p.Problems, []string{want}) {
			t.Error(p.Problems)
		}
	}
}

// TestIngressHasFewerPeers: addresses that are no pods' are for egress.
func TestIngressHasFewerPeers(t *testing.T) {
	for _, form := range []string{"nodes: {}", "networks: [10.0.0.0/8]", "domainNames: [example.org]"} {
		p := clusterPolicy(t, "{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{"+form+"}]}]}")
		if len(p.Problems) != 1 || !p.Rules[policy.Ingress][0].Disabled {
			t.Error(p.Problems, p.Rules)
		}
	}
}

// TestDoubtfulClusterPolicy pins what becomes of a policy with a problem outside of its rules.
func TestDoubtfulClusterPolicy(t *testing.T) {
	const (
		rules   = "; until that is mended its rules that accept do not, and those that pass deny"
		subject = "; until that is mended the policy selects whatever fits the rest, its rules that accept do not, and those that pass deny"
	)
	const good = "tier: Baseline, priority: 9, subject: {namespaces: {matchLabels: {a: b}}}"
	for name, tt := range map[string]struct {
		spec, problem string
		tier          policy.Tier
		namespaces    *policy.Selector
	}{
		"field":             {good + ", log: true", "spec.log: such a field is not known here" + rules, policy.Baseline, selects(is("a", "b"))},
		"tier":              {strings.Replace(good, "Baseline", "Middle", 1), `spec.tier: "Middle" is no tier that is known here; there are Admin and Baseline` + rules, policy.Admin, selects(is("a", "b"))},
		"no tier":           {strings.Replace(good, "tier: Baseline, ", "", 1), "spec.tier: it is missing; write Admin or Baseline" + rules, policy.Admin, selects(is("a", "b"))},
		"priority":          {strings.Replace(good, "9", "1001", 1), `spec.priority: "1001" is no number from 0 to 1000` + rules, policy.Admin, selects(is("a", "b"))},
		"negative priority": {strings.Replace(good, "9", "-1", 1), `spec.priority: "-1" is no number from 0 to 1000` + rules, policy.Admin, selects(is("a", "b"))},
		"no priority":       {strings.Replace(good, "priority: 9, ", "", 1), "spec.priority: it is missing; write a number from 0, which is asked first, to 1000" + rules, policy.Admin, selects(is("a", "b"))},
		"no subject":        {"tier: Baseline, priority: 9", "spec.subject: it selects nothing; give it namespaces or pods, {} for all" + subject, policy.Baseline, selects()},
		"two subjects":      {"tier: Baseline, priority: 9, subject: {namespaces: {}, pods: {podSelector: {}}}", "spec.subject: it has both namespaces and pods; give it one of them" + subject, policy.Baseline, selects()},
		"new subject":       {"tier: Baseline, priority: 9, subject: {nodes: {}}", "spec.subject.nodes: such a field is not known here" + subject, policy.Baseline, selects()},
		"operator": {
			"tier: Baseline, priority: 9, subject: {namespaces: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: Lt, values: ['1']}]}}",
			`spec.subject.namespaces.matchExpressions[0].operator: "Lt" is no operator that is known here; there are In, NotIn, Exists and DoesNotExist` + subject, policy.Baseline, selects(is("a", "b")),
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := clusterPolicy(t, "{"+tt.spec+", ingress: [{action: Accept, from: [{namespaces: {}}]}, {action: Pass, from: [{namespaces: {}}]}, {action: Deny, from: [{namespaces: {}}]}]}")
			if !slices.Equal(p.Problems, []string{tt.problem}) {
				t.Errorf("the problem\n%s\nis told as\n%s", tt.problem, strings.Join(p.Problems, "\n"))
			}
			if p.Tier != tt.tier || p.Tier == policy.Admin && p.Priority != 0 {
				t.Error(p.Tier, p.Priority)
			}
			peer := []policy.Peer{{Namespaces: selects()}}
			want := &policy.Policy{PolicyKey: p.PolicyKey, Tier: p.Tier, Priority: p.Priority, Namespaces: tt.namespaces, Problems: p.Problems, Rules: [2][]policy.Rule{{
				{Action: policy.Accept, Disabled: true}, {Action: policy.Deny, Peers: peer, AnyPort: true}, {Action: policy.Deny, Peers: peer, AnyPort: true},
			}}}
			if !same(p, want) {
				t.Errorf("enforced as\n%s\nnot\n%s", show(p), show(want))
			}
		})
	}
	p := clusterPolicy(t, "{"+good+", ingress: {}}")
	if r := p.Rules[policy.Ingress]; len(r) != 1 || r[0].Action != policy.Deny || !r[0].AnyPeer || !r[0].AnyPort {
		t.Errorf("rules that are no list are enforced as %+v", r)
	}
}

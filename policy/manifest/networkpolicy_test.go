// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/policy"
)

// spec makes an object as an API server has it of a spec in YAML.
func spec(t testing.TB, text string) []byte {
	t.Helper()
	var s any
	if err := yaml.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"name": "p", "namespace": "ns", "managedFields": []any{map[string]any{"fieldsV1": map[string]any{"f:spec": 1}}}},
		"spec":     s, "status": map[string]any{"what": "ever"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func networkPolicy(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := NetworkPolicy(spec(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func is(key string, values ...string) policy.Requirement {
	return policy.Requirement{Key: key, Operator: policy.In, Values: values}
}

func selects(q ...policy.Requirement) *policy.Selector {
	s := append(policy.Selector{}, q...)
	return &s
}

func block(prefix string, except ...string) *policy.Block {
	b := &policy.Block{Prefix: netip.MustParsePrefix(prefix)}
	for _, e := range except {
		b.Except = append(b.Except, netip.MustParsePrefix(e))
	}
	return b
}

func TestNetworkPolicy(t *testing.T) {
	both, in, out := [2]bool{true, true}, [2]bool{policy.Ingress: true}, [2]bool{policy.Egress: true}
	all := policy.Rule{AnyPeer: true, AnyPort: true}
	for name, tt := range map[string]struct {
		spec     string
		pods     *policy.Selector
		isolates [2]bool
		ingress  []policy.Rule
		egress   []policy.Rule
	}{
		"nothing":                               {spec: "{}", pods: selects(), isolates: in},
		"policy types that are empty":           {spec: "{policyTypes: []}", pods: selects(), isolates: in},
		"egress rules isolate egress":           {spec: "{egress: [{}]}", pods: selects(), isolates: both, egress: []policy.Rule{all}},
		"an empty list of egress does not":      {spec: "{egress: []}", pods: selects(), isolates: in},
		"rules that no policy type has use for": {spec: "{policyTypes: [Egress], ingress: [{}]}", pods: selects(), isolates: out},
		"both types":                            {spec: "{policyTypes: [Egress, Ingress], ingress: [{}]}", pods: selects(), isolates: both, ingress: []policy.Rule{all}},
		"empty lists are everybody":             {spec: "{ingress: [{from: [], ports: null}]}", pods: selects(), isolates: in, ingress: []policy.Rule{all}},
		"a selector": {
			spec: "{podSelector: {matchLabels: {b: x, a: ''}, matchExpressions: [{key: b, operator: In, values: [z, x, z]}, {key: c, operator: NotIn, values: [z]}, {key: a, operator: Exists}, {key: d, operator: DoesNotExist}, {key: b, operator: In, values: [x]}]}}",
			pods: selects(is("a", ""), policy.Requirement{Key: "a", Operator: policy.Exists}, is("b", "x"), is("b", "x", "z"),
				policy.Requirement{Key: "c", Operator: policy.NotIn, Values: []string{"z"}}, policy.Requirement{Key: "d", Operator: policy.DoesNotExist}),
			isolates: in,
		},
		"peers": {
			spec: "{ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {a: b}}}, {podSelector: {matchLabels: {c: d}}, namespaceSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]}",
			pods: selects(), isolates: in,
			ingress: []policy.Rule{{AnyPort: true, Peers: []policy.Peer{
				{Pods: selects()}, {Namespaces: selects(is("a", "b"))}, {Namespaces: selects(), Pods: selects(is("c", "d"))}, {Block: block("10.0.0.0/8")},
			}}},
		},
		"blocks": {
			spec: `{egress: [{to: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.2.0.0/16, 10.1.9.9/16, 10.1.0.0/24]}}, {ipBlock: {cidr: "::ffff:10.0.0.1/104"}},
				{ipBlock: {cidr: 010.000.1.0/08}}, {ipBlock: {cidr: "2001:db8::1/32", except: ["2001:db8:1::/48"]}}, {ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/00"}}]}]}`,
			pods: selects(), isolates: both,
			egress: []policy.Rule{{AnyPort: true, Peers: []policy.Peer{
				{Block: block("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16")},
				{Block: block("10.0.0.0/8")},
				{Block: block("10.0.0.0/8")},
				{Block: block("2001:db8::/32", "2001:db8:1::/48")},
				{Block: block("0.0.0.0/0")},
				{Block: block("::/0")},
			}}},
		},
		"ports": {
			spec: "{ingress: [{ports: [{}, {protocol: UDP}, {port: 80}, {protocol: SCTP, port: 1, endPort: 65535}, {port: http-web, protocol: UDP}, {port: 5, endPort: 5}]}]}",
			pods: selects(), isolates: in,
			ingress: []policy.Rule{{AnyPeer: true, Ports: []policy.Ports{
				{Protocol: policy.TCP},
				{Protocol: policy.UDP},
				{Protocol: policy.TCP, First: 80, Last: 80},
				{Protocol: policy.SCTP, First: 1, Last: 65535},
				{Protocol: policy.UDP, Name: "http-web"},
				{Protocol: policy.TCP, First: 5, Last: 5},
			}}},
		},
		"null is absent": {
			spec: "{podSelector: null, policyTypes: null, ingress: [{from: [{podSelector: {matchLabels: null}, namespaceSelector: null, ipBlock: null}], ports: [{protocol: null, port: 1, endPort: null}]}], egress: null}",
			pods: selects(), isolates: in,
			ingress: []policy.Rule{{Peers: []policy.Peer{{Pods: selects()}}, Ports: []policy.Ports{{Protocol: policy.TCP, First: 1, Last: 1}}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := networkPolicy(t, tt.spec)
			if len(p.Problems) > 0 {
				t.Fatal(p.Problems)
			}
			want := &policy.Policy{
				PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "ns", Name: "p"}}, Tier: policy.Network,
				Pods: tt.pods, Isolates: tt.isolates, Rules: [2][]policy.Rule{tt.ingress, tt.egress},
			}
			if !same(p, want) {
				t.Errorf("read as\n%s\nnot\n%s", show(p), show(want))
			}
		})
	}
}

// same compares two policies as an encoding has them.
func same(a, b *policy.Policy) bool { return show(a) == show(b) }

func show(p *policy.Policy) string {
	b, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestNetworkPolicyIsNarrower pins what becomes of what is not understood, and what is said about it.
func TestNetworkPolicyIsNarrower(t *testing.T) {
	const (
		rule       = "; until that is mended the rule allows nothing"
		whole      = "; until that is mended the policy allows nothing, and isolates what it selects in both directions"
		ofSelector = "; until that is mended the policy allows nothing, and selects whatever fits the rest of the selector"
	)
	const (
		ofRule = iota
		ofPolicy
		ofSubject
	)
	for name, tt := range map[string]struct {
		spec    string
		problem string
		what    int
		pods    *policy.Selector
	}{
		"field of the policy": {"{podSelector: {matchLabels: {a: b}}, priority: 7, ingress: [{}]}", "spec.priority: such a field is not known here", ofPolicy, selects(is("a", "b"))},
		"policy type":         {"{policyTypes: [Ingress, Forward], ingress: [{}]}", `spec.policyTypes[1]: "Forward" is no policy type that is known here; there are Ingress and Egress`, ofPolicy, selects()},
		"spec that is a list": {"[1]", "spec: it must be an object, and is a list", ofPolicy, selects()},
		"operator of the subject": {
			"{podSelector: {matchLabels: {a: b}, matchExpressions: [{key: v, operator: Gt, values: ['1']}]}, ingress: [{}]}",
			`spec.podSelector.matchExpressions[0].operator: "Gt" is no operator that is known here; there are In, NotIn, Exists and DoesNotExist`, ofSubject, selects(is("a", "b")),
		},
		"field of the subject": {"{podSelector: {matchLabels: {a: b}, matchFields: {}}, ingress: [{}]}", "spec.podSelector.matchFields: such a field is not known here", ofSubject, selects()},
		"In without values": {
			"{podSelector: {matchExpressions: [{key: v, operator: In}]}, ingress: [{}]}",
			"spec.podSelector.matchExpressions[0].values: In needs at least one", ofSubject, selects(),
		},
		"Exists with values": {
			"{podSelector: {matchExpressions: [{key: v, operator: Exists, values: [a]}]}, ingress: [{}]}",
			"spec.podSelector.matchExpressions[0].values: Exists takes none", ofSubject, selects(),
		},
		"requirement without a key": {
			"{podSelector: {matchExpressions: [{operator: Exists}]}, ingress: [{}]}",
			"spec.podSelector.matchExpressions[0].key: a label's key is missing", ofSubject, selects(),
		},
		"label that is a number": {
			"{podSelector: {matchLabels: {a: 1, b: c}}, ingress: [{}]}",
			`spec.podSelector.matchLabels["a"]: it must be a text, and is a number: put "1" in quotes`, ofSubject, selects(is("b", "c")),
		},

		"field of a rule":             {"{ingress: [{form: []}]}", "spec.ingress[0].form: such a field is not known here; is from meant?", ofRule, nil},
		"to in ingress":               {"{ingress: [{to: [{podSelector: {}}]}]}", "spec.ingress[0].to: such a field is not known here", ofRule, nil},
		"rules that are an object":    {"{egress: {}}", "spec.egress: it must be a list, and is an object", ofRule, nil},
		"rule of nothing":             {"{ingress: [null]}", "spec.ingress[0]: there is nothing after the dash; for something without restrictions write {}", ofRule, nil},
		"peer of nothing":             {"{ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]: it says nobody: give it a podSelector, a namespaceSelector, both of them, or an ipBlock", ofRule, nil},
		"peer of a new form":          {"{ingress: [{from: [{nodeSelector: {}}]}]}", "spec.ingress[0].from[0].nodeSelector: such a field is not known here; is podSelector meant?", ofRule, nil},
		"peer of two forms":           {"{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}", "spec.ingress[0].from[0]: it has an ipBlock and a selector; make two of it", ofRule, nil},
		"field of a peer's selector":  {"{ingress: [{from: [{podSelector: {matchName: x}}]}]}", "spec.ingress[0].from[0].podSelector.matchName: such a field is not known here", ofRule, nil},
		"field of a requirement":      {"{ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: Exists, ignoreCase: true}]}}]}]}", "spec.ingress[0].from[0].podSelector.matchExpressions[0].ignoreCase: such a field is not known here", ofRule, nil},
		"block without a CIDR":        {"{ingress: [{from: [{ipBlock: {}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr: it is missing; write a CIDR, as 192.0.2.0/24", ofRule, nil},
		"block that is none":          {"{ingress: [{from: [{ipBlock: {cidr: 10.0.0/8}}]}]}", `spec.ingress[0].from[0].ipBlock.cidr: "10.0.0/8" is no CIDR, as 192.0.2.0/24 or 2001:db8::/32 is`, ofRule, nil},
		"block of a zone":             {"{ingress: [{from: [{ipBlock: {cidr: 'fe80::%eth0/64'}}]}]}", `spec.ingress[0].from[0].ipBlock.cidr: "fe80::%eth0/64" is no CIDR, as 192.0.2.0/24 or 2001:db8::/32 is`, ofRule, nil},
		"exception outside":           {"{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}", "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/16 is no part of 10.0.0.0/8", ofRule, nil},
		"exception of all":            {"{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}", "spec.ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/8 is no part of 10.0.0.0/8", ofRule, nil},
		"exception of more":           {"{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/7]}}]}]}", "spec.ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/7 is no part of 10.0.0.0/8", ofRule, nil},
		"exception of another family": {"{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['::/0']}}]}]}", "spec.ingress[0].from[0].ipBlock.except[0]: ::/0 is of another IP family than 10.0.0.0/8", ofRule, nil},
		"field of a block":            {"{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, exclude: []}}]}]}", "spec.ingress[0].from[0].ipBlock.exclude: such a field is not known here", ofRule, nil},
		"protocol":                    {"{ingress: [{ports: [{protocol: ICMP}]}]}", `spec.ingress[0].ports[0].protocol: "ICMP" is no protocol that is known here; there are TCP, UDP and SCTP`, ofRule, nil},
		"protocol in small letters":   {"{ingress: [{ports: [{protocol: tcp}]}]}", `spec.ingress[0].ports[0].protocol: "tcp" is no protocol that is known here; there are TCP, UDP and SCTP`, ofRule, nil},
		"empty protocol":              {"{ingress: [{ports: [{protocol: ''}]}]}", `spec.ingress[0].ports[0].protocol: "" is no protocol that is known here; there are TCP, UDP and SCTP`, ofRule, nil},
		"port 0":                      {"{ingress: [{ports: [{port: 0}]}]}", `spec.ingress[0].ports[0].port: "0" is no number from 1 to 65535`, ofRule, nil},
		"port 65536":                  {"{ingress: [{ports: [{port: 65536}]}]}", `spec.ingress[0].ports[0].port: "65536" is no number from 1 to 65535`, ofRule, nil},
		"port in quotes":              {"{ingress: [{ports: [{port: '80'}]}]}", `spec.ingress[0].ports[0].port: "80" is a text, and no port's name as it has no letter: write a number without quotes`, ofRule, nil},
		"port of a long name":         {"{ingress: [{ports: [{port: abcdefghijklmnop}]}]}", `spec.ingress[0].ports[0].port: "abcdefghijklmnop" is no port's name: that is at most 15 small letters, digits and single dashes between them`, ofRule, nil},
		"port that is true":           {"{ingress: [{ports: [{port: true}]}]}", "spec.ingress[0].ports[0].port: it must be a number, and is true or false", ofRule, nil},
		"end without a port":          {"{ingress: [{ports: [{endPort: 9}]}]}", "spec.ingress[0].ports[0].endPort: it needs a port, at which the range begins", ofRule, nil},
		"end after a name":            {"{ingress: [{ports: [{port: web, endPort: 9}]}]}", `spec.ingress[0].ports[0].endPort: it needs a port that is a number, and "web" is a name`, ofRule, nil},
		"end before the port":         {"{ingress: [{ports: [{port: 10, endPort: 9}]}]}", "spec.ingress[0].ports[0].endPort: 9 is less than the port, 10", ofRule, nil},
		"end in quotes":               {"{ingress: [{ports: [{port: 10, endPort: '90'}]}]}", "spec.ingress[0].ports[0].endPort: it must be a number, and is a text: write 90 without quotes", ofRule, nil},
		"field of a port":             {"{ingress: [{ports: [{port: 10, name: x}]}]}", "spec.ingress[0].ports[0].name: such a field is not known here", ofRule, nil},
		"deep":                        {"{ingress: [{from: " + strings.Repeat("[", 60) + strings.Repeat("]", 60) + "}]}", "spec.ingress[0].from[0]: it must be an object, and is a list", ofRule, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := networkPolicy(t, tt.spec)
			want := tt.problem + [...]string{rule, whole, ofSelector}[tt.what]
			if !slices.Contains(p.Problems, want) {
				t.Errorf("the problem\n%s\nis told as\n%s", want, strings.Join(p.Problems, "\n"))
			}
			for d := range p.Rules {
				for i, rule := range p.Rules[d] {
					if !rule.Disabled {
						t.Errorf("rule %d of %d allows %+v", i, d, rule)
					}
				}
			}
			if tt.what == ofPolicy && p.Isolates != [2]bool{true, true} || !p.Isolates[policy.Ingress] {
				t.Error("it isolates", p.Isolates)
			}
			if strings.Contains(tt.spec, "egress") && !p.Isolates[policy.Egress] {
				t.Error("it does not isolate egress")
			}
			if tt.pods != nil && !reflect.DeepEqual(p.Pods, tt.pods) && len(*p.Pods)+len(*tt.pods) > 0 {
				t.Errorf("it selects %v, not %v", p.Pods, tt.pods)
			}
		})
	}
}

// TestRulesFailAlone has a rule with a problem beside one without.
func TestRulesFailAlone(t *testing.T) {
	p := networkPolicy(t, "{ingress: [{ports: [{port: 0}]}, {ports: [{port: 1}]}]}")
	if r := p.Rules[policy.Ingress]; len(r) != 2 || !r[0].Disabled || r[1].Disabled || r[1].Ports[0].First != 1 {
		t.Errorf("%+v", r)
	}
}

func TestProblemsAreBounded(t *testing.T) {
	var s strings.Builder
	s.WriteString(`{"metadata":{"name":"p","namespace":"ns"},"spec":{"ingress":[`)
	for i := range policy.MaxRules {
		if i > 0 {
			s.WriteByte(',')
		}
		s.WriteString(`{"` + strings.Repeat("x", 500) + `":1}`)
	}
	s.WriteString("]}}")
	p, err := NetworkPolicy([]byte(s.String()))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Problems) != maxProblems+1 || p.Problems[maxProblems] != "and 980 more problems" {
		t.Errorf("%d problems: %s", len(p.Problems), p.Problems[len(p.Problems)-1])
	}
	for _, line := range p.Problems {
		if len(line) > 400 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}

// TestTooMuchIsClosed has a policy that is beyond policy's limits.
func TestTooMuchIsClosed(t *testing.T) {
	ports := strings.Repeat("{port: 1},", policy.MaxParts+1)
	p := networkPolicy(t, "{podSelector: {matchLabels: {a: b}}, ingress: [{ports: ["+ports+"]}]}")
	if len(p.Problems) != 1 || !p.Isolates[policy.Ingress] || len(p.Rules[policy.Ingress]) != 0 || !reflect.DeepEqual(p.Pods, selects(is("a", "b"))) {
		t.Error(p.Problems, show(p))
	}
	if _, err := Read([]byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {ingress: [{ports: ["+ports+"]}]}"), "default"); err == nil ||
		!strings.HasPrefix(err.Error(), "line 1 (document 1, NetworkPolicy default/a): NetworkPolicy default/a: ") {
		t.Error(err)
	}
}

func TestNoObject(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "this is not JSON: EOF",
		"{":                       "this is not JSON: EOF",
		"{} {}":                   "this is not JSON: something follows the object",
		"7":                       "this is no object of Kubernetes: it has no metadata.name",
		`{"metadata":{"name":7}}`: "this is no object of Kubernetes: it has no metadata.name",
	} {
		if _, err := NetworkPolicy([]byte(in)); err == nil || err.Error() != want {
			t.Errorf("%s: %v", in, err)
		}
	}
}

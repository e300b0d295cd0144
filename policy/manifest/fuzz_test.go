// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/weftnet/weft/policy"
)

// sound checks what policy's documentation promises of a policy.
func sound(t *testing.T, p *policy.Policy) {
	t.Helper()
	if err := p.Check(); err != nil && len(p.Problems) == 0 {
		t.Error(err)
	}
	selectors := []*policy.Selector{p.Namespaces, p.Pods}
	for _, r := range slices.Concat(p.Rules[0], p.Rules[1]) {
		for _, peer := range r.Peers {
			selectors = append(selectors, peer.Namespaces, peer.Pods, peer.Nodes)
		}
		if r.Disabled && r.Action != policy.Accept {
			t.Errorf("a rule that does not accept is disabled: %+v", r)
		}
		if !r.Disabled && (r.AnyPeer != (len(r.Peers) == 0) || r.AnyPort != (len(r.Ports) == 0)) {
			t.Errorf("a rule for nobody or nothing: %+v", r)
		}
	}
	for _, s := range selectors {
		if s != nil && *s == nil {
			t.Error("an empty selector is nil")
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(goodFile))
	f.Add([]byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n...\n--- {}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := Read(text, "default")
		var e *Error
		if err != nil && (!errors.As(err, &e) || len(e.Faults) == 0 || len(err.Error()) > 2000 || len(o.Policies)+len(o.Namespaces) > 0) {
			t.Errorf("%v, %+v", err, o)
		}
		for _, s := range o.Sources {
			if s.Policy == nil {
				continue
			}
			read := NetworkPolicy
			if s.Policy.Kind != policy.Network {
				read = ClusterNetworkPolicy
			}
			if p, err := read(s.JSON); err != nil || !reflect.DeepEqual(p, s.Policy) {
				t.Errorf("%s is read again as %+v, not %+v: %v", s.JSON, p, s.Policy, err)
			}
		}
		for _, p := range o.Policies {
			sound(t, p)
			if len(p.Problems) > 0 {
				t.Error(p.Problems)
			}
			for _, r := range slices.Concat(p.Rules[0], p.Rules[1]) {
				if r.Disabled {
					t.Errorf("%+v", r)
				}
			}
		}
	})
}

func FuzzNetworkPolicy(f *testing.F) {
	for _, s := range []string{
		"{}", "{podSelector: {matchLabels: {a: b}}, policyTypes: [Egress], ingress: [{}]}",
		"{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {namespaceSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}}], ports: [{port: 1, endPort: 2, protocol: UDP}, {port: web}]}]}",
	} {
		f.Add(spec(f, s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := NetworkPolicy(raw)
		if err != nil {
			return
		}
		sound(t, p)
		if len(p.Problems) == 0 {
			return
		}
		if !p.Isolates[policy.Ingress] && !p.Isolates[policy.Egress] {
			t.Error("it isolates nothing")
		}
	})
}

func FuzzClusterNetworkPolicy(f *testing.F) {
	for _, s := range []string{
		"{tier: Admin, priority: 1, subject: {namespaces: {}}}",
		"{tier: Baseline, priority: 1, subject: {pods: {podSelector: {}}}, ingress: [{name: a, action: Deny, from: [{pods: {podSelector: {}}}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 2}}}}]}], egress: [{action: Pass, to: [{networks: ['::/0']}, {nodes: {}}, {domainNames: [a.b]}], protocols: [{destinationNamedPort: a}, {udp: {destinationPort: {number: 7}}}]}]}",
	} {
		f.Add(spec(f, s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if p, err := ClusterNetworkPolicy(raw); err == nil {
			sound(t, p)
		}
	})
}

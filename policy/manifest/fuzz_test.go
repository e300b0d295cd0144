// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/weftnet/weft/policy"
)

// sound checks what policy's documentation promises of a policy.
func sound(t *testing.T, p *policy.Policy) {
	t.Helper()
	selector := func(s *policy.Selector) {
		if s == nil {
			return
		}
		if *s == nil {
			t.Error("an empty selector is nil")
		}
		for _, q := range *s {
			values := q.Operator == policy.In || q.Operator == policy.NotIn
			if q.Operator > policy.DoesNotExist || values != (len(q.Values) > 0) || !slices.IsSorted(q.Values) {
				t.Errorf("%+v", q)
			}
		}
		if !slices.IsSortedFunc(*s, compareRequirements) {
			t.Errorf("%+v", *s)
		}
	}
	masked := func(p netip.Prefix) bool { return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6() }
	selector(p.Namespaces)
	selector(p.Pods)
	if p.Name.Name == "" || p.Tier > policy.Baseline || p.Priority < 0 || p.Priority > 1000 {
		t.Errorf("%+v", p)
	}
	for _, r := range slices.Concat(p.Rules[0], p.Rules[1]) {
		if r.Disabled {
			if r.Action != policy.Accept {
				t.Errorf("a rule that does not accept is disabled: %+v", r)
			}
			continue
		}
		if r.AnyPeer != (len(r.Peers) == 0) || r.AnyPort != (len(r.Ports) == 0) || r.Action > policy.Pass || p.Kind == policy.Network && r.Action != policy.Accept {
			t.Errorf("%+v", r)
		}
		for _, peer := range r.Peers {
			selector(peer.Namespaces)
			selector(peer.Pods)
			selector(peer.Nodes)
			forms := 0
			for _, is := range []bool{peer.Namespaces != nil || peer.Pods != nil, peer.Nodes != nil, peer.Block != nil} {
				if is {
					forms++
				}
			}
			if forms != 1 {
				t.Errorf("%+v", peer)
			}
			if b := peer.Block; b != nil {
				if !masked(b.Prefix) {
					t.Errorf("%v", b.Prefix)
				}
				for _, e := range b.Except {
					if !masked(e) || e.Bits() <= b.Prefix.Bits() || !b.Prefix.Contains(e.Addr()) {
						t.Errorf("%v without %v", b.Prefix, e)
					}
				}
			}
		}
		for _, o := range r.Ports {
			if o.First > o.Last || o.First == 0 && o.Last != 0 || o.Name != "" && o.Last != 0 || o.Protocol == 0 && o.Name == "" {
				t.Errorf("%+v", o)
			}
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

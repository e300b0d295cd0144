// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"github.com/weftnet/weft/policy"
)

const maxRuleName = 100 // bytes

// ClusterNetworkPolicy translates a ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2), as [NetworkPolicy] does.
func ClusterNetworkPolicy(raw []byte) (*policy.Policy, error) {
	return (&Parser{}).ClusterNetworkPolicy(raw)
}

// ClusterNetworkPolicy is [ClusterNetworkPolicy].
func (p *Parser) ClusterNetworkPolicy(raw []byte) (*policy.Policy, error) {
	return p.fromCluster(raw, (*reader).clusterPolicy)
}

func (r *reader) clusterPolicy(path string, v value, n policy.Name) *policy.Policy {
	n.Namespace = ""
	p := &policy.Policy{PolicyKey: policy.PolicyKey{Kind: policy.Admin, Name: n}}
	told, since := len(r.problems), r.count
	r.only(path, v, "apiVersion", "kind", "metadata", "spec", "status")
	s, spec := v.get("spec"), at(path, "spec")
	if !r.only(spec, s, "tier", "priority", "subject", "ingress", "egress") && s.kind == absent {
		r.fault(spec, s, "it is missing")
	}
	p.Tier, p.Priority = r.place(spec, s)
	if r.count > since {
		r.instead(told, "until that is mended its rules that accept do not, and those that pass deny")
	}
	subject := len(r.problems)
	p.Namespaces, p.Pods = r.subject(at(spec, "subject"), s.get("subject"))
	r.instead(subject, "until that is mended the policy selects whatever fits the rest, its rules that accept do not, and those that pass deny")
	doubtful := r.count > since
	lost := policy.Rule{Action: policy.Deny, AnyPeer: true, AnyPort: true}
	for d, side := range sides() {
		rules := s.get(side.rules)
		if s.kind != object && s.kind != absent {
			rules = s // no list of rules either
		}
		p.Rules[d] = r.rules(at(spec, side.rules), rules, lost, "until that is mended it denies"+without(lost), func(path string, v value) policy.Rule {
			c := clusterRule{reader: r, peers: side.peers, egress: policy.Direction(d) == policy.Egress}
			return c.read(path, v, doubtful)
		})
	}
	return p
}

// place reads where among the policies it is asked: first of all, if that is not understood.
func (r *reader) place(path string, spec value) (policy.Tier, int32) {
	since := r.count
	var tier policy.Tier
	switch t := spec.get("tier"); t.scalar {
	case "Admin":
		tier = policy.Admin
	case "Baseline":
		tier = policy.Baseline
	default:
		if t.kind == absent {
			r.fault(at(path, "tier"), t, "it is missing; write Admin or Baseline")
		} else if r.expect(at(path, "tier"), t, text) {
			r.fault(at(path, "tier"), t, "%s is no tier that is known here; there are Admin and Baseline", quote(t.scalar))
		}
	}
	priority := spec.get("priority")
	if priority.kind == absent {
		r.fault(at(path, "priority"), priority, "it is missing; write a number from 0, which is asked first, to 1000")
	}
	n := r.integer(at(path, "priority"), priority, 0, 1000)
	if r.count > since {
		return policy.Admin, 0
	}
	return tier, int32(n)
}

// subject reads whom a policy is about. With problems it is at least whom it was meant to be about.
func (r *reader) subject(path string, v value) (namespaces, pods *policy.Selector) {
	all := policy.Selector{}
	since := r.count
	r.only(path, v, "namespaces", "pods")
	n, p := v.get("namespaces"), v.get("pods")
	switch {
	case r.count > since:
	case n.kind == absent && p.kind == absent:
		r.fault(path, v, "it selects nothing; give it namespaces or pods, {} for all")
	case n.kind != absent && p.kind != absent:
		r.fault(path, v, "it has both namespaces and pods; give it one of them")
	case n.kind != absent:
		s := r.selector(at(path, "namespaces"), n)
		return &s, nil
	default:
		return r.namespacedPods(at(path, "pods"), p)
	}
	return &all, nil
}

// namespacedPods reads a selector of namespaces with one of the endpoints in them.
func (r *reader) namespacedPods(path string, v value) (namespaces, pods *policy.Selector) {
	since := r.count
	n := policy.Selector{}
	if !r.only(path, v, "namespaceSelector", "podSelector") || r.count > since {
		return &n, nil
	}
	n = r.selector(at(path, "namespaceSelector"), v.get("namespaceSelector"))
	s := v.get("podSelector")
	if s.kind == absent {
		r.fault(at(path, "podSelector"), s, "it is missing; write {} for all pods")
	}
	p := r.selector(at(path, "podSelector"), s)
	return &n, &p
}

// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/weftnet/weft/policy"
)

const lostNetwork = "until that is mended the rule allows nothing"

// NetworkPolicy translates a NetworkPolicy (networking.k8s.io/v1), raw being JSON as an API server has it. The policy never allows what it would
// not if all of it were understood; its Problems say what was not. The error is one of an object that cannot be told from others: it has
// no name. raw is not kept.
func NetworkPolicy(raw []byte) (*policy.Policy, error) {
	return (&Parser{}).NetworkPolicy(raw)
}

// NetworkPolicy is [NetworkPolicy].
func (p *Parser) NetworkPolicy(raw []byte) (*policy.Policy, error) {
	return p.fromCluster(raw, (*reader).networkPolicy)
}

func (p *Parser) fromCluster(raw []byte, read func(r *reader, path string, v value, n policy.Name) *policy.Policy) (*policy.Policy, error) {
	v, err := p.parseJSON(raw)
	if err != nil {
		return nil, err
	}
	n := nameOf(v)
	if n.Name == "" {
		return nil, errors.New("this is no object of Kubernetes: it has no metadata.name")
	}
	r := &reader{}
	is := read(r, "", v, n)
	is.Problems = r.lines()
	if err := is.Check(); err != nil {
		is = is.Closed(err)
	}
	return is, nil
}

func nameOf(v value) policy.Name {
	var n policy.Name
	meta := v.get("metadata")
	if in := meta.get("namespace"); in.kind == text {
		n.Namespace = in.scalar
	}
	if is := meta.get("name"); is.kind == text {
		n.Name = is.scalar
	}
	return n
}

func (r *reader) networkPolicy(path string, v value, n policy.Name) *policy.Policy {
	p := &policy.Policy{PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: n}, Tier: policy.Network}
	told, since := len(r.problems), r.count
	r.only(path, v, "apiVersion", "kind", "metadata", "spec", "status")
	s, spec := v.get("spec"), at(path, "spec")
	r.only(spec, s, "podSelector", "ingress", "egress", "policyTypes")
	p.Isolates = r.policyTypes(at(spec, "policyTypes"), s)
	doubtful := r.count > since
	if doubtful {
		p.Isolates = [2]bool{true, true}
		r.instead(told, "until that is mended the policy allows nothing, and isolates what it selects in both directions")
	}
	told, since = len(r.problems), r.count
	pods := r.selector(at(spec, "podSelector"), s.get("podSelector"))
	p.Pods = &pods
	if r.count > since {
		doubtful = true
		r.instead(told, "until that is mended the policy allows nothing, and selects whatever fits the rest of the selector")
	}
	for d, side := range sides() {
		rules := r.rules(at(spec, side.rules), s.get(side.rules), policy.Rule{Disabled: true}, lostNetwork, func(path string, v value) policy.Rule {
			rule := r.networkRule(path, v, side.peers)
			rule.Disabled = rule.Disabled || doubtful
			return rule
		})
		if p.Isolates[d] {
			p.Rules[d] = rules
		}
	}
	return p
}

// side is what a direction is called.
type side struct{ rules, peers string }

// sides are those of the directions.
func sides() [2]side {
	return [2]side{policy.Ingress: {"ingress", "from"}, policy.Egress: {"egress", "to"}}
}

// policyTypes reads which directions a policy isolates. If it does not say, that is Ingress, and Egress if it has rules for that.
func (r *reader) policyTypes(path string, spec value) (isolates [2]bool) {
	n := r.each(path, spec.get("policyTypes"), func(path string, v value) {
		switch t := r.text(path, v); {
		case t == "Ingress":
			isolates[policy.Ingress] = true
		case t == "Egress":
			isolates[policy.Egress] = true
		case v.kind == text:
			r.fault(path, v, "%s is no policy type that is known here; there are Ingress and Egress", quote(t))
		}
	})
	if n == 0 {
		egress := spec.get("egress")
		isolates = [2]bool{policy.Ingress: true, policy.Egress: len(egress.items) > 0 || egress.kind != list && egress.kind != absent}
	}
	return isolates
}

// networkRule reads a rule, which is disabled if it has a problem.
func (r *reader) networkRule(path string, v value, peers string) policy.Rule {
	var rule policy.Rule
	told, since := len(r.problems), r.count
	if r.only(path, v, peers, "ports") {
		rule.AnyPeer = r.each(at(path, peers), v.get(peers), func(path string, v value) {
			rule.Peers = append(rule.Peers, r.networkPeer(path, v))
		}) == 0
		rule.AnyPort = r.each(at(path, "ports"), v.get("ports"), func(path string, v value) {
			rule.Ports = append(rule.Ports, r.networkPort(path, v))
		}) == 0
	}
	if r.count > since {
		r.instead(told, lostNetwork)
		return policy.Rule{Disabled: true}
	}
	return rule
}

func (r *reader) networkPeer(path string, v value) policy.Peer {
	var p policy.Peer
	if !r.only(path, v, "podSelector", "namespaceSelector", "ipBlock") {
		return p
	}
	if s := v.get("podSelector"); s.kind != absent {
		pods := r.selector(at(path, "podSelector"), s)
		p.Pods = &pods
	}
	if s := v.get("namespaceSelector"); s.kind != absent {
		namespaces := r.selector(at(path, "namespaceSelector"), s)
		p.Namespaces = &namespaces
	}
	b := v.get("ipBlock")
	switch endpoints := p.Pods != nil || p.Namespaces != nil; {
	case b.kind == absent && !endpoints:
		r.fault(path, v, "it says nobody: give it a podSelector, a namespaceSelector, both of them, or an ipBlock")
	case b.kind == absent:
	case endpoints:
		r.fault(path, v, "it has an ipBlock and a selector; make two of it")
	default:
		block := r.block(at(path, "ipBlock"), b)
		p.Block = &block
	}
	return p
}

func (r *reader) networkPort(path string, v value) policy.Ports {
	var p policy.Ports
	if !r.only(path, v, "protocol", "port", "endPort") {
		return p
	}
	p.Protocol = policy.TCP
	if protocol := v.get("protocol"); protocol.kind != absent {
		var known bool
		if p.Protocol, known = protocolOf(r.text(at(path, "protocol"), protocol)); !known && protocol.kind == text {
			r.fault(at(path, "protocol"), protocol, "%s is no protocol that is known here; there are TCP, UDP and SCTP", quote(protocol.scalar))
		}
	}
	port, end := v.get("port"), v.get("endPort")
	switch port.kind {
	case absent:
		if end.kind != absent {
			r.fault(at(path, "endPort"), end, "it needs a port, at which the range begins")
		}
		return p
	case text:
		p.Name = port.scalar
		if why := badPortName(p.Name); why != "" {
			r.fault(at(path, "port"), port, "%s", why)
		}
		if end.kind != absent {
			r.fault(at(path, "endPort"), end, "it needs a port that is a number, and %s is a name", quote(port.scalar))
		}
		return p
	}
	p.First = uint16(r.integer(at(path, "port"), port, 1, 65535))
	p.Last = p.First
	if end.kind != absent {
		p.Last = uint16(r.integer(at(path, "endPort"), end, 1, 65535))
		if p.Last != 0 && p.Last < p.First {
			r.fault(at(path, "endPort"), end, "%d is less than the port, %d", p.Last, p.First)
		}
	}
	return p
}

func protocolOf(s string) (p policy.Protocol, ok bool) {
	switch s {
	case "TCP":
		return policy.TCP, true
	case "UDP":
		return policy.UDP, true
	case "SCTP":
		return policy.SCTP, true
	}
	return 0, false
}

// badPortName is why no port can have such a name (RFC 6335), empty if one can.
func badPortName(s string) string {
	if strings.Trim(s, "0123456789") == "" && s != "" {
		return fmt.Sprintf("%s is a text, and no port's name as it has no letter: write a number without quotes", quote(s))
	}
	ok := len(s) > 0 && len(s) <= 15 && s[0] != '-' && s[len(s)-1] != '-' && !strings.Contains(s, "--") &&
		strings.ContainsFunc(s, func(c rune) bool { return c >= 'a' && c <= 'z' }) &&
		!strings.ContainsFunc(s, func(c rune) bool { return c != '-' && (!alphanumeric(c) || c >= 'A' && c <= 'Z') })
	if ok {
		return ""
	}
	return fmt.Sprintf("%s is no port's name: that is at most 15 small letters, digits and single dashes between them", quote(s))
}

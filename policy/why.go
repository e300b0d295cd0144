// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
)

// An Explanation says why a connection is allowed or denied. Its text is that of [Explanation.Text].
type Explanation struct {
	Source      Party    `json:"source"`
	Destination Party    `json:"destination"`
	Protocol    string   `json:"protocol"`
	Port        uint16   `json:"port"` // zero if the protocol has none
	Allowed     bool     `json:"allowed"`
	Egress      EndWords `json:"egress"`
	Ingress     EndWords `json:"ingress"`
}

// A Party is who has an address.
type Party struct {
	Addr     netip.Addr `json:"address"`
	Endpoint string     `json:"endpoint,omitempty"` // NAMESPACE/NAME
	Node     string     `json:"node,omitempty"`     // if it is no endpoint
}

// EndWords are the verdict of one end, and how it comes to it.
type EndWords struct {
	Allowed bool `json:"allowed"`
	// Decided is what did: "no endpoint", "itself", "own node", "rule", "isolation" or "no policy".
	Decided  string    `json:"decided"`
	Rule     *RuleRef  `json:"rule,omitempty"`     // for "rule"
	Isolated []string  `json:"isolated,omitempty"` // for "isolation": by which policies
	Passed   []RuleRef `json:"passed,omitempty"`   // rules that passed it on before
	// Nearest are rules that would have allowed it but for one thing, for "isolation": at most three.
	Nearest []Near `json:"nearest,omitempty"`
	// Unread are policies that decided with parts that could not be understood.
	Unread []string `json:"unread,omitempty"`
}

// A RuleRef names a rule.
type RuleRef struct {
	Policy string `json:"policy"`
	Tier   string `json:"tier"`
	Number int    `json:"number"` // counted from 1
	Name   string `json:"name,omitempty"`
	Words  string `json:"words"` // whom and what it is about
}

// A Near is a rule and what kept it from fitting.
type Near struct {
	RuleRef
	But string `json:"but"`
}

// mostNear is how many rules that almost fit are named.
const mostNear = 3

// Why explains what [World.Judge] says.
func (w *World) Why(c Connection) Explanation {
	x := Explanation{Source: w.party(c.Src), Destination: w.party(c.Dst), Protocol: c.Protocol.String()}
	if c.Protocol.HasPorts() {
		x.Port = c.Port
	}
	x.Egress, x.Ingress = w.endWords(Egress, c), w.endWords(Ingress, c)
	x.Allowed = x.Egress.Allowed && x.Ingress.Allowed
	return x
}

func (w *World) party(a netip.Addr) Party {
	p := Party{Addr: a}
	if e, ok := w.EndpointAt(a); ok {
		p.Endpoint = e.Name.String()
	} else if n := w.NodesAt(a); len(n) > 0 {
		p.Node = n[0].Name
	}
	return p
}

func (w *World) endWords(d Direction, c Connection) EndWords {
	r := w.end(d, c)
	x := EndWords{Allowed: r.verdict.Allowed, Decided: nth(r.verdict.Reason, "no endpoint", "itself", "own node", "rule", "isolation", "no policy")}
	for _, h := range r.passed {
		x.Passed = append(x.Passed, ruleRef(h.policy, h.rule, d, r.endpoint))
	}
	switch r.verdict.Reason {
	case ByRule:
		p := w.policies[r.verdict.Policy]
		ref := ruleRef(p, r.verdict.Rule, d, r.endpoint)
		x.Rule = &ref
		x.unread(p)
	case Isolated:
		for _, k := range r.verdict.Isolating {
			x.Isolated = append(x.Isolated, k.String())
			x.unread(w.policies[k])
		}
		x.Nearest = w.nearest(r, d, c)
	}
	return x
}

func (x *EndWords) unread(p *Policy) {
	if len(p.Problems) > 0 {
		x.Unread = append(x.Unread, p.PolicyKey.String())
	}
}

func ruleRef(p *Policy, i int, d Direction, at Endpoint) RuleRef {
	r := p.Rules[d][i]
	return RuleRef{Policy: p.PolicyKey.String(), Tier: p.Tier.String(), Number: i + 1, Name: r.Name, Words: ruleWords(p, r, d, at)}
}

// nearest are rules that would allow it if only the port, or else only the peer, were another one.
func (w *World) nearest(r end, d Direction, c Connection) []Near {
	var ports, peers []Near
	for _, k := range r.verdict.Isolating {
		p := w.policies[k]
		for i, rule := range p.Rules[d] {
			anyPort, anyPeer := rule, rule
			anyPort.AnyPort, anyPeer.AnyPeer = true, true
			who := "from"
			if d == Egress {
				who = "to"
			}
			switch {
			case rule.Action != Accept:
			case w.FitsRule(p, anyPort, d, c):
				ports = append(ports, Near{ruleRef(p, i, d, r.endpoint), fmt.Sprintf("only %s", w.portsThere(rule, c))})
			case w.FitsRule(p, anyPeer, d, c):
				peers = append(peers, Near{ruleRef(p, i, d, r.endpoint), fmt.Sprintf("only %s %s", who, peersWords(p, rule))})
			}
		}
	}
	all := append(ports, peers...)
	return all[:min(len(all), mostNear)]
}

// portsThere are a rule's ports in words, with what names stand for at the destination.
func (w *World) portsThere(r Rule, c Connection) string {
	if e, ok := w.EndpointAt(c.Dst); ok {
		return portsWords(r, &e)
	}
	return portsWords(r, nil)
}

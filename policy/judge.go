// SPDX-License-Identifier: Apache-2.0

package policy

import "slices"

// A Reason is why one end of a connection decides as it does.
type Reason uint8

// The reasons.
const (
	NotAnEndpoint Reason = iota // nothing here has rules for that address
	Itself                      // an endpoint reaches itself, although the Network tier isolates it
	OwnNode                     // its own node reaches it; or it reaches that, although the Network tier isolates it
	ByRule                      // Verdict.Policy and Rule say which
	Isolated                    // Verdict.Isolating isolate it, and none of them allows this
	Open                        // no policy has anything to say, or the last one that had passes it on
	Beyond                      // the rules are more than can be enforced, so nothing is allowed
)

// A Verdict is the decision of one end.
type Verdict struct {
	Allowed bool
	Reason  Reason
	// Endpoint is whose rules decided, if it is one.
	Endpoint Name
	// Policy is what decided, with Rule as an index into its rules of that direction, for ByRule. Of several policies of the Network tier
	// that allow it, it is the first by name and the first rule of that.
	Policy PolicyKey
	Rule   int
	// Isolating are the policies that isolate the endpoint, sorted, for Isolated.
	Isolating []PolicyKey
}

// A Decision is those of both ends; the connection is allowed if both allow it.
type Decision struct{ Egress, Ingress Verdict }

// Allowed says whether both ends allow it.
func (d Decision) Allowed() bool { return d.Egress.Allowed && d.Ingress.Allowed }

// Judge says whether a connection is allowed, and by whose rules.
func (w *World) Judge(c Connection) Decision {
	return Decision{Egress: w.end(Egress, c).verdict, Ingress: w.end(Ingress, c).verdict}
}

// An end is how one end of a connection comes to its verdict.
type end struct {
	endpoint Endpoint
	verdict  Verdict
	exempt   Reason // Itself or OwnNode if the Network tier has no say, else zero
	passed   []hit  // the rules that passed it on, in order
}

// A hit is a rule that fits.
type hit struct {
	policy *Policy
	rule   int
}

// end asks the tiers, one after another.
func (w *World) end(d Direction, c Connection) end {
	own, other := c.Dst, c.Src
	if d == Egress {
		own, other = c.Src, c.Dst
	}
	e, ok := w.EndpointAt(own)
	if !ok {
		return end{verdict: Verdict{Allowed: true, Reason: NotAnEndpoint}}
	}
	r := end{endpoint: e}
	decide := func(v Verdict) end {
		r.verdict = v
		r.verdict.Endpoint = e.Name
		return r
	}
	switch {
	case own == other:
		r.exempt = Itself
	case slices.ContainsFunc(w.NodesAt(other), func(n Node) bool { return n.Name == e.Node }):
		r.exempt = OwnNode
	}
	if d == Ingress && r.exempt == OwnNode {
		return decide(Verdict{Allowed: true, Reason: OwnNode})
	}

	if v, ok := w.ordered(&r, Admin, d, c); ok {
		return decide(v)
	}
	if isolating := w.Selecting(e, Network, d); len(isolating) > 0 {
		if r.exempt != 0 {
			return decide(Verdict{Allowed: true, Reason: r.exempt})
		}
		return decide(w.union(isolating, d, c))
	}
	if v, ok := w.ordered(&r, Baseline, d, c); ok {
		return decide(v)
	}
	return decide(Verdict{Allowed: true, Reason: Open})
}

// ordered asks a tier in which the first rule that fits decides or passes it on.
func (w *World) ordered(r *end, t Tier, d Direction, c Connection) (Verdict, bool) {
	for _, p := range w.Selecting(r.endpoint, t, d) {
		for i, rule := range p.Rules[d] {
			if !w.FitsRule(p, rule, d, c) {
				continue
			}
			if rule.Action == Pass {
				r.passed = append(r.passed, hit{p, i})
				return Verdict{}, false
			}
			return Verdict{Allowed: rule.Action == Accept, Reason: ByRule, Policy: p.PolicyKey, Rule: i}, true
		}
	}
	return Verdict{}, false
}

// union asks the Network tier: what one of the policies allows is allowed, and nothing else is.
func (w *World) union(isolating []*Policy, d Direction, c Connection) Verdict {
	v := Verdict{Reason: Isolated}
	for _, p := range isolating {
		for i, rule := range p.Rules[d] {
			if rule.Action == Accept && w.FitsRule(p, rule, d, c) {
				return Verdict{Allowed: true, Reason: ByRule, Policy: p.PolicyKey, Rule: i}
			}
		}
		v.Isolating = append(v.Isolating, p.PolicyKey)
	}
	return v
}

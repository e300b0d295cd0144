// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// A Summary is what policies say about an endpoint. Its text is that of [Summary.Text].
type Summary struct {
	Endpoint   string             `json:"endpoint"`
	Node       string             `json:"node"`
	Addrs      []netip.Addr       `json:"addresses"`
	Labels     map[string]string  `json:"labels"`
	Ports      []string           `json:"ports"` // NAME PROTOCOL NUMBER
	Directions []DirectionSummary `json:"directions"`
}

// A DirectionSummary is the rules of an endpoint in one direction, in the order in which they are asked.
type DirectionSummary struct {
	Direction  string          `json:"direction"`
	IsolatedBy []string        `json:"isolatedBy"` // the policies of the Network tier that deny what none of them allows
	Policies   []PolicySummary `json:"policies"`
	Rest       string          `json:"rest"` // what becomes of what no rule fits: "allowed" or "denied"
}

// A PolicySummary is the part of one policy.
type PolicySummary struct {
	Policy   string        `json:"policy"`
	Tier     string        `json:"tier"`
	Priority int32         `json:"priority"` // zero in the Network tier
	Unasked  bool          `json:"unasked"`  // of the Baseline tier, as the Network tier isolates the endpoint
	Rules    []RuleSummary `json:"rules"`
	Problems []string      `json:"problems"`
}

// A RuleSummary is one rule in words.
type RuleSummary struct {
	Number int    `json:"number"` // counted from 1
	Name   string `json:"name"`
	Action string `json:"action"`
	Words  string `json:"words"`
}

// Summary says what policies say about an endpoint; false if there is none of that name.
func (w *World) Summary(n Name) (Summary, bool) {
	e, ok := w.Endpoint(n)
	if !ok {
		return Summary{}, false
	}
	s := Summary{
		Endpoint: n.String(), Node: e.Node, Addrs: append([]netip.Addr{}, e.Addrs...), Labels: map[string]string{}, Ports: []string{},
	}
	maps.Copy(s.Labels, e.Labels)
	for _, p := range e.Ports {
		s.Ports = append(s.Ports, fmt.Sprintf("%s %v %d", plain(p.Name), p.Protocol, p.Port))
	}
	for _, d := range []Direction{Ingress, Egress} {
		s.Directions = append(s.Directions, w.directionSummary(e, d))
	}
	return s, true
}

func (w *World) directionSummary(e Endpoint, d Direction) DirectionSummary {
	s := DirectionSummary{Direction: d.String(), IsolatedBy: []string{}, Policies: []PolicySummary{}, Rest: "allowed"}
	for _, t := range []Tier{Admin, Network, Baseline} {
		for _, p := range w.Selecting(e, t, d) {
			if t == Network {
				s.IsolatedBy = append(s.IsolatedBy, p.PolicyKey.String())
				s.Rest = "denied"
			}
			ps := PolicySummary{
				Policy: p.PolicyKey.String(), Tier: t.String(), Priority: p.Priority, Rules: []RuleSummary{},
				Problems: append([]string{}, p.Problems...), Unasked: t == Baseline && len(s.IsolatedBy) > 0,
			}
			for i, r := range p.Rules[d] {
				ps.Rules = append(ps.Rules, RuleSummary{Number: i + 1, Name: r.Name, Action: r.Action.String(), Words: ruleWords(p, r, d, e)})
			}
			s.Policies = append(s.Policies, ps)
		}
	}
	return s
}

// Text is the summary for a terminal: lines, each with its end.
func (s Summary) Text() string {
	var b strings.Builder
	on := ""
	if s.Node != "" {
		on = " on node " + plain(s.Node)
	}
	fmt.Fprintf(&b, "%s%s\n", plain(s.Endpoint), on)
	addrs := make([]string, len(s.Addrs))
	for i, a := range s.Addrs {
		addrs[i] = a.String()
	}
	labels := []string{}
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		labels = append(labels, plain(k)+"="+plain(s.Labels[k]))
	}
	for _, l := range []struct {
		what string
		all  []string
	}{{"addresses", addrs}, {"labels", labels}, {"ports", s.Ports}} {
		if len(l.all) == 0 {
			l.all = []string{"none"}
		}
		fmt.Fprintf(&b, "  %-10s %s\n", l.what, list(l.all))
	}
	for _, d := range s.Directions {
		d.text(&b)
	}
	return b.String()
}

func (s DirectionSummary) text(b *strings.Builder) {
	if len(s.Policies) == 0 {
		fmt.Fprintf(b, "%s: no policy, all is allowed\n", s.Direction)
		return
	}
	if len(s.IsolatedBy) > 0 {
		fmt.Fprintf(b, "%s: isolated by %s\n", s.Direction, and(s.IsolatedBy))
	} else {
		fmt.Fprintf(b, "%s: not isolated\n", s.Direction)
	}
	tier := ""
	for _, p := range s.Policies {
		if p.Tier != tier {
			tier = p.Tier
			note := ""
			if p.Unasked {
				note = " (not asked, as the endpoint is isolated)"
			}
			fmt.Fprintf(b, "  %s tier%s\n", tier, note)
		}
		p.text(b)
	}
	fmt.Fprintf(b, "  all else is %s\n", s.Rest)
}

func (s PolicySummary) text(b *strings.Builder) {
	priority := ""
	if s.Tier != Network.String() {
		priority = fmt.Sprintf(", priority %d", s.Priority)
	}
	fmt.Fprintf(b, "    %s%s\n", s.Policy, priority)
	if len(s.Rules) == 0 {
		b.WriteString("      allows nothing\n")
	}
	for _, r := range s.Rules {
		name := ""
		if r.Name != "" {
			name = " (" + plain(r.Name) + ")"
		}
		fmt.Fprintf(b, "      %d. %s%s %s\n", r.Number, r.Action, name, r.Words)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(b, "      problem: %s\n", oneLine(p))
	}
}

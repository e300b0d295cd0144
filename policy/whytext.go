// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
)

// Text is the explanation for a terminal: lines, each with its end. The first one says it all, the others how it came to that.
func (x Explanation) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s to %s, %s\n", x.outcome(), x.Source, x.Destination, x.service())
	if x.Source.Endpoint == "" && x.Destination.Endpoint == "" {
		b.WriteString("  neither end is an endpoint, and policies are about endpoints alone\n")
	}
	x.Egress.text(&b, Egress, x.Source)
	x.Ingress.text(&b, Ingress, x.Destination)
	if x.Source.Addr == x.Destination.Addr {
		b.WriteString("  this is about a Service in between; what an endpoint sends to its own address never leaves it and is allowed\n")
	}
	return b.String()
}

func (x Explanation) outcome() string {
	if x.Allowed {
		return "allowed"
	}
	return "denied"
}

func (x Explanation) service() string {
	if x.Port == 0 {
		return x.Protocol
	}
	return fmt.Sprintf("%s %d", x.Protocol, x.Port)
}

// String is who it is, and the address.
func (p Party) String() string {
	switch {
	case p.Endpoint != "":
		return fmt.Sprintf("%s (%v)", plain(p.Endpoint), p.Addr)
	case p.Node != "":
		return fmt.Sprintf("node %s (%v)", plain(p.Node), p.Addr)
	default:
		return p.Addr.String()
	}
}

// text adds the lines of one end; of what is no endpoint there are none.
func (x EndWords) text(b *strings.Builder, d Direction, who Party) {
	if who.Endpoint == "" {
		return
	}
	verb := "denied"
	if x.Allowed {
		verb = "allowed"
	}
	fmt.Fprintf(b, "  %v of %s: %s %s\n", d, plain(who.Endpoint), verb, x.reason())
	for _, p := range x.Passed {
		fmt.Fprintf(b, "    passed on by %s\n", p)
	}
	for _, n := range x.Nearest {
		fmt.Fprintf(b, "    nearest: %s, but %s\n", n.RuleRef.short(), n.But)
	}
	for _, p := range x.Unread {
		fmt.Fprintf(b, "    not all of %s could be understood: see weft policy show %s\n", p, plain(who.Endpoint))
	}
}

func (x EndWords) reason() string {
	switch {
	case x.Rule != nil:
		return "by " + x.Rule.String()
	case len(x.Isolated) == 1:
		return fmt.Sprintf("as %s isolates it and no rule of that allows this", x.Isolated[0])
	case len(x.Isolated) > 1:
		return fmt.Sprintf("as %s isolate it and no rule of theirs allows this", and(x.Isolated))
	case x.Decided == "itself":
		return "as an endpoint always reaches itself"
	case x.Decided == "own node":
		return "as it is on that node"
	default:
		return "as no policy decides"
	}
}

// short is the policy and the rule.
func (r RuleRef) short() string { return r.Policy + ", " + ruleNumber(r.Number-1, r.Name) }

// String is the policy, the rule and what it is about.
func (r RuleRef) String() string {
	tier := ""
	if r.Tier != Network.String() {
		tier = " of the " + r.Tier + " tier"
	}
	return fmt.Sprintf("%s%s, %s: %s", r.Policy, tier, ruleNumber(r.Number-1, r.Name), r.Words)
}

// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
)

// Closed returns what is enforced in place of a policy that is refused for that reason, and passes [Policy.Check] if its name does. Its subject is that of the
// policy, or a wider one where that cannot be read. In a direction that the policy is about it allows its subject nothing, if it is of the Network tier; of
// another tier it denies its subject everything, unless the policy has nothing but rules that accept, which then say nothing.
func (p *Policy) Closed(reason error) *Policy {
	c := &Policy{PolicyKey: p.PolicyKey, Tier: p.Tier, Priority: p.Priority, Namespaces: p.Namespaces, Pods: p.Pods, Isolates: p.Isolates}
	c.Problems = append(slices.Clone(p.Problems), fmt.Sprintf("%v; until that is mended it allows nothing, and denies all if it denies anything", reason))
	var n counter
	if n.selector(p.Pods) != nil || n.parts > MaxParts {
		c.Pods = nil
	}
	if p.Kind == Network {
		c.Tier, c.Priority, c.Namespaces = Network, 0, nil
		return c
	}
	if c.Tier != Baseline {
		c.Tier = Admin
	}
	c.Isolates, c.Priority = [2]bool{}, min(max(c.Priority, 0), MaxPriority)
	if n = (counter{}); p.Namespaces == nil || n.selector(p.Namespaces) != nil || n.parts > MaxParts {
		c.Namespaces = &Selector{}
	}
	for d, rules := range p.Rules {
		if slices.ContainsFunc(rules, func(r Rule) bool { return r.Action != Accept }) {
			c.Rules[d] = []Rule{{Action: Deny, AnyPeer: true, AnyPort: true}}
		}
	}
	return c
}

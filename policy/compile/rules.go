// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"slices"

	"github.com/weftnet/weft/policy"
)

// A rule is one that may fit something, in the form in which tables use it.
type rule struct {
	by      *policy.Verdict
	pass    bool
	anyPeer bool
	peers   []uint32 // sorted
	anyPort bool
	spans   []span // disjoint, by protocol and port
	names   []named
}

// A span is ports of a protocol.
type span struct {
	protocol    policy.Protocol
	first, last uint16
}

// A named is ports by name; protocol zero is any.
type named struct {
	name     string
	protocol policy.Protocol
}

// A portName is a name that rules in use ask other endpoints' ports for.
type portName struct {
	id     uint32
	refs   int      // rules
	tables []*table // with rules for any peer about it
}

// A pol is a version of a policy.
type pol struct {
	*policy.Policy
	seq      uint64
	uses     [2]int // tables
	rules    [2][]rule
	counted  [2]bool
	blocks   [2]int      // that peers in the rules are cut out of, and parts left out; if counted
	about    [2][]uint32 // IDs of counted blocks, none if they are too many
	live     [2]int      // tables that are not denied, in a tally
	out      bool        // denied in a tally
	names    [2][]string // of ports in rules that are in force
	inForces [2]int      // rules that are
	speaks   [2]bool
	gone     bool // it is not this version any more
	old      *pol // the version before, until the commit is over
}

// says whether it has something to say in that direction.
func (p *pol) says(d policy.Direction) bool {
	if p.Tier == policy.Network {
		return p.Isolates[d]
	}
	return slices.ContainsFunc(p.Rules[d], func(r policy.Rule) bool { return !r.Disabled })
}

// inForce says whether a rule can do anything.
func (p *pol) inForce(r policy.Rule) bool {
	return !r.Disabled && (p.Tier != policy.Network || r.Action == policy.Accept)
}

// portNames returns the names that the rules in force ask ports for, sorted.
func (p *pol) portNames(d policy.Direction) []string {
	var all []string
	for _, r := range p.Rules[d] {
		if p.inForce(r) && !r.AnyPort {
			for _, x := range r.Ports {
				if x.Name != "" {
					all = append(all, x.Name)
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// use makes the rules of a direction as one more table needs them.
func (c *Compiler) use(p *pol, d policy.Direction) {
	if p.uses[d]++; p.uses[d] > 1 {
		return
	}
	for i, r := range p.Rules[d] {
		if !p.inForce(r) {
			continue
		}
		n := rule{by: c.by(p, d, i), pass: p.Tier != policy.Network && r.Action == policy.Pass, anyPeer: r.AnyPeer, anyPort: r.AnyPort}
		if !n.anyPeer {
			for _, x := range r.Peers {
				if id, ok := c.peers.acquire(p.Namespace, x); ok {
					n.peers = append(n.peers, id)
				}
			}
			n.peers = c.peers.once(n.peers)
		}
		if !n.anyPort {
			n.spans, n.names = portsOf(r.Ports)
		}
		if d == policy.Egress {
			for _, x := range n.names {
				c.acquireName(x.name)
			}
		}
		p.rules[d] = append(p.rules[d], n)
	}
}

// unuse says that a table less needs the rules.
func (c *Compiler) unuse(p *pol, d policy.Direction) {
	if p.uses[d]--; p.uses[d] > 0 {
		return
	}
	for _, r := range p.rules[d] {
		for _, id := range r.peers {
			c.peers.release(id)
		}
		if d == policy.Egress {
			for _, x := range r.names {
				c.releaseName(x.name)
			}
		}
	}
	p.rules[d] = nil
}

// by returns the verdict of the i-th rule, the same one as in the version before if it is equal.
func (c *Compiler) by(p *pol, d policy.Direction, i int) *policy.Verdict {
	v := policy.Verdict{Allowed: p.Rules[d][i].Action == policy.Accept, Reason: policy.ByRule, Policy: p.PolicyKey, Rule: i}
	if p.old != nil {
		for _, r := range p.old.rules[d] {
			if r.by.Rule == i && r.by.Allowed == v.Allowed {
				return r.by
			}
		}
	}
	return &v
}

func (c *Compiler) acquireName(name string) {
	n := c.names[name]
	if n == nil {
		c.lastName++
		n = &portName{id: c.lastName}
		c.names[name], c.byName[n.id] = n, n
		c.dirty.names = append(c.dirty.names, name)
	}
	n.refs++
}

func (c *Compiler) releaseName(name string) {
	n := c.names[name]
	if n.refs--; n.refs == 0 {
		delete(c.names, name)
		delete(c.byName, n.id)
		c.dirty.names = append(c.dirty.names, name)
	}
}

// portsOf returns what ports mean, without what is there twice.
func portsOf(ports []policy.Ports) ([]span, []named) {
	var spans []span
	var names []named
	for _, p := range ports {
		switch {
		case p.Name != "":
			names = append(names, named{p.Name, p.Protocol})
		case p.Protocol == 0 || p.First > p.Last:
			// fits nothing
		case p.First == 0 && p.Last == 0:
			spans = append(spans, span{p.Protocol, 0, 65535})
		default:
			spans = append(spans, span{p.Protocol, p.First, p.Last})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.first, b.first)) })
	kept := spans[:0]
	for _, s := range spans {
		if n := len(kept); n > 0 && kept[n-1].protocol == s.protocol && int(kept[n-1].last)+1 >= int(s.first) {
			kept[n-1].last = max(kept[n-1].last, s.last)
		} else {
			kept = append(kept, s)
		}
	}
	slices.SortFunc(names, func(a, b named) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol)) })
	return kept, slices.Compact(names)
}

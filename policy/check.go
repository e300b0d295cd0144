// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Limits of what [Policy.Check] lets pass. They are far above what people write and bound what one policy can cost.
const (
	MaxName     = 253     // bytes of a name
	MaxLabel    = 63      // bytes of a label's value, and of a label's or port's name
	MaxRules    = 1000    // of a direction
	MaxParts    = 20_000  // peers, ports, parts left out of blocks, requirements and their values of a policy
	MaxPairs    = 100_000 // of a peer and ports of the same rule, of a policy
	MaxPriority = 1000    // the last that is asked
	MaxObject   = 1000    // labels or ports of an endpoint
	maxKey      = 253 + 1 + MaxLabel
)

// Check says what is wrong with a policy: whether it is of the form that its types' comments demand, of what its kind knows, and within the limits. The error
// is one line that names the policy and the place.
func (p *Policy) Check() error {
	if err := p.check(); err != nil {
		return fmt.Errorf("%s %s: %w", kindName(p.Kind), plain(p.Name.String()), err)
	}
	return nil
}

func kindName(k Tier) string {
	if k == Network {
		return "NetworkPolicy"
	}
	return "ClusterNetworkPolicy"
}

func (p *Policy) check() error {
	if err := p.checkKind(); err != nil {
		return err
	}
	c := counter{}
	for _, s := range []struct {
		what     string
		selector *Selector
	}{{"the subject's namespaces", p.Namespaces}, {"the subject", p.Pods}} {
		if err := c.selector(s.selector); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	for _, d := range []Direction{Ingress, Egress} {
		if n := len(p.Rules[d]); n > MaxRules {
			return fmt.Errorf("it has %d %v rules, more than %d: make several policies of it", n, d, MaxRules)
		}
		for i := range p.Rules[d] {
			if err := c.rule(p, d, &p.Rules[d][i]); err != nil {
				return fmt.Errorf("%v rule %d: %w", d, i+1, err)
			}
			if c.parts > MaxParts {
				return fmt.Errorf("it has more than %d peers, ports and labels: make several policies of it", MaxParts)
			}
			if c.pairs > MaxPairs {
				return fmt.Errorf("its rules combine peers and ports in more than %d ways: make several policies of it", MaxPairs)
			}
		}
	}
	return nil
}

func (p *Policy) checkKind() error {
	if err := checkName("its name", p.Name.Name); err != nil {
		return err
	}
	switch p.Kind {
	case Network:
		switch {
		case p.Tier != Network:
			return fmt.Errorf("it is of the tier %v, but a NetworkPolicy is of the tier Network", p.Tier)
		case p.Priority != 0:
			return errors.New("it has a priority, which only a ClusterNetworkPolicy has")
		case p.Namespaces != nil:
			return errors.New("its subject is in other namespaces than its own: use a ClusterNetworkPolicy")
		}
		return checkLabelName("its namespace", p.Namespace)
	case Admin:
		switch {
		case p.Tier != Admin && p.Tier != Baseline:
			return fmt.Errorf("it is of the tier %v: use Admin or Baseline", p.Tier)
		case p.Priority < 0 || p.Priority > MaxPriority:
			return fmt.Errorf("its priority is %d: use one from 0 to %d", p.Priority, MaxPriority)
		case p.Namespace != "":
			return errors.New("it has a namespace, but is of the whole cluster")
		case p.Namespaces == nil:
			return errors.New("it does not say in which namespaces its subject is: an empty selector means all")
		case p.Isolates != [2]bool{}:
			return errors.New("it isolates its subject, which only a NetworkPolicy does: use a rule that denies")
		}
		return nil
	default:
		return fmt.Errorf("it is of the unknown kind %v", p.Kind)
	}
}

// A counter counts what a policy is made of.
type counter struct{ parts, pairs int }

func (c *counter) rule(p *Policy, d Direction, r *Rule) error {
	switch {
	case len(r.Name) > MaxName:
		return fmt.Errorf("its name has %d bytes, more than %d", len(r.Name), MaxName)
	case r.Action > Pass:
		return fmt.Errorf("it has the unknown action %v", r.Action)
	case p.Kind == Network && r.Action != Accept:
		return fmt.Errorf("its action is %v, but rules of a NetworkPolicy only accept", r.Action)
	case r.AnyPeer && len(r.Peers) > 0:
		return errors.New("it is for everyone and also lists peers")
	case r.AnyPort && len(r.Ports) > 0:
		return errors.New("it is for all ports and also lists some")
	}
	c.parts += len(r.Peers) + len(r.Ports)
	c.pairs += max(1, len(r.Peers)) * max(1, len(r.Ports))
	if c.parts > MaxParts || c.pairs > MaxPairs {
		return nil // the caller says so
	}
	for i, peer := range r.Peers {
		if err := c.peer(p, d, peer); err != nil {
			return fmt.Errorf("peer %d: %w", i+1, err)
		}
	}
	for i, ports := range r.Ports {
		if err := ports.check(); err != nil {
			return fmt.Errorf("port %d: %w", i+1, err)
		}
	}
	return nil
}

func (c *counter) peer(p *Policy, d Direction, peer Peer) error {
	forms := 0
	for _, set := range []bool{peer.Namespaces != nil || peer.Pods != nil, peer.Nodes != nil, peer.Block != nil} {
		if set {
			forms++
		}
	}
	switch {
	case forms != 1:
		return fmt.Errorf("it is of %d forms: use one of pods, nodes or addresses", forms)
	case peer.Nodes != nil && (p.Kind == Network || d == Ingress):
		return errors.New("only egress rules of a ClusterNetworkPolicy select nodes")
	case peer.Block != nil && p.Kind != Network && d == Ingress:
		return errors.New("ingress rules of a ClusterNetworkPolicy do not know addresses")
	case peer.Pods != nil && peer.Namespaces == nil && p.Kind != Network:
		return errors.New("it does not say in which namespaces its pods are: an empty selector means all")
	case peer.Block != nil:
		c.parts += len(peer.Block.Except)
		return peer.Block.check()
	}
	for _, s := range []*Selector{peer.Namespaces, peer.Pods, peer.Nodes} {
		if err := c.selector(s); err != nil {
			return err
		}
	}
	return nil
}

func (b *Block) check() error {
	for i, p := range append([]netip.Prefix{b.Prefix}, b.Except...) {
		switch {
		case !p.IsValid() || p.Addr().Is4In6():
			return fmt.Errorf("%v is no prefix of IPv4 or IPv6", p)
		case p != p.Masked():
			return fmt.Errorf("%v has bits beyond its length: write %v", p, p.Masked())
		case i > 0 && (p.Bits() < b.Prefix.Bits() || !b.Prefix.Contains(p.Addr())):
			return fmt.Errorf("%v is left out of %v, but is not in it", p, b.Prefix)
		}
	}
	return nil
}

func (p Ports) check() error {
	switch {
	case p.Protocol != 0 && !p.Protocol.HasPorts():
		return fmt.Errorf("%v: use TCP, UDP or SCTP", p.Protocol)
	case p.Name != "" && (p.First != 0 || p.Last != 0):
		return errors.New("it has a name and also a number: use one of them")
	case p.Name != "":
		return checkLabelName("its name", p.Name)
	case p.Protocol == 0:
		return errors.New("it has no protocol: use TCP, UDP or SCTP")
	case p.First > p.Last:
		return fmt.Errorf("its last port %d is below its first, %d", p.Last, p.First)
	case p.First == 0 && p.Last != 0:
		return errors.New("its first port is 0: use one from 1 to 65535")
	}
	return nil
}

func (c *counter) selector(s *Selector) error {
	if s == nil {
		return nil
	}
	c.parts += len(*s)
	for i, r := range *s {
		c.parts += len(r.Values)
		if c.parts > MaxParts {
			return nil // the caller says so
		}
		if err := r.check(); err != nil {
			return err
		}
		if i > 0 && compareRequirements((*s)[i-1], r) > 0 {
			return fmt.Errorf("the requirement %v is not in its place: sort them", r)
		}
	}
	return nil
}

func compareRequirements(a, b Requirement) int {
	return cmp.Or(strings.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
}

// Sorted returns the selector with the same meaning in the order that [Policy.Check] demands: requirements by key, operator and values, values
// in their order and none twice.
func (s Selector) Sorted() Selector {
	sorted := slices.Clone(s)
	for i, r := range sorted {
		v := slices.Clone(r.Values)
		slices.Sort(v)
		sorted[i].Values = slices.Compact(v)
	}
	slices.SortFunc(sorted, compareRequirements)
	return sorted
}

func (r Requirement) check() error {
	if err := checkKey(r.Key); err != nil {
		return err
	}
	switch {
	case r.Operator > DoesNotExist:
		return fmt.Errorf("label %s: unknown operator %v: use In, NotIn, Exists or DoesNotExist", plain(r.Key), r.Operator)
	case (r.Operator == In || r.Operator == NotIn) && len(r.Values) == 0:
		return fmt.Errorf("label %s: %v has no values: give it some", plain(r.Key), r.Operator)
	case (r.Operator == Exists || r.Operator == DoesNotExist) && len(r.Values) > 0:
		return fmt.Errorf("label %s: %v has values: leave them out", plain(r.Key), r.Operator)
	}
	for i, v := range r.Values {
		if err := checkValue(r.Key, v); err != nil {
			return err
		}
		if i > 0 && r.Values[i-1] >= v {
			return fmt.Errorf("label %s: the value %s is not in its place: sort them, none twice", plain(r.Key), plain(v))
		}
	}
	return nil
}

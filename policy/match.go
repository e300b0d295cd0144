// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
)

// Fits says whether labels meet all requirements. One of an operator that is not among the constants fits nothing.
func (s Selector) Fits(labels map[string]string) bool {
	return !slices.ContainsFunc(s, func(r Requirement) bool { return !r.Fits(labels) })
}

// Fits says whether labels meet the requirement.
func (r Requirement) Fits(labels map[string]string) bool {
	value, there := labels[r.Key]
	switch r.Operator {
	case In:
		return there && slices.Contains(r.Values, value)
	case NotIn:
		return !there || !slices.Contains(r.Values, value)
	case Exists:
		return there
	case DoesNotExist:
		return !there
	default:
		return false
	}
}

// Contains says whether a is in the block.
func (b Block) Contains(a netip.Addr) bool {
	return b.Prefix.Contains(a) && !slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}

// Selects says whether e is of the policy's subject.
func (w *World) Selects(p *Policy, e Endpoint) bool { return w.among(p, p.Namespaces, p.Pods, e) }

// among says whether e is one of the endpoints that pods fits in the namespaces that namespaces fits, as p means it.
func (w *World) among(p *Policy, namespaces, pods *Selector, e Endpoint) bool {
	if namespaces == nil && e.Namespace != p.Namespace {
		return false
	}
	if namespaces != nil && !namespaces.Fits(w.NamespaceLabels(e.Namespace)) {
		return false
	}
	return pods == nil || pods.Fits(e.Labels)
}

// FitsPeer says whether the address is what a peer of the policy p is about. A peer of which nothing is set fits nothing.
func (w *World) FitsPeer(p *Policy, peer Peer, a netip.Addr) bool {
	switch {
	case peer.Block != nil:
		return peer.Block.Contains(a)
	case peer.Nodes != nil:
		return slices.ContainsFunc(w.NodesAt(a), func(n Node) bool { return peer.Nodes.Fits(n.Labels) })
	case peer.Namespaces != nil || peer.Pods != nil:
		e, ok := w.EndpointAt(a)
		return ok && w.among(p, peer.Namespaces, peer.Pods, e)
	default:
		return false
	}
}

// FitsPorts says whether a connection goes to these ports. A name is that of a port of the endpoint at the destination, in whatever direction the rule
// is and whatever its peer.
func (w *World) FitsPorts(ports Ports, c Connection) bool {
	switch {
	case ports.Name != "":
		e, _ := w.EndpointAt(c.Dst)
		return slices.ContainsFunc(e.Ports, func(n NamedPort) bool {
			return n.Name == ports.Name && n.Protocol == c.Protocol && n.Port == c.Port &&
				(ports.Protocol == 0 || ports.Protocol == c.Protocol)
		})
	case ports.Protocol == 0 || ports.Protocol != c.Protocol:
		return false
	case ports.First == 0 && ports.Last == 0:
		return true
	default:
		return ports.First <= c.Port && c.Port <= ports.Last
	}
}

// FitsRule says whether a rule of p, for that direction, is about a connection, whatever it then does with it.
func (w *World) FitsRule(p *Policy, r Rule, d Direction, c Connection) bool {
	other := c.Src
	if d == Egress {
		other = c.Dst
	}
	return !r.Disabled &&
		(r.AnyPeer || slices.ContainsFunc(r.Peers, func(peer Peer) bool { return w.FitsPeer(p, peer, other) })) &&
		(r.AnyPort || slices.ContainsFunc(r.Ports, func(ports Ports) bool { return w.FitsPorts(ports, c) }))
}

// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
)

// peerWords are a peer of p in words: "endpoints with app=web in namespace prod".
func peerWords(p *Policy, peer Peer) string {
	switch {
	case peer.Block != nil:
		return "addresses in " + peer.Block.String()
	case peer.Nodes != nil:
		return fitting("nodes", *peer.Nodes)
	case peer.Namespaces == nil && peer.Pods == nil:
		return "nobody"
	default:
		return subjectWords(p, peer.Namespaces, peer.Pods)
	}
}

// subjectWords are endpoints in words, as p means them.
func subjectWords(p *Policy, namespaces, pods *Selector) string {
	who := "all endpoints"
	if pods != nil {
		who = fitting("endpoints", *pods)
	}
	switch {
	case namespaces == nil:
		return who + " in namespace " + plain(p.Namespace)
	case len(*namespaces) == 0:
		return who
	}
	if s := *namespaces; len(s) == 1 && s[0].Key == NameLabel && s[0].Operator == In && len(s[0].Values) == 1 {
		return who + " in namespace " + plain(s[0].Values[0])
	}
	return who + " in namespaces with " + namespaces.String()
}

func fitting(what string, s Selector) string {
	if len(s) == 0 {
		return "all " + what
	}
	return what + " with " + s.String()
}

// peersWords are the peers of a rule of p in words.
func peersWords(p *Policy, r Rule) string {
	if r.AnyPeer {
		return "anyone"
	}
	if len(r.Peers) == 0 {
		return "nobody"
	}
	all := make([]string, 0, len(r.Peers))
	for _, peer := range r.Peers[:min(len(r.Peers), mostListed+1)] {
		all = append(all, peerWords(p, peer))
	}
	return alternatives(all, len(r.Peers))
}

// portsWords are the ports of a rule in words. If at is not nil it is the endpoint at the destination, and names are followed by what they
// stand for there.
func portsWords(r Rule, at *Endpoint) string {
	if r.AnyPort {
		return "any port and protocol"
	}
	if len(r.Ports) == 0 {
		return "no port"
	}
	all := make([]string, 0, len(r.Ports))
	for _, p := range r.Ports[:min(len(r.Ports), mostListed+1)] {
		words := p.String()
		if p.Name != "" && at != nil {
			words += " (" + namedWords(p, *at) + ")"
		}
		all = append(all, words)
	}
	return alternatives(all, len(r.Ports))
}

// namedWords are what a port's name stands for at an endpoint.
func namedWords(p Ports, e Endpoint) string {
	var found []string
	for _, n := range e.Ports {
		if n.Name == p.Name && (p.Protocol == 0 || p.Protocol == n.Protocol) {
			found = append(found, fmt.Sprintf("%v %d", n.Protocol, n.Port))
		}
	}
	if len(found) == 0 {
		return "no such port of " + plain(e.Name.String())
	}
	return list(found) + " of " + plain(e.Name.String())
}

// alternatives joins the first of so many with "or".
func alternatives(first []string, of int) string {
	if more := of - mostListed; more > 0 {
		return fmt.Sprintf("%s or %d more", strings.Join(first[:mostListed], " or "), more)
	}
	return strings.Join(first, " or ")
}

// ruleWords are whom and what a rule of p is about, in words, at an endpoint that p selects.
func ruleWords(p *Policy, r Rule, d Direction, at Endpoint) string {
	switch {
	case r.Disabled:
		return "says nothing, as it could not be understood"
	case d == Ingress:
		return "from " + peersWords(p, r) + " to " + portsWords(r, &at)
	default:
		return "to " + peersWords(p, r) + ", " + portsWords(r, nil)
	}
}

// ruleNumber is the number and name of a rule as it is spoken of: `rule 2 ("monitoring")`.
func ruleNumber(i int, name string) string {
	if name == "" {
		return fmt.Sprintf("rule %d", i+1)
	}
	return fmt.Sprintf("rule %d (%s)", i+1, plain(name))
}

// and joins names with commas and a last "and".
func and(names []string) string {
	if n := len(names) - mostListed; n > 0 || len(names) < 2 {
		return list(names)
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/policy"
)

// What follows writes policies as the manifests that mean them, for what a manifest can say: see [sayable].

// manifests writes objects of manifests into a file's text.
func manifests(t *testing.T, objects ...keys) string {
	t.Helper()
	var out []byte
	for _, o := range objects {
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, "---\n"...), append(text, '\n')...)
	}
	return string(out)
}

// namespaceManifest gives a namespace labels.
func namespaceManifest(name string, labels map[string]string) keys {
	return keys{"apiVersion": "v1", "kind": "Namespace", "metadata": keys{"name": name, "labels": labels}}
}

// policyManifest writes a policy.
func policyManifest(p *policy.Policy) keys {
	if p.Tier == policy.Network {
		return keys{
			"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": keys{"name": p.Name.Name, "namespace": p.Namespace}, "spec": networkSpec(p),
		}
	}
	return keys{
		"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": keys{"name": p.Name.Name}, "spec": clusterSpec(p),
	}
}

func networkSpec(p *policy.Policy) keys {
	spec := keys{"podSelector": selectorOf(p.Pods)}
	types := []string{}
	for d, words := range [][3]string{policy.Ingress: {"Ingress", "ingress", "from"}, policy.Egress: {"Egress", "egress", "to"}} {
		if !p.Isolates[d] {
			continue
		}
		types = append(types, words[0])
		rules := []keys{}
		for _, r := range p.Rules[d] {
			rule, peers, ports := keys{}, []keys{}, []keys{}
			for _, peer := range r.Peers {
				peers = append(peers, networkPeer(peer))
			}
			for _, port := range r.Ports {
				ports = append(ports, networkPort(port))
			}
			if !r.AnyPeer {
				rule[words[2]] = peers
			}
			if !r.AnyPort {
				rule["ports"] = ports
			}
			rules = append(rules, rule)
		}
		spec[words[1]] = rules
	}
	spec["policyTypes"] = types
	return spec
}

func networkPeer(p policy.Peer) keys {
	if p.Block != nil {
		block := keys{"cidr": p.Block.Prefix.String()}
		if len(p.Block.Except) > 0 {
			block["except"] = p.Block.Except
		}
		return keys{"ipBlock": block}
	}
	out := keys{}
	if p.Namespaces != nil {
		out["namespaceSelector"] = selectorOf(p.Namespaces)
	}
	if p.Pods != nil {
		out["podSelector"] = selectorOf(p.Pods)
	}
	return out
}

func networkPort(p policy.Ports) keys {
	out := keys{"protocol": p.Protocol.String()}
	switch {
	case p.Name != "":
		out["port"] = p.Name
	case p.First != 0:
		out["port"], out["endPort"] = p.First, p.Last
	}
	return out
}

func clusterSpec(p *policy.Policy) keys {
	spec := keys{"tier": p.Tier.String(), "priority": p.Priority, "subject": podsOrNamespaces(p.Namespaces, p.Pods)}
	for d, words := range [][2]string{policy.Ingress: {"ingress", "from"}, policy.Egress: {"egress", "to"}} {
		rules := []keys{}
		for _, r := range p.Rules[d] {
			rule := keys{"name": r.Name, "action": r.Action.String()}
			peers, ports := []keys{}, []keys{}
			for _, peer := range r.Peers {
				switch {
				case peer.Nodes != nil:
					peers = append(peers, keys{"nodes": selectorOf(peer.Nodes)})
				case peer.Block != nil:
					peers = append(peers, keys{"networks": []netip.Prefix{peer.Block.Prefix}})
				default:
					peers = append(peers, podsOrNamespaces(peer.Namespaces, peer.Pods))
				}
			}
			for _, port := range r.Ports {
				ports = append(ports, clusterPort(port))
			}
			rule[words[1]] = peers
			if !r.AnyPort {
				rule["protocols"] = ports
			}
			rules = append(rules, rule)
		}
		spec[words[0]] = rules
	}
	return spec
}

func podsOrNamespaces(namespaces, pods *policy.Selector) keys {
	if pods == nil {
		return keys{"namespaces": selectorOf(namespaces)}
	}
	return keys{"pods": keys{"namespaceSelector": selectorOf(namespaces), "podSelector": selectorOf(pods)}}
}

func clusterPort(p policy.Ports) keys {
	if p.Name != "" {
		return keys{"destinationNamedPort": p.Name}
	}
	port := keys{"number": p.First}
	if p.First != p.Last {
		port = keys{"range": keys{"start": p.First, "end": p.Last}}
	}
	return keys{strings.ToLower(p.Protocol.String()): keys{"destinationPort": port}}
}

// selectorOf writes a selector; none is one that fits all.
func selectorOf(s *policy.Selector) keys {
	if s == nil || len(*s) == 0 {
		return keys{}
	}
	var all []keys
	for _, r := range *s {
		one := keys{"key": r.Key, "operator": r.Operator.String()}
		if len(r.Values) > 0 {
			one["values"] = r.Values
		}
		all = append(all, one)
	}
	return keys{"matchExpressions": all}
}

// sayable returns the nearest to a policy that a manifest can say.
func sayable(p *policy.Policy) *policy.Policy {
	out := *p
	if out.Pods == nil && out.Tier == policy.Network {
		out.Pods = &policy.Selector{}
	}
	for d := range p.Rules {
		out.Rules[d] = nil
		for i, r := range p.Rules[d] {
			if p.Tier == policy.Network && !p.Isolates[d] || r.Disabled || !r.AnyPeer && len(r.Peers) == 0 {
				continue // there is no way to say it
			}
			if p.Tier == policy.Network {
				r.Name = ""
			} else {
				r = sayableOfCluster(r, policy.Direction(d))
				r.Name = fmt.Sprintf("rule %d", i)
			}
			if r.AnyPort || len(r.Ports) > 0 {
				out.Rules[d] = append(out.Rules[d], r)
			}
		}
	}
	return &out
}

// sayableOfCluster returns the nearest to a rule that a ClusterNetworkPolicy can say: who it is, which numbers, and no names of ports of what is no endpoint.
func sayableOfCluster(r policy.Rule, d policy.Direction) policy.Rule {
	if r.AnyPeer {
		r.AnyPeer, r.Peers = false, []policy.Peer{{Namespaces: &policy.Selector{}}}
		if d == policy.Egress {
			for _, all := range []string{"0.0.0.0/0", "::/0"} {
				r.Peers = append(r.Peers, policy.Peer{Block: &policy.Block{Prefix: netip.MustParsePrefix(all)}})
			}
		}
	}
	wide := slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return p.Nodes != nil || p.Block != nil })
	var ports []policy.Ports
	for _, p := range r.Ports {
		if p.Name != "" && wide {
			continue
		}
		if p.Name == "" && p.First == 0 {
			p.First, p.Last = 1, 65535
		}
		ports = append(ports, p)
	}
	r.Ports = ports
	return r
}

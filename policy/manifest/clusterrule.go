// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"github.com/weftnet/weft/policy"
)

// clusterRule reads one rule of a ClusterNetworkPolicy.
type clusterRule struct {
	*reader
	peers   string // name of that field
	egress  bool
	accepts bool
	left    int  // problems that are dealt with, by leaving a peer out
	named   bool // there are ports by name
	wide    bool // there are peers that are no endpoints
}

// open is how many problems there are but for those that are dealt with.
func (c *clusterRule) open() int { return c.count - c.left }

// read reads a rule that never allows what was not meant to be. In a doubtful policy that is none but those that deny.
func (c *clusterRule) read(path string, v value, doubtful bool) policy.Rule {
	told, since := len(c.problems), c.open()
	c.only(path, v, "name", "action", c.peers, "protocols")
	rule := policy.Rule{Name: c.text(at(path, "name"), v.get("name"))}
	if c.exact && len(rule.Name) > maxRuleName {
		c.fault(at(path, "name"), v.get("name"), "it is longer than %d bytes", maxRuleName)
	}
	whole := c.open() == since // but for peers and protocols
	var known bool
	rule.Action, known = c.action(at(path, "action"), v.get("action"))
	c.accepts = known && rule.Action == policy.Accept

	before := c.open()
	c.readPeers(&rule, at(path, c.peers), v.get(c.peers))
	if !whole || c.open() > before {
		rule.AnyPeer, rule.Peers = true, nil
	}
	before = c.open()
	c.readPorts(&rule, at(path, "protocols"), v.get("protocols"))
	if !whole || c.open() > before {
		rule.AnyPort, rule.Ports = true, nil
	}

	bad := c.open() > since
	switch {
	case c.accepts && (bad || doubtful || !rule.AnyPeer && len(rule.Peers) == 0):
		c.instead(told, "until that is mended the rule accepts nothing")
		return policy.Rule{Name: rule.Name, Action: policy.Accept, Disabled: true}
	case bad:
		c.instead(told, "until that is mended the rule denies"+without(rule))
		rule.Action = policy.Deny
	case doubtful && rule.Action == policy.Pass:
		rule.Action = policy.Deny
	}
	return rule
}

// without says whom and what a rule fits, if that is all.
func without(rule policy.Rule) (s string) {
	if rule.AnyPeer {
		s += ", whoever it is"
	}
	if rule.AnyPort {
		s += ", whatever the port"
	}
	return s
}

// action reads what a rule does. One that is not known denies.
func (c *clusterRule) action(path string, v value) (a policy.Action, known bool) {
	switch v.scalar {
	case "Accept":
		return policy.Accept, true
	case "Deny":
		return policy.Deny, true
	case "Pass":
		return policy.Pass, true
	}
	if v.kind == absent {
		c.fault(path, v, "it is missing; write Accept, Deny or Pass")
	} else if c.expect(path, v, text) {
		c.fault(path, v, "%s is no action that is known here; there are Accept, Deny and Pass", quote(v.scalar))
	}
	return policy.Deny, false
}

func (c *clusterRule) readPeers(rule *policy.Rule, path string, v value) {
	since := c.open()
	n := c.each(path, v, func(path string, v value) {
		rule.Peers = append(rule.Peers, c.peer(path, v)...)
	})
	if n == 0 && c.open() == since {
		c.fault(path, v, "there is nobody in it; for all pods write namespaces: {}, for all addresses networks")
	}
}

// peer reads one peer, which is several where it names several networks.
func (c *clusterRule) peer(path string, v value) []policy.Peer {
	forms := []string{"namespaces", "pods", "nodes", "networks", "domainNames"}
	if !c.egress {
		forms = forms[:2]
	}
	since := c.open()
	if !c.only(path, v, forms...) || c.open() > since {
		return nil
	}
	form, set := "", 0
	for _, f := range forms {
		if v.get(f).kind != absent {
			form = f
			set++
		}
	}
	if set > 1 {
		c.fault(path, v, "it says more than one of %s and others; make a peer of each", form)
		return nil
	}
	is := v.get(form)
	if form != "" {
		path = at(path, form)
	}
	switch form {
	case "namespaces":
		s := c.selector(path, is)
		return []policy.Peer{{Namespaces: &s}}
	case "pods":
		n, p := c.namespacedPods(path, is)
		return []policy.Peer{{Namespaces: n, Pods: p}}
	case "nodes":
		c.wide = true
		s := c.selector(path, is)
		return []policy.Peer{{Nodes: &s}}
	case "networks":
		return c.networks(path, is)
	case "domainNames":
		c.wide = true
		told := len(c.problems)
		c.fault(path, is, "names of domains are not supported; write networks")
		if c.accepts {
			c.left++
			c.instead(told, "until that is mended they are nobody's")
		}
		return nil
	}
	c.fault(path, v, "it says nobody; give it one of the fields that a peer has")
	return nil
}

func (c *clusterRule) networks(path string, v value) []policy.Peer {
	c.wide = true
	var peers []policy.Peer
	since := c.open()
	n := c.each(path, v, func(path string, v value) {
		p, _ := c.prefix(path, v)
		peers = append(peers, policy.Peer{Block: &policy.Block{Prefix: p}})
	})
	if n == 0 && c.open() == since {
		c.fault(path, v, "there is none in it")
	}
	return peers
}

func (c *clusterRule) readPorts(rule *policy.Rule, path string, v value) {
	since := c.open()
	n := c.each(path, v, func(path string, v value) {
		rule.Ports = append(rule.Ports, c.ports(path, v))
	})
	rule.AnyPort = n == 0
	switch {
	case n == 0 && v.kind == list && c.open() == since:
		c.fault(path, v, "there is none in it; leave it out for all protocols and ports")
	case c.named && c.wide:
		c.fault(path, v, "only pods give names to ports: nodes, networks and domainNames need numbers")
	}
}

func (c *clusterRule) ports(path string, v value) policy.Ports {
	forms := []string{"tcp", "udp", "sctp", "destinationNamedPort"}
	since := c.open()
	if !c.only(path, v, forms...) || c.open() > since {
		return policy.Ports{}
	}
	form, set := "", 0
	for _, f := range forms {
		if v.get(f).kind != absent {
			form = f
			set++
		}
	}
	is, p := v.get(form), policy.Ports{}
	switch {
	case set == 0:
		c.fault(path, v, "it says nothing; give it one of tcp, udp, sctp and destinationNamedPort")
		return p
	case set > 1:
		c.fault(path, v, "it says more than one of tcp, udp, sctp and destinationNamedPort; make an entry of each")
		return p
	}
	path = at(path, form)
	switch form {
	case "tcp":
		p.Protocol = policy.TCP
	case "udp":
		p.Protocol = policy.UDP
	case "sctp":
		p.Protocol = policy.SCTP
	default:
		c.named = true
		if p.Name = c.text(path, is); is.kind == text {
			if why := badPortName(p.Name); why != "" {
				c.fault(path, is, "%s", why)
			}
		}
		return p
	}
	if !c.only(path, is, "destinationPort") {
		return p
	}
	if port := is.get("destinationPort"); port.kind == absent {
		c.fault(path, is, "it has no destinationPort")
	} else {
		p.First, p.Last = c.destination(at(path, "destinationPort"), port)
	}
	return p
}

// destination reads a port or a range of ports.
func (c *clusterRule) destination(path string, v value) (first, last uint16) {
	c.only(path, v, "number", "range")
	one, several := v.get("number"), v.get("range")
	port := func(path string, v value) uint16 {
		if v.kind == absent {
			c.fault(path, v, "it is missing")
		}
		return uint16(c.integer(path, v, 1, 65535))
	}
	switch {
	case (one.kind == absent) == (several.kind == absent):
		c.fault(path, v, "give it either a number or a range")
	case one.kind != absent:
		first = port(at(path, "number"), one)
		last = first
	default:
		path = at(path, "range")
		if !c.only(path, several, "start", "end") {
			return 0, 0
		}
		first, last = port(at(path, "start"), several.get("start")), port(at(path, "end"), several.get("end"))
		if last != 0 && last < first {
			c.fault(at(path, "end"), several.get("end"), "%d is less than the start, %d", last, first)
		}
	}
	return first, last
}

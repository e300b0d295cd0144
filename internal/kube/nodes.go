// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/policy/manifest"
)

const (
	// AnnotationNodeID is where a node writes its NodeID into its Node object.
	AnnotationNodeID = "weftnet.dev/node-id"

	// maxPeers is how many addresses of other nodes a node is given to connect to, and maxAddresses how many of one of them.
	maxPeers     = 16
	maxAddresses = 4
	// maxNodeAddresses is how many addresses of a node policies can be about.
	maxNodeAddresses = 64

	conditionReady       = "Ready"
	conditionUnavailable = "NetworkUnavailable"
)

// A machine is what is kept of a Node object.
type machine struct {
	name      string
	uid       string
	labels    map[string]string
	nodeID    string       // of Weft; empty: not known
	addresses []netip.Addr // internal ones first, at most maxAddresses
	all       []netip.Addr // whatever they are for, at most maxNodeAddresses
	podCIDRs  []string
	ready     bool
	condition nodeCondition // NetworkUnavailable; zero: it has none
}

func trimNode(o *node) machine {
	m := machine{name: o.Name, uid: string(o.UID), nodeID: strings.Clone(o.Annotations[AnnotationNodeID]), podCIDRs: o.Spec.PodCIDRs}
	if len(o.Labels) > 0 {
		m.labels = manifest.Shared(o.Labels)
	}
	if len(m.podCIDRs) == 0 && o.Spec.PodCIDR != "" {
		m.podCIDRs = []string{o.Spec.PodCIDR}
	}
	for _, kind := range []string{"InternalIP", "ExternalIP"} {
		for _, a := range o.Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if a.Type == kind && err == nil && usable(ip) && !slices.Contains(m.addresses, ip) && len(m.addresses) < maxAddresses {
				m.addresses = append(m.addresses, ip)
			}
		}
	}
	for _, a := range o.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address) // fails for names
		if ip = ip.Unmap(); err == nil && (usable(ip) || ip.IsLinkLocalUnicast() && ip.Zone() == "") && !slices.Contains(m.all, ip) && len(m.all) < maxNodeAddresses {
			m.all = append(m.all, ip)
		}
	}
	for _, c := range o.Status.Conditions {
		switch c.Type {
		case conditionReady:
			m.ready = c.Status == "True"
		case conditionUnavailable:
			m.condition = c
		}
	}
	return m
}

// usable tells whether another host may be reached at an address.
func usable(a netip.Addr) bool {
	return a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

// choosePeers returns the addresses of other nodes to connect to, at most maxPeers, each node choosing others.
func choosePeers(self string, all map[string]machine) []string {
	return addressesOf(rivals(self, all, func(a, b machine) int { return 0 }))
}

// chooseDoors returns the addresses by which to join, at most maxPeers: those of the founder first, if it is another node, then those of nodes
// that are ready, as they have a mesh.
func chooseDoors(self, founder string, all map[string]machine) []string {
	return addressesOf(rivals(self, all, func(a, b machine) int {
		return cmp.Or(first(a.name == founder, b.name == founder), first(a.ready, b.ready))
	}))
}

// rivals are the other nodes, in the order in which self is drawn to them where order does not say another one.
func rivals(self string, all map[string]machine, order func(a, b machine) int) []machine {
	type rival struct {
		machine
		score uint64
	}
	drawn := make([]rival, 0, len(all))
	for name, m := range all {
		if name != self && len(m.addresses) > 0 {
			drawn = append(drawn, rival{m, score(self, name)})
		}
	}
	slices.SortFunc(drawn, func(a, b rival) int {
		return cmp.Or(order(a.machine, b.machine), cmp.Compare(b.score, a.score), cmp.Compare(a.name, b.name))
	})
	others := make([]machine, len(drawn))
	for i, d := range drawn {
		others[i] = d.machine
	}
	return others
}

func addressesOf(machines []machine) []string {
	var hosts []string
	for _, m := range machines {
		for _, a := range m.addresses {
			if host := a.String(); len(hosts) < maxPeers && !slices.Contains(hosts, host) {
				hosts = append(hosts, host)
			}
		}
	}
	return hosts
}

// first orders true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// score is how much one name is drawn to another: the same wherever it is computed, and without a pattern (rendezvous hashing).
func score(a, b string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(a + "\x00" + b))
	x := h.Sum64() // FNV's high bits hardly depend on the last letters: mixed as by MurmurHash3's finalizer
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// rank is how many of the others come before self where one of them is to attend to a matter.
func rank(self, matter string, others []string) int {
	mine, before := score(matter, self), 0
	for _, o := range others {
		if s := score(matter, o); o != self && (s > mine || s == mine && o < self) {
			before++
		}
	}
	return before
}

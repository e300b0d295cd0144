// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/policytest"
)

const (
	// randomPairs is how many connections are tried for each set of policies.
	randomPairs = 40
	// randomWorkloads is how many workloads there are, on three hosts.
	randomWorkloads = 8
)

// randomPorts are those that are served: those that the generators write into policies, and what is next to them.
func randomPorts() []uint16 {
	return []uint16{1, 2, 79, 80, 81, 442, 443, 444, 8079, 8080, 8081, 65534, 65535}
}

// chance is a world of random policies, workloads and connections on three hosts, and what the generators' addresses are on them.
type chance struct {
	*town
	t        *testing.T
	s        policytest.Source
	hosts    []*lab.Host
	nodes    []policy.Node
	ends     []policy.Endpoint
	homes    []*lab.Host               // of endpoints
	real     map[netip.Addr]netip.Addr // of the generators' addresses
	froms    map[netip.Addr]bool       // who may send
	universe policytest.Universe       // as it is in force
}

func newChance(t *testing.T, seed uint64) *chance {
	t.Helper()
	m, hosts := hostsOf(t, 3)
	c := &chance{town: newTown(), t: t, s: policytest.Seeded(seed), hosts: hosts, real: map[netip.Addr]netip.Addr{}, froms: map[netip.Addr]bool{}}
	for i, h := range hosts {
		own := ownAddrs(t, h)
		known := append(slices.Clone(own), h.Link().V4(), h.Link().V6())
		c.nodes = append(c.nodes, policy.Node{Name: h.Name(), Labels: map[string]string{"kubernetes.io/hostname": h.Name()}, Addrs: known})
		c.settle(t, h.Namespace, randomPorts(), known...)
		of := policytest.Node(c.s, fmt.Sprintf("n%d", i+1)).Addrs // its link, and the overlay's two
		c.real[of[0]] = h.Link().V4()
		for _, a := range own {
			c.froms[a] = true
			c.real[of[map[bool]int{true: 1, false: 2}[a.Is4()]]] = a
		}
	}
	outside := m.Host("outside", m.Segment)
	c.settle(t, outside.Namespace, randomPorts(), outside.Link().V4(), outside.Link().V6())
	c.real[netip.MustParseAddr("198.51.100.7")], c.real[netip.MustParseAddr("2001:db8::7")] = outside.Link().V4(), outside.Link().V6()
	for i := range randomWorkloads {
		c.attach(i)
	}
	for _, e := range c.ends { // until all know whom the policies will speak of
		labels := e.Labels
		if labels == nil {
			labels = map[string]string{}
		}
		labelled(t, hosts, e.Name, labels)
	}
	return c
}

// attach makes the i-th workload.
func (c *chance) attach(i int) {
	c.t.Helper()
	e := policytest.Endpoint(c.s, i)
	h := c.hosts[i%len(c.hosts)]
	args := []string{"--name", e.Name.Name, "--namespace", e.Namespace}
	for k, v := range e.Labels {
		args = append(args, "--label", k+"="+v)
	}
	var ports []policy.NamedPort
	for _, p := range e.Ports {
		if slices.ContainsFunc(ports, func(q policy.NamedPort) bool { return p.Name == q.Name }) {
			continue
		}
		ports = append(ports, p)
		args = append(args, "--port", fmt.Sprintf("%s=%d/%s", p.Name, p.Port, strings.ToLower(p.Protocol.String())))
	}
	w := h.Workload(e.Name.Name)
	w.Attach(args...)
	c.settle(c.t, w.Namespace, randomPorts(), w.Addrs()...)
	for _, a := range w.Addrs() {
		c.froms[a] = true
	}
	c.real[netip.AddrFrom4([4]byte{10, 32, 0, byte(i + 1)})] = w.V4
	c.real[netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x32, 15: byte(i + 1)})] = w.V6
	e.Name.Name += "@" + h.Name()
	e.ID, e.Node, e.Ports, e.Addrs = "", h.Name(), ports, w.Addrs()
	c.ends, c.homes = append(c.ends, e), append(c.homes, h)
}

// prefix moves one of the generators to the real addresses.
func (c *chance) prefix(p netip.Prefix) netip.Prefix {
	if p.Bits() == 0 {
		return p
	}
	for _, a := range slices.SortedFunc(maps.Keys(c.real), netip.Addr.Compare) {
		if p.Contains(a) {
			return netip.PrefixFrom(c.real[a], p.Bits()).Masked()
		}
	}
	return p
}

// policy returns the i-th random policy, as a manifest can say it of the real addresses.
func (c *chance) policy(i int) *policy.Policy {
	p := sayable(policytest.Policy(c.s, i))
	for d := range p.Rules {
		for i, r := range p.Rules[d] {
			r.Peers = slices.Clone(r.Peers)
			for j, peer := range r.Peers {
				if peer.Block == nil {
					continue
				}
				b := policy.Block{Prefix: c.prefix(peer.Block.Prefix)}
				for _, e := range peer.Block.Except {
					if e = c.prefix(e); e.Bits() > b.Prefix.Bits() && b.Prefix.Contains(e.Addr()) {
						b.Except = append(b.Except, e)
					}
				}
				r.Peers[j].Block = &b
			}
			p.Rules[d][i] = r
		}
	}
	return p
}

// turn changes labels and all policies, and waits until that is in force.
func (c *chance) turn() {
	c.t.Helper()
	i := c.s.IntN(len(c.ends))
	fresh := policytest.Endpoint(c.s, i).Labels
	short, _, _ := strings.Cut(c.ends[i].Name.Name, "@")
	args := []string{"label", short}
	for k := range c.ends[i].Labels {
		if _, stays := fresh[k]; !stays {
			args = append(args, k+"-")
		}
	}
	for k, v := range fresh {
		args = append(args, k+"="+v)
	}
	if len(args) > 2 {
		done(c.t, c.homes[i].Weft(args...))
		c.ends[i].Labels = fresh
		if fresh == nil {
			fresh = map[string]string{}
		}
		labelled(c.t, c.hosts, c.ends[i].Name, fresh)
	}

	u := policytest.Universe{Nodes: c.nodes, Endpoints: slices.Clone(c.ends)}
	var objects []keys
	var names []string
	for _, name := range []string{"default", "prod", "ghost"} {
		n := policytest.Namespace(c.s, name)
		u.Namespaces = append(u.Namespaces, n)
		objects = append(objects, namespaceManifest(name, n.Labels))
	}
	for i := range 1 + c.s.IntN(8) {
		p := c.policy(i)
		u.Policies = append(u.Policies, p)
		objects = append(objects, policyManifest(p))
		names = append(names, strings.TrimPrefix(p.Name.String(), "/"))
	}
	enact(c.t, c.hosts, manifests(c.t, objects...), names...)
	c.universe = u
}

// connection returns one that can be tried.
func (c *chance) connection() policy.Connection {
	for {
		k := c.universe.Connection(c.s)
		switch {
		case !c.froms[k.Src] || c.stations[k.Dst] == nil || c.stations[k.Src] == c.stations[k.Dst]:
		case c.homeOf(k.Src) == nil && c.homeOf(k.Dst) == nil:
		case k.Protocol.HasPorts() && !slices.Contains(randomPorts(), k.Port):
		default:
			return k
		}
	}
}

// homeOf returns the host of the endpoint that has the address, nil if none has.
func (c *chance) homeOf(a netip.Addr) *lab.Host {
	for i, e := range c.ends {
		if slices.Contains(e.Addrs, a) {
			return c.homes[i]
		}
	}
	return nil
}

// why holds what a host says of a connection against what is so.
func (c *chance) why(h *lab.Host, k policy.Connection, d policy.Decision) error {
	port := "icmp"
	if k.Protocol.HasPorts() {
		port = fmt.Sprintf("%d/%s", k.Port, strings.ToLower(k.Protocol.String()))
	}
	ctx, cancel := within()
	defer cancel()
	r, err := h.TryWeft(ctx, "policy", "why", k.Src.String(), k.Dst.String(), port, "--json")
	if err != nil {
		return err
	}
	var x whyAnswer
	if err := json.Unmarshal([]byte(r.Stdout), &x); err != nil || len(x.Connections) != 1 || r.Stderr != "" {
		return fmt.Errorf("exit code %d, %s%s: %w", r.Code, r.Stdout, r.Stderr, err)
	}
	got := x.Connections[0]
	if (r.Code == 0) != d.Allowed() || r.Code > 1 || x.Allowed != d.Allowed() || got.Egress.String() != verdictWords(d.Egress) || got.Ingress.String() != verdictWords(d.Ingress) {
		return fmt.Errorf("exit code %d, %v, egress %v, ingress %v; want egress %s, ingress %s",
			r.Code, x.Allowed, got.Egress, got.Ingress, verdictWords(d.Egress), verdictWords(d.Ingress))
	}
	return nil
}

// TestPoliciesAtRandom applies random policies to workloads of three hosts, with random labels, and makes random connections between them, their hosts and
// one outside of the mesh, of each family and protocol: what comes to be is what policy.World says, and so is what `weft policy why` does, and the policies that
// it names. With -soak it is 2,000 connections.
func TestPoliciesAtRandom(t *testing.T) {
	t.Parallel()
	rounds, seed := 4, rand.Uint64()
	if *soak {
		rounds = 50
	}
	t.Logf("seed %d", seed)
	c := newChance(t, seed)
	count := map[string]int{}
	for round := range rounds {
		c.turn()
		world := c.universe.World()
		tries := make([]expect, randomPairs)
		for i := range tries {
			k := c.connection()
			d := world.Judge(k)
			tries[i] = expect{k, d.Allowed()}
			count[fmt.Sprintf("%v of IPv%d, allowed %v", k.Protocol, map[bool]int{true: 4, false: 6}[k.Src.Is4()], d.Allowed())]++
		}
		err := c.all(tries)
		if err != nil {
			t.Errorf("round %d: %v\nthe policies are:\n%s", round, err, done(t, c.hosts[0].Weft("policy", "list", "-o", "yaml")))
		}
		var asking sync.WaitGroup
		for worker := range 4 {
			asking.Go(func() {
				for i := worker; i < len(tries); i += 4 {
					k := tries[i].Connection
					if err := c.why(c.hosts[(round+i)%len(c.hosts)], k, world.Judge(k)); err != nil {
						t.Errorf("round %d: weft policy why %v %v, %v %d: %v", round, k.Src, k.Dst, k.Protocol, k.Port, err)
					}
				}
			})
		}
		asking.Wait()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(count)) {
		t.Logf("%5d %s", count[what], what)
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// The workloads and policies of the benchmark of policies: each host has workloads in spaces namespaces, of apps applications each.
const (
	spaces     = 10
	apps       = 5
	firstPort  = 8000  // of those that the measured server may be reached by
	lastPort   = 8007  // each of which a rule names
	fromPort   = 32768 // and of those that the kernel chooses, which a rule has as a range
	toPort     = 60999
	closedPort = 9 // that no policy allows
	// What the measured workloads are, besides what all are.
	clientRole, serverRole = "client", "server"
	clientAt, serverAt     = 0, 11 // among the workloads of a host
	leastPolicies          = spaces + 2
)

// spot is where a workload is among the others of its host.
type spot int

func (s spot) space() string { return fmt.Sprint("ns", int(s)%spaces) }
func (s spot) app() string   { return fmt.Sprint("a", s.number()) }
func (s spot) number() int   { return int(s) / spaces % apps }
func (s spot) tier() int     { return s.number() % 2 }

// flags are those of `weft attach` for the workload.
func (s spot) flags() []string {
	out := []string{
		"--name", s.name(), "--namespace", s.space(), "--label", "app=" + s.app(), "--label", fmt.Sprint("tier=t", s.tier()),
		"--port", fmt.Sprintf("web=%d/tcp", 7000+s.tier()),
	}
	switch s {
	case clientAt:
		out = append(out, "--label", "role="+clientRole)
	case serverAt:
		out = append(out, "--label", "role="+serverRole)
	}
	return out
}

func (s spot) name() string { return fmt.Sprint("w", int(s)) }

// other is an application whose workloads have all other labels, and the named port, as this one.
func (s spot) other() string {
	if n := s.number(); n+2 < apps {
		return fmt.Sprint("a", n+2)
	}
	return fmt.Sprint("a", s.number()-2)
}

// shapes are what the rules of policies look like: what they say of a peer, and of ports. Numbers are of the policy, so that hardly two say the same.
func shapes() []func(j, space, app int) (rule string, egress bool) {
	const (
		pods   = `podSelector: {matchLabels: {app: a%d}}`
		inside = `namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ns%d}}`
	)
	return []func(int, int, int) (string, bool){
		func(j, _, app int) (string, bool) {
			return fmt.Sprintf(`from: [{`+pods+`}], ports: [{port: %d}]`, (app+j)%apps, 1000+j), false
		},
		func(j, space, _ int) (string, bool) {
			return fmt.Sprintf(`from: [{`+inside+`}], ports: [{port: %d}, {port: %d, protocol: UDP}]`, (space+j)%spaces, 1000+j, 2000+j), false
		},
		func(j, space, app int) (string, bool) {
			return fmt.Sprintf(`from: [{`+inside+`, `+pods+`}, {`+pods+`}], ports: [{port: web}, {port: %d}]`, (space+j)%spaces, (app+2*j)%apps, (app+j)%apps, 1000+j), false
		},
		func(j, space, app int) (string, bool) {
			return fmt.Sprintf(`from: [{ipBlock: {cidr: 172.%d.%d.0/24, except: [172.%d.%d.%d/28]}}], ports: [{port: %d, endPort: %d}]`,
				16+space, (apps*j+app)%256, 16+space, (apps*j+app)%256, 16*(j%16), 3000+j, 3100+j), false
		},
		func(j, space, app int) (string, bool) {
			return fmt.Sprintf(`to: [{`+inside+`, `+pods+`}], ports: [{port: %d}, {port: %d}]`, (space+j)%spaces, (app+j)%apps, 1000+j, 4000+j), true
		},
		func(j, space, app int) (string, bool) {
			return fmt.Sprintf(`to: [{ipBlock: {cidr: "2001:db8:%x:%x::/64"}}, {ipBlock: {cidr: 10.%d.0.0/16}}], ports: [{port: 443}, {port: %d, protocol: SCTP}]`,
				j, space*apps+app, 32+j%16, 5000+j), true
		},
		func(j, _, _ int) (string, bool) {
			return fmt.Sprintf(`from: [{podSelector: {matchExpressions: [{key: tier, operator: In, values: [t%d, t2]}, {key: role, operator: DoesNotExist}]}}], ports: [{port: %d}]`,
				j%2, 6000+j), false
		},
	}
}

// policyText returns n manifests, leastPolicies or more: one for each namespace that isolates all in it in both directions, two for the measured workloads, and of those that are left as
// many for each application of each namespace, in several shapes. What they allow concerns no connection that is measured.
func policyText(n int) string {
	var b strings.Builder
	policy := func(space int, name, spec string) {
		fmt.Fprintf(&b, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: ns%d}\nspec: {%s}\n", name, space, spec)
	}
	for space := range spaces {
		policy(space, "isolate", "podSelector: {}, policyTypes: [Ingress, Egress]")
	}
	var ports []string
	for p := firstPort; p <= lastPort; p++ {
		ports = append(ports, fmt.Sprintf("{port: %d}", p))
	}
	ports = append(ports, fmt.Sprintf("{port: %d, endPort: %d}", fromPort, toPort), "{protocol: UDP}")
	measured := func(at, peer spot, own, other, direction, word string) {
		policy(int(at)%spaces, "measured", fmt.Sprintf(
			"podSelector: {matchLabels: {role: %s}}, policyTypes: [%s], %s: [{%s: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}, podSelector: {matchLabels: {role: %s}}}], ports: [%s]}]",
			own, direction, strings.ToLower(direction), word, peer.space(), other, strings.Join(ports, ", ")))
	}
	measured(clientAt, serverAt, clientRole, serverRole, "Egress", "to")
	measured(serverAt, clientAt, serverRole, clientRole, "Ingress", "from")
	all := shapes()
	for k := range n - leastPolicies {
		space, app, j := k%spaces, k/spaces%apps, k/(spaces*apps)
		rule, egress := all[(j+app)%len(all)](j, space, app)
		direction, word := "Ingress", "ingress"
		if egress {
			direction, word = "Egress", "egress"
		}
		policy(space, fmt.Sprint("p", k), fmt.Sprintf("podSelector: {matchLabels: {app: a%d}}, policyTypes: [%s], %s: [{%s}]", app, direction, word, rule))
	}
	return b.String()
}

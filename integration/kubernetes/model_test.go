// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// solo is a Service of one pod alone, which tells who asks it.
const solo = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: solo}
spec:
  replicas: 1
  selector: {matchLabels: {app: solo}}
  template:
    metadata: {labels: {app: solo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: ` + Agnhost + `
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: solo}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: solo}, ports: [{port: 80, targetPort: 8080}]}
`

// TestModel tries what Kubernetes wants of a network, and what kube-proxy makes of it, by each of its modes and both families: who reaches whom, and
// as whom they are seen.
func TestModel(t *testing.T) {
	for _, way := range []struct {
		name    string
		options []Option
	}{
		{"nftables", nil},
		{"iptables", []Option{Proxy("iptables")}},
		{"dual", []Option{DualStack}},
		{"dual iptables", []Option{DualStack, Proxy("iptables")}},
	} {
		t.Run(way.name, func(t *testing.T) {
			c := New(t, 2, way.options...)
			c.Install()
			c.WaitReady(time.Minute)
			c.WaitRollout(time.Minute)
			c.Apply(coreDNS())
			c.RunWeb()
			c.Apply(solo)
			c.Kubectl("rollout", "status", "deploy/solo", "--timeout=120s")
			c.Kubectl("-n", "kube-system", "rollout", "status", "deploy/coredns", "--timeout=120s")
			m := model{t, c, c.Pods("app=web"), c.Pods("app=solo")[0]}
			m.proxied("solo", "web", "local")
			m.podToPod()
			m.nodeToPod()
			m.services()
			m.hairpin()
			m.outside()
			m.names()
			if families := len(m.pods[0].Addresses); families != 1 && !c.dual || families != 2 && c.dual {
				t.Errorf("pods have %d addresses: %v", families, m.pods[0].Addresses)
			}
			t.Logf("pods have the addresses %v, Service solo %v", m.pods[0].Addresses, m.clusterIPs("solo"))
		})
	}
}

// model is a cluster with the pods of Web and solo.
type model struct {
	t    *testing.T
	c    *Cluster
	pods []*Pod
	solo *Pod
}

// from runs something in a network namespace.
type from interface{ Do(fn func() error) error }

// seen has somebody ask who it is seen as, and expects one of the addresses, or any if there are none.
func (m model) seen(what string, who from, at netip.AddrPort, as ...netip.Addr) {
	m.t.Helper()
	var answer string
	err := who.Do(func() (err error) {
		answer, err = fetch("http://" + at.String() + "/clientip")
		return err
	})
	if err != nil {
		m.t.Errorf("%s (%v): %v", what, at, err)
		return
	}
	source, err := netip.ParseAddrPort(answer)
	if err != nil {
		m.t.Errorf("%s (%v): %q: %v", what, at, answer, err)
		return
	}
	if a := source.Addr().Unmap(); len(as) > 0 && !slices.Contains(as, a) {
		m.t.Errorf("%s (%v) is seen as %v, want %v", what, at, a, as)
	}
}

// nodeAddresses are a node's, of each family of the cluster.
func (m model) nodeAddresses(n *Node) []netip.Addr {
	if m.c.dual {
		return []netip.Addr{n.Link().V4(), n.Link().V6()}
	}
	return []netip.Addr{n.Link().V4()}
}

func (m model) clusterIPs(service string) (ips []netip.Addr) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.c.Kubectl("get", "svc", service, "-o", "jsonpath={.spec.clusterIPs}")), &ips); err != nil {
		m.t.Fatal(err)
	}
	return ips
}

// proxied waits until kube-proxy on each node knows the endpoints of the Services: it hears of each family by itself, after the pods are ready.
func (m model) proxied(services ...string) {
	m.t.Helper()
	for _, service := range services {
		for _, ip := range m.clusterIPs(service) {
			for _, n := range m.c.Nodes {
				m.c.Wait(within, fmt.Sprintf("%s reaches Service %s at %v", n.Name(), service, ip), func() error {
					return n.Do(func() error { return get("http://" + netip.AddrPortFrom(ip, 80).String() + "/hostname") })
				})
			}
		}
	}
}

// podToPod: every pod is seen by the address that it has, on its own node and from others.
func (m model) podToPod() {
	for _, a := range m.pods {
		for _, b := range m.pods {
			for _, to := range b.Addresses {
				m.seen(a.Name+" on "+a.Node.Name()+" -> pod on "+b.Node.Name(), a, netip.AddrPortFrom(to, 8080), a.Addresses...)
			}
		}
	}
}

// nodeToPod: what runs on a node reaches the pods there and elsewhere, and pods reach what runs in nodes' networks.
func (m model) nodeToPod() {
	for _, n := range m.c.Nodes {
		for _, p := range m.pods {
			for _, to := range p.Addresses {
				m.seen(n.Name()+" -> pod on "+p.Node.Name(), n, netip.AddrPortFrom(to, 8080))
			}
			for _, to := range m.nodeAddresses(n) {
				own := p.Addresses
				if p.Node != n {
					own = nil // what leaves the mesh for another machine has its node's address
				}
				m.seen(p.Name+" on "+p.Node.Name()+" -> "+n.Name(), p, netip.AddrPortFrom(to, 8082), own...)
			}
		}
	}
}

// services: pods keep their addresses on the way through a Service, and nodes reach them, too.
func (m model) services() {
	for _, to := range m.clusterIPs("solo") {
		for _, p := range m.pods {
			m.seen(p.Name+" on "+p.Node.Name()+" -> Service", p, netip.AddrPortFrom(to, 80), p.Addresses...)
		}
		for _, n := range m.c.Nodes {
			m.seen(n.Name()+" -> Service", n, netip.AddrPortFrom(to, 80))
		}
	}
	for _, n := range m.c.Nodes {
		for _, to := range m.nodeAddresses(n) {
			for _, p := range m.pods {
				m.seen(p.Name+" on "+p.Node.Name()+" -> NodePort of "+n.Name(), p, netip.AddrPortFrom(to, 30080))
			}
		}
	}
}

// hairpin: a pod reaches itself by its own Service.
func (m model) hairpin() {
	for _, to := range m.clusterIPs("solo") {
		m.seen("solo -> its own Service", m.solo, netip.AddrPortFrom(to, 80))
	}
	for _, to := range m.solo.Addresses {
		m.seen("solo -> its own address", m.solo, netip.AddrPortFrom(to, 8080), m.solo.Addresses...)
	}
}

// outside: a machine beside the nodes reaches ports of theirs, and is seen as who it is where the pod is on that node.
func (m model) outside() {
	client := m.c.Client
	own := []netip.Addr{client.Link().V4(), client.Link().V6()}
	for _, n := range m.c.Nodes {
		for _, to := range m.nodeAddresses(n) {
			m.seen("outside -> NodePort of "+n.Name(), client, netip.AddrPortFrom(to, 30080))
			m.seen("outside -> externalTrafficPolicy: Local of "+n.Name(), client, netip.AddrPortFrom(to, 30081), own...)
			m.seen("outside -> hostPort of "+n.Name(), client, netip.AddrPortFrom(to, 8088), own...)
		}
	}
	for _, p := range m.pods {
		for _, n := range m.c.Nodes {
			for _, to := range m.nodeAddresses(n) {
				m.seen(p.Name+" on "+p.Node.Name()+" -> hostPort of "+n.Name(), p, netip.AddrPortFrom(to, 8088))
			}
		}
	}
}

// names: pods resolve names by UDP and TCP, and reach who they are.
func (m model) names() {
	m.t.Helper()
	const name = "solo.default.svc.cluster.local"
	commands := [][]string{{"curl", "-sS", "-f", "-m", "5", "-4", "http://solo/hostname"}, {"dig", "+tcp", "+short", "+tries=1", "+time=5", name}, {"dig", "+short", "+tries=1", "+time=5", name}}
	if m.c.dual {
		commands = append(commands, []string{"curl", "-sS", "-f", "-m", "5", "-6", "http://solo/hostname"}, []string{"dig", "+short", "+tries=1", "+time=5", name, "AAAA"})
	}
	for _, p := range m.pods {
		for _, command := range commands {
			out, err := p.Exec(command...)
			want := m.solo.Name
			if command[0] == "dig" {
				want = m.clusterIPs("solo")[0].String()
				if slices.Contains(command, "AAAA") {
					want = m.clusterIPs("solo")[1].String()
				}
			}
			if err != nil || strings.TrimSpace(out) != want {
				m.t.Errorf("%s on %s: %s: %q (%v), want %s", p.Name, p.Node.Name(), strings.Join(command, " "), out, err, want)
			}
		}
	}
	if _, err := m.pods[0].Exec("dig", "+tries=1", "+time=5", fmt.Sprintf("@%s", dnsService), name); err != nil {
		m.t.Errorf("asking %s: %v", dnsService, err)
	}
}

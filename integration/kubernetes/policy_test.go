// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clients is a DaemonSet of pods that do nothing, and are there to be asked from.
const clients = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: ` + Agnhost + `, args: [pause]}]
`

// closedWeb lets nobody connect to the pods of Web.
const closedWeb = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: default}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
`

// silent lets the pods of the namespace closed connect to nobody.
const silent = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: silent, namespace: closed}
spec: {podSelector: {}, policyTypes: [Egress]}
`

// clusterPolicies is a definition of ClusterNetworkPolicy that lets everything through, as one of a newer version would what is new in it.
const clusterPolicies = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: clusternetworkpolicies.policy.networking.k8s.io
  annotations: {api-approved.kubernetes.io: "https://github.com/kubernetes-sigs/network-policy-api/pull/347"}
spec:
  group: policy.networking.k8s.io
  names: {kind: ClusterNetworkPolicy, plural: clusternetworkpolicies, singular: clusternetworkpolicy, listKind: ClusterNetworkPolicyList}
  scope: Cluster
  versions:
  - name: v1alpha2
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// TestUpstreamPolicies runs Kubernetes' own tests of NetworkPolicy, but for SCTP.
func TestUpstreamPolicies(t *testing.T) {
	c := New(t, 3)
	c.Install()
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	c.upstream(t, "--ginkgo.label-filter=Feature: containsAny NetworkPolicy", "--ginkgo.focus="+*netpol, "--ginkgo.skip=SCTP")
}

// within has it be true soon that policies are in force: changes in the API are quick, but those who tell of them may be busy.
const within = 15 * time.Second

// TestPolicies looks at policies where nothing else does: while daemons are replaced and killed, as a pod starts, and by an object that is not understood.
func TestPolicies(t *testing.T) {
	c := New(t, 3)
	c.Install()
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	c.RunWeb()
	c.Apply(clients)
	c.Kubectl("rollout", "status", "ds/client", "--timeout=120s")
	t.Run("restart", func(t *testing.T) { testPolicyRestart(t, c) })
	t.Run("first packet", func(t *testing.T) { testFirstPacket(t, c) })
	t.Run("cluster policy", func(t *testing.T) { testClusterPolicy(t, c) })
}

// testPolicyRestart replaces all daemons, and kills them, under attempts that a policy forbids: none arrives.
func testPolicyRestart(t *testing.T, c *Cluster) {
	var forbidden, allowed []*Attempts
	try := func(list *[]*Attempts, name string, from Namespace, to *Pod) {
		a, err := NewAttempts(name, from, to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Stop)
		*list = append(*list, a)
	}
	pods := c.Pods("app=web")
	for _, to := range pods {
		for _, from := range c.Pods("app=client") {
			try(&forbidden, from.Node.name+"'s pod -> "+to.Node.name+"'s pod", from, to)
		}
		for _, n := range c.Nodes {
			if n != to.Node {
				try(&forbidden, n.name+" -> "+to.Node.name+"'s pod", n, to)
			}
		}
		try(&allowed, to.Node.name+" -> its pod", to.Node, to)
	}
	count := func(list []*Attempts) (sent, arrived int64, which []string) {
		for _, a := range list {
			s, n := a.Count()
			sent, arrived = sent+s, arrived+n
			if n > 0 {
				which = append(which, fmt.Sprintf("%s: %d of %d", a.Name, n, s))
			}
		}
		return sent, arrived, which
	}
	wait := func(what string, good func(open, silent int) bool) time.Duration {
		return c.Wait(within, what, func() error {
			count(forbidden)
			time.Sleep(500 * time.Millisecond)
			if _, _, which := count(forbidden); !good(len(which), len(forbidden)-len(which)) {
				return fmt.Errorf("%d of %d arrive: %q", len(which), len(forbidden), which)
			}
			return nil
		})
	}
	wait("everybody reaches everybody without a policy", func(_, silent int) bool { return silent == 0 })
	c.Apply(closedWeb)
	wait("nobody reaches the pods that a policy closes", func(open, _ int) bool { return open == 0 })
	count(allowed)
	for _, round := range []struct {
		name string
		do   func()
	}{
		{"rollout restart", func() {
			c.Kubectl("-n", "kube-system", "rollout", "restart", "ds/weft")
			c.WaitRollout(3 * time.Minute)
		}},
		{"kill -9 of all daemons", func() {
			var killed []int
			for _, n := range c.Nodes {
				for _, pid := range daemons(n) {
					_ = unix.Kill(pid, unix.SIGKILL) // it may be gone
					killed = append(killed, pid)
				}
			}
			c.waitAnew(killed) // the DaemonSet hears of it later only
			c.WaitRollout(3 * time.Minute)
			time.Sleep(2 * time.Second)
		}},
	} {
		count(forbidden)
		start := time.Now()
		round.do()
		sent, arrived, which := count(forbidden)
		t.Logf("%s: %d forbidden attempts in %v, %d arrived", round.name, sent, time.Since(start).Round(time.Second), arrived)
		if arrived > 0 || sent < 100 {
			t.Errorf("%s: %d of %d forbidden attempts arrived: %q", round.name, arrived, sent, which)
		}
		if _, _, which := count(allowed); len(which) != len(allowed) {
			t.Errorf("%s: from their own nodes pods are reached by %q alone, of %d", round.name, which, len(allowed))
		}
	}
	c.Kubectl("delete", "netpol", "closed")
	wait("everybody reaches everybody when the policy is gone", func(_, silent int) bool { return silent == 0 })
}

// testFirstPacket has pods send as the very first thing they do: nothing arrives from those that may not.
func testFirstPacket(t *testing.T, c *Cluster) {
	to := c.Pods("app=client")[0]
	a, err := NewAttempts("none", nil, to) // the pods are who tries
	if err != nil {
		t.Fatal(err)
	}
	defer a.Stop()
	const each = 12
	hasty := func(namespace string) {
		c.Apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: hasty, namespace: %s}
spec:
  replicas: %d
  selector: {matchLabels: {app: hasty}}
  template:
    metadata: {labels: {app: hasty}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: %s
        command: [bash, -c, "for i in {1..200}; do echo x >/dev/udp/%s/%d; done; sleep 1000"]
`, namespace, each, Agnhost, to.V4(), a.Port()))
		c.Kubectl("-n", namespace, "rollout", "status", "deploy/hasty", "--timeout=180s")
		time.Sleep(time.Second)
	}
	for _, ns := range []string{"open", "closed"} {
		c.Kubectl("create", "namespace", ns)
		defer c.Kubectl("delete", "namespace", ns, "--wait=false")
	}
	c.Apply(silent)
	hasty("closed")
	if _, n := a.Count(); n != 0 {
		t.Errorf("%d datagrams arrived from pods that start with a policy that denies them", n)
	}
	hasty("open")
	_, n := a.Count()
	t.Logf("%d pods that may not send sent none; as many that may, %d datagrams", each, n)
	if n < each {
		t.Errorf("%d datagrams arrived from %d pods that may send, want one of each at least", n, each)
	}
}

// testClusterPolicy installs ClusterNetworkPolicy, denies by one, has one that is not understood, and removes it all.
func testClusterPolicy(t *testing.T, c *Cluster) {
	web, client := c.Pods("app=web")[0], c.Pods("app=client")[1]
	url := "http://" + web.V4().String() + ":8080/hostname"
	reaches := func() error { return client.Do(func() error { return get(url) }) }
	becomes := func(what string, want bool, patience time.Duration) {
		t.Helper()
		took := c.Wait(patience, what, func() error {
			if err := reaches(); (err == nil) != want {
				return fmt.Errorf("%s: %w", url, errors.Join(err, errors.New("it is not so")))
			}
			return nil
		})
		t.Logf("%s after %v", what, took.Round(100*time.Millisecond))
	}
	becomes("it is reached", true, within)
	c.Apply(clusterPolicies)
	c.Kubectl("wait", "--for=condition=Established", "crd/clusternetworkpolicies.policy.networking.k8s.io", "--timeout=30s")
	rules := func(unknown string) string {
		return fmt.Sprintf(`
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
  ingress:
  - {name: clients, action: Accept%s, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}}]}
  - {name: nobody, action: Deny, from: [{namespaces: {}}]}
`, unknown)
	}
	c.Apply(strings.Replace(rules(""), "action: Accept", "action: Deny", 1))
	becomes("an Admin rule denies", false, 90*time.Second) // the definition is looked for once a minute
	c.Apply(rules(""))
	becomes("an Admin rule accepts", true, within)
	c.Apply(rules(", moonPhase: full"))
	becomes("an Accept rule that is not understood accepts nobody", false, within)
	c.Wait(within, "an Event tells what is not understood", func() error {
		out, err := c.TryKubectl("get", "events", "-A", "--field-selector=reason=NotUnderstood", "-o", "jsonpath={.items[*].message}")
		if err == nil && !strings.Contains(out, "moonPhase") {
			err = fmt.Errorf("the Events are %q", out)
		}
		return err
	})
	for _, n := range c.Nodes {
		c.Wait(90*time.Second, "weft status on "+n.name+" tells what is not understood", func() error {
			out, err := n.TryWeft("status")
			if err == nil && !strings.Contains(out, "moonPhase") {
				err = errors.New(out)
			}
			return err
		})
	}
	c.Kubectl("delete", "crd", "clusternetworkpolicies.policy.networking.k8s.io")
	becomes("nothing is denied when the definition is gone", true, 90*time.Second)
}

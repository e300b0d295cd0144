// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Agnhost is the image of the tests' pods.
const Agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.59"

// A Pod is one that runs.
type Pod struct {
	Namespace, Name string
	Node            *Node
	Addresses       []netip.Addr

	cluster *Cluster
	network *os.File // its network namespace, once it was asked for
}

// Web is a DaemonSet of pods that serve HTTP on port 8080, the nodes' port 8088 too, behind a Service with a port on all nodes, and one of pods in the
// nodes' network on port 8082.
const Web = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      tolerations: [{operator: Exists}]
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: ` + Agnhost + `
        args: [netexec, --http-port=8080]
        ports: [{containerPort: 8080, hostPort: 8088}]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: host}
spec:
  selector: {matchLabels: {app: host}}
  template:
    metadata: {labels: {app: host}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: ` + Agnhost + `, args: [netexec, --http-port=8082, --udp-port=-1]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
`

// RunWeb makes the pods of Web in the namespace default and waits for them.
func (c *Cluster) RunWeb() {
	c.tb.Helper()
	c.Apply(Web)
	for _, ds := range []string{"web", "host"} {
		c.Kubectl("rollout", "status", "ds/"+ds, "--timeout=120s")
	}
}

// Pods returns the running pods with a label, in the order of nodes' and their own names.
func (c *Cluster) Pods(label string) []*Pod {
	c.tb.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Namespace, Name, DeletionTimestamp string }
			Spec     struct{ NodeName string }
			Status   struct {
				Phase  string
				PodIPs []struct{ IP netip.Addr }
			}
		}
	}
	c.must(json.Unmarshal([]byte(c.Kubectl("get", "pods", "-A", "-l", label, "-o", "json")), &list))
	pods := []*Pod{}
	for _, i := range list.Items {
		if i.Status.Phase != "Running" || i.Metadata.DeletionTimestamp != "" {
			continue
		}
		p := &Pod{Namespace: i.Metadata.Namespace, Name: i.Metadata.Name, cluster: c}
		for _, n := range c.Nodes {
			if n.name == i.Spec.NodeName {
				p.Node = n
			}
		}
		for _, a := range i.Status.PodIPs {
			p.Addresses = append(p.Addresses, a.IP)
		}
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b *Pod) int { return strings.Compare(a.Node.name+a.Name, b.Node.name+b.Name) })
	return pods
}

// V4 returns the pod's first address.
func (p *Pod) V4() netip.Addr { return p.Addresses[0] }

// Exec runs a program in the pod's container and returns what it printed.
func (p *Pod) Exec(args ...string) (string, error) {
	return p.cluster.TryKubectl(append([]string{"-n", p.Namespace, "exec", p.Name, "--"}, args...)...)
}

// Do runs fn on a thread inside the pod's network namespace: sockets that it makes stay there.
func (p *Pod) Do(fn func() error) error {
	if p.network == nil {
		f, err := p.findNetwork()
		if err != nil {
			return err
		}
		p.network = f
		p.cluster.tb.Cleanup(func() { _ = f.Close() })
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			done <- fmt.Errorf("the main thread cannot be in another namespace")
			return
		}
		if err := unix.Setns(int(p.network.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering the network of pod %s: %w", p.Name, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// findNetwork opens the network namespace of the pod, whose processes the node has a cgroup for by its UID.
func (p *Pod) findNetwork() (*os.File, error) {
	uid, err := p.cluster.TryKubectl("-n", p.Namespace, "get", "pod", p.Name, "-o", "jsonpath={.metadata.uid}")
	if err != nil {
		return nil, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	for _, f := range processes {
		text, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(text), uid) {
			return os.Open(filepath.Join(filepath.Dir(f), "ns", "net"))
		}
	}
	return nil, fmt.Errorf("pod %s has no process", p.Name)
}

// Fetch has curl in the pod fetch every URL, and returns those that gave no answer within five seconds.
func (p *Pod) Fetch(urls ...string) (failed []string) {
	const script = `for u in "$@"; do curl -sS -g -k -f -m 5 -o /dev/null "$u" 2>/dev/null || echo "$u"; done`
	out, err := p.Exec(append([]string{"sh", "-c", script, "fetch"}, urls...)...)
	if err != nil {
		return []string{err.Error()}
	}
	return strings.Fields(out)
}

// Smoke makes the pods of Web and has all of them reach everything: pods and nodes, Services, ports of nodes, the API server, DNS names not among
// them. It returns what did not answer, and takes the pods away.
func (c *Cluster) Smoke() (failed []string) {
	c.tb.Helper()
	c.RunWeb()
	defer func() {
		c.Kubectl("delete", "ds/web", "ds/host", "svc/web", "svc/local")
		// A kubelet that could not reach the API server for minutes asks it again after one only.
		c.Wait(2*time.Minute, "the pods are gone", func() error {
			out, err := c.TryKubectl("get", "pods", "-l", "app in (web, host)", "-o", "name")
			if err == nil && out != "" {
				err = fmt.Errorf("%s are there", strings.Fields(out))
			}
			return err
		})
	}()
	urls, outside := []string{"https://" + apiService + "/readyz"}, []string{}
	http := func(a netip.Addr, port uint16) string {
		return "http://" + netip.AddrPortFrom(a, port).String() + "/hostname"
	}
	pods := c.Pods("app=web")
	for _, p := range pods {
		for _, a := range p.Addresses {
			urls = append(urls, http(a, 8080))
		}
	}
	for _, n := range c.Nodes {
		urls = append(urls, http(n.Link().V4(), 8082), http(n.Link().V4(), 30080))
		outside = append(outside, http(n.Link().V4(), 30080), http(n.Link().V4(), 30081), http(n.Link().V4(), 8088))
	}
	urls = append(urls, "http://"+c.Kubectl("get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}")+"/hostname")
	for _, p := range slices.Concat(pods, c.Pods("app=host")) {
		for _, u := range p.Fetch(urls...) {
			failed = append(failed, fmt.Sprintf("%s on %s -> %s", p.Name, p.Node.name, u))
		}
		if out, err := c.TryKubectl("logs", p.Name); err != nil || out == "" {
			failed = append(failed, fmt.Sprintf("the log of %s is %q: %v", p.Name, out, err))
		}
	}
	for _, u := range outside {
		if err := c.Client.Do(func() error { return get(u) }); err != nil {
			failed = append(failed, fmt.Sprintf("outside -> %s: %v", u, err))
		}
	}
	return failed
}

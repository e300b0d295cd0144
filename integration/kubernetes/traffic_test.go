// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestRollingUpdate replaces all daemons under connections between all nodes, encrypted and by kernel paths: none breaks.
func TestRollingUpdate(t *testing.T) {
	c := New(t, 3)
	trusted := "--trusted-subnets=" + netip.PrefixFrom(c.Nodes[0].Link().V4(), 24).Masked().String()
	for _, way := range []struct {
		name  string
		flags []string
		gap   time.Duration
	}{{"udp", nil, time.Second}, {"kernel", []string{trusted}, 0}} {
		c.Install(way.flags...)
		c.WaitReady(time.Minute)
		c.WaitRollout(2 * time.Minute)
		c.RunWeb()
		time.Sleep(5 * time.Second) // kernel paths are proven first
		flows, err := Flows(c.Pods("app=web"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.Kubectl("-n", "kube-system", "rollout", "restart", "ds/weft")
		took := c.WaitRollout(3 * time.Minute)
		time.Sleep(2 * time.Second)
		worst, all := time.Duration(0), uint64(0)
		for _, f := range flows {
			gap, lost, err := f.Stop()
			worst, all = max(worst, gap), all+lost
			if err != nil {
				t.Errorf("%s: %s -> %s broke: %v", way.name, f.From.Node.Name(), f.To.Node.Name(), err)
			}
		}
		t.Logf("%s: the update of three nodes took %v; the longest gap of %d connections is %v, %d datagrams were lost", way.name,
			took.Round(time.Second), len(flows), worst.Round(time.Millisecond), all)
		if way.gap > 0 && worst > way.gap {
			t.Errorf("%s: the longest gap is %v, want %v", way.name, worst, way.gap)
		}
		if way.gap == 0 && all > 0 {
			t.Errorf("%s: %d datagrams were lost, want none", way.name, all)
		}
	}
}

// TestEncrypted looks at what pods' payload is on the network between the nodes, by default and where the network is trusted.
func TestEncrypted(t *testing.T) {
	c := New(t, 2)
	trusted := "--trusted-subnets=" + netip.PrefixFrom(c.Nodes[0].Link().V4(), 24).Masked().String()
	for _, way := range []struct {
		name  string
		flags []string
		want  lab.Openness
	}{{"by default", nil, lab.Sealed}, {"trusted", []string{trusted, "--paths=vxlan,udp"}, lab.Tunnelled}} {
		c.Install(way.flags...)
		c.WaitReady(time.Minute)
		c.WaitRollout(2 * time.Minute)
		c.RunWeb()
		time.Sleep(5 * time.Second) // kernel paths are proven first
		pods := c.Pods("app=web")
		capture := c.Lab.Capture(c.Nodes[0].Namespace, c.Nodes[0].Link().Device(), 0)
		seen := time.Now()
		marker := strings.Repeat("payload of a pod ", 20)
		out, err := pods[0].Exec("curl", "-sS", "-g", "-m", "5", "-G", "--data-urlencode", "msg="+marker, "http://"+pods[1].V4().String()+":8080/echo")
		if err != nil || !strings.Contains(out, marker) {
			t.Fatalf("%s: %v: %s", way.name, err, out)
		}
		time.Sleep(200 * time.Millisecond)
		capture.Stop()
		count := capture.Count([]byte("payload of a pod payload of a pod"))
		kinds := map[lab.Openness]int{}
		for _, x := range capture.Crossings(seen, time.Time{}, lab.Overlay(podsV4), 6783) {
			kinds[x.Openness]++
		}
		t.Logf("%s: the payload is in %d of %d frames; %v", way.name, count, len(capture.Frames()), kinds)
		if open := way.want == lab.Tunnelled; open != (count > 0) || kinds[way.want] == 0 || !open && (kinds[lab.Tunnelled] > 0 || kinds[lab.Bare] > 0) {
			t.Errorf("%s: the payload is in %d frames; %v, want %v", way.name, count, kinds, way.want)
		}
	}
}

// Lines of containerd's log: it begins to make a pod's sandbox, has made it, calls the plugins for it, has their answer.
var (
	sandbox = regexp.MustCompile(`time="([^"]+)" level=info msg="RunPodSandbox for (name:.*namespace:\\"default\\")( returns sandbox id)?`)
	adding  = regexp.MustCompile(`time="([^"]+)" level=debug msg="(begin cni setup|cni result: .*)" podsandboxid=([0-9a-f]+)`)
)

// started is a line of the kubelet's log: how long a pod took from when it was made in the API until it ran.
var started = regexp.MustCompile(`"Observed pod startup duration" pod="default/.* podStartE2EDuration="([^"]+)"`)

// TestScaling scales many pods up and down: nothing of them is left.
func TestScaling(t *testing.T) {
	c := New(t, 3)
	c.Install()
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	c.Apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 0
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: %s, args: [pause]}]
`, Agnhost))
	before := snapshots(t, c)
	for i := range *scalings {
		start := time.Now()
		c.Kubectl("scale", "deploy/many", fmt.Sprint("--replicas=", *scaled))
		c.Kubectl("rollout", "status", "deploy/many", "--timeout=5m")
		up := time.Since(start)
		addresses := map[string]bool{}
		for _, p := range c.Pods("app=many") {
			addresses[p.V4().String()] = true
		}
		if len(addresses) != *scaled {
			t.Errorf("%d pods have %d addresses", *scaled, len(addresses))
		}
		start = time.Now()
		c.Kubectl("scale", "deploy/many", "--replicas=0")
		c.Wait(5*time.Minute, "the pods are gone", func() error {
			out, err := c.TryKubectl("get", "pods", "-l", "app=many", "-o", "name")
			if err == nil && out != "" {
				err = fmt.Errorf("%d are there", strings.Count(out, "\n"))
			}
			return err
		})
		t.Logf("%d: %d pods up in %v, down in %v", i+1, *scaled, up.Round(time.Second), time.Since(start).Round(time.Second))
	}
	for i, n := range c.Nodes {
		c.Wait(10*time.Second, n.Name()+" has no workloads", func() error {
			if diff := difference(before[i], snapshot(t, n)); diff != "" {
				return fmt.Errorf("left:\n%s", diff)
			}
			return nil
		})
	}
	sandboxes, adds, starts := []time.Duration{}, []time.Duration{}, []time.Duration{}
	for _, n := range c.Nodes {
		starts = append(starts, startTimes(t, filepath.Join(c.logs, n.Name(), "kubelet.log"))...)
		s, a := sandboxTimes(t, filepath.Join(c.logs, n.Name(), "containerd.log"))
		sandboxes, adds = append(sandboxes, s...), append(adds, a...)
	}
	if len(sandboxes) != *scaled**scalings || len(adds) < len(sandboxes) || len(starts) != len(sandboxes) {
		t.Fatalf("containerd's logs tell of %d pods, %d of which got a network, the kubelets' of %d", len(sandboxes), len(adds), len(starts))
	}
	for what, times := range map[string][]time.Duration{
		"pods, from the API to running": starts, "sandboxes, of which CNI ADD is a part": sandboxes, "ADDs (loopback, weft, portmap)": adds,
	} {
		slices.Sort(times)
		t.Logf("%d %s: p50 %v, p99 %v, at most %v", len(times), what, times[len(times)/2].Round(time.Millisecond),
			times[len(times)*99/100].Round(time.Millisecond), times[len(times)-1].Round(time.Millisecond))
	}
}

// startTimes reads from the kubelet's log how long each pod took.
func startTimes(t *testing.T, file string) (starts []time.Duration) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range started.FindAllSubmatch(text, -1) {
		took, err := time.ParseDuration(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, took)
	}
	return starts
}

// sandboxTimes reads from containerd's log how long each pod's sandbox took, and how long the plugins in it.
func sandboxTimes(t *testing.T, file string) (sandboxes, adds []time.Duration) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begun := map[string]time.Time{}
	note := func(times *[]time.Duration, when, what string, done bool) {
		at, err := time.Parse(time.RFC3339Nano, when)
		if err != nil {
			t.Fatal(err)
		}
		if !done {
			begun[what] = at
		} else if b, ok := begun[what]; ok {
			*times = append(*times, at.Sub(b))
		}
	}
	for line := range strings.Lines(string(text)) {
		if m := sandbox.FindStringSubmatch(line); m != nil {
			note(&sandboxes, m[1], m[2], m[3] != "")
		}
		if m := adding.FindStringSubmatch(line); m != nil {
			note(&adds, m[1], m[3], m[2] != "begin cni setup")
		}
	}
	return sandboxes, adds
}

// TestUpstream runs Kubernetes' own tests of networks, those of conformance and the granular checks.
func TestUpstream(t *testing.T) {
	c := New(t, 3)
	c.Install()
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	c.Apply(coreDNS())
	c.Kubectl("-n", "kube-system", "rollout", "status", "deploy/coredns", "--timeout=120s")
	c.upstream(t, "--ginkgo.focus="+*focus, "--ginkgo.skip="+*skip)
}

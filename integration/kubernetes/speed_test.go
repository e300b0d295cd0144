// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// speedRounds is how often each network has its turn, and speedSeconds how long one is.
	speedRounds, speedSeconds = 5, 3
	// leastSpeed is how fast pods on VXLAN must be at least, relative to pods whose packets are routed as they are: what encapsulation
	// leaves by hand is 0.77, what encryption does 0.35.
	leastSpeed = 0.5
)

// TestSpeed has pods of two networks on the same nodes send to each other in turns: Weft's, by VXLAN as the nodes' network is trusted, and that of the CNI
// project's ptp and host-local plugins with routes between the nodes.
func TestSpeed(t *testing.T) {
	c := New(t, 2)
	c.Install("--trusted-subnets="+netip.PrefixFrom(c.Nodes[0].Link().V4(), 24).Masked().String(), "--paths=vxlan,udp")
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	c.runSpeed("weft")
	for i, n := range c.Nodes {
		other := 1 - i
		for _, p := range []string{"ptp", "host-local"} {
			n.Exec("cp", c.program(p), "/opt/cni/bin/"+p)
		}
		n.Exec("ip", "route", "add", fmt.Sprintf("10.201.%d.0/24", other), "via", c.Nodes[other].Address())
		n.Exec("sh", "-c", fmt.Sprintf(`echo '{"cniVersion":"1.0.0","name":"reference","plugins":[{"type":"ptp","mtu":1500,"ipam":{"type":"host-local",`+
			`"ranges":[[{"subnet":"10.201.%d.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}' >/etc/cni/net.d/new && mv /etc/cni/net.d/new /etc/cni/net.d/05-reference.conflist`, i))
	}
	time.Sleep(2 * time.Second) // the runtimes notice
	c.runSpeed("reference")
	speeds := map[string][]float64{}
	for range speedRounds {
		for _, name := range []string{"weft", "reference"} {
			pods := c.Pods("app=speed-" + name)
			if own := strings.HasPrefix(pods[1].V4().String(), "10.201."); own != (name == "reference") {
				t.Fatalf("a pod of %s has the address %v", name, pods[1].V4())
			}
			out, err := pods[0].Exec("iperf", "-c", pods[1].V4().String(), "-t", fmt.Sprint(speedSeconds), "-y", "C")
			if err != nil {
				t.Fatal(err)
			}
			fields := strings.Split(strings.TrimSpace(out), ",")
			bits, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				t.Fatalf("%v in %q", err, out)
			}
			speeds[name] = append(speeds[name], bits/1e9)
		}
	}
	path, err := c.Nodes[0].TryWeft("peers")
	if err != nil || !strings.Contains(path, "vxlan") {
		t.Errorf("the path is not vxlan: %v\n%s", err, path)
	}
	for _, s := range speeds {
		slices.Sort(s)
	}
	weft, reference := speeds["weft"][speedRounds/2], speeds["reference"][speedRounds/2]
	t.Logf("Gbit/s, in turns: weft by VXLAN %.1f, reference %.1f; medians %.1f and %.1f, %.2f of it", speeds["weft"], speeds["reference"], weft, reference, weft/reference)
	if weft < leastSpeed*reference {
		t.Errorf("VXLAN has %.2f of the reference's speed, want %.2f", weft/reference, leastSpeed)
	}
}

// runSpeed runs a pod on each node that takes what it is sent.
func (c *Cluster) runSpeed(name string) {
	c.tb.Helper()
	c.Apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: speed-%[1]s}
spec:
  selector: {matchLabels: {app: speed-%[1]s}}
  template:
    metadata: {labels: {app: speed-%[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: %[2]s, command: [iperf, -s]}]
`, name, Agnhost))
	c.Kubectl("rollout", "status", "ds/speed-"+name, "--timeout=120s")
}

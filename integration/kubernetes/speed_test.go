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
	// speedRounds is how often each network has its turn, and speedSeconds how long one is: short ones, and many, so that what else the machine
	// does meets all of them.
	speedRounds, speedSeconds = 30, 1
	// leastSpeed is how fast pods on Weft's VXLAN must be at least, relative to those of the reference network on VXLAN that was made by hand: as fast,
	// but for what such figures differ by from one time to the next.
	leastSpeed = 0.9
	// The MTU of pods whose packets go as they are, and of those whose packets go by VXLAN.
	bareMTU, vxlanMTU = 1500, 1450
)

// The networks whose pods TestSpeed compares.
const (
	weftNetwork   = "weft"      // Weft's, by VXLAN
	routedNetwork = "reference" // the reference network: the CNI project's ptp and host-local plugins, with routes between the nodes
	vxlanNetwork  = "vxlan"     // the same, with routes to the other node's address on a VXLAN device that was made by hand
)

// TestSpeed has pods send to each other, in turns: on two nodes those of Weft, by VXLAN as the nodes' network is trusted, and on two nodes that have
// nothing of Weft those of the reference network, as it is and with encapsulation.
func TestSpeed(t *testing.T) {
	c := New(t, 2)
	c.Kubectl("label", "node", "--all", "network="+weftNetwork)
	c.Install("--trusted-subnets="+netip.PrefixFrom(c.Nodes[0].Link().V4(), 24).Masked().String(), "--paths=vxlan,udp")
	c.Kubectl("-n", "kube-system", "patch", "ds", "weft", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"network":"`+weftNetwork+`"}}}}}`)
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	pair := [2]*Node{c.AddNode(), c.AddNode()}
	for _, n := range pair {
		c.Kubectl("label", "node", n.Name(), "network="+routedNetwork)
		for _, p := range []string{"ptp", "host-local"} {
			n.Exec("cp", c.program(p), "/opt/cni/bin/"+p)
		}
		// As the reference network has it: what leaves for others than pods and nodes has the node's address.
		n.Exec("sh", "-c", fmt.Sprintf(`echo 'table ip reference { chain postrouting { type nat hook postrouting priority srcnat; `+
			`ip saddr %[1]s ip daddr != { %[1]s, %[2]s } masquerade; }; }' | nft -f -`, speedSubnets, netip.PrefixFrom(n.Link().V4(), 24).Masked()))
	}
	c.runSpeed(weftNetwork, weftNetwork)
	c.reference(pair, routedNetwork, 10, bareMTU, [2]netip.Addr{pair[0].Link().V4(), pair[1].Link().V4()})
	c.runSpeed(routedNetwork, routedNetwork)
	hops := [2]netip.Addr{netip.MustParseAddr("10.202.0.1"), netip.MustParseAddr("10.202.0.2")}
	for i, n := range pair {
		n.VXLANByHand("vxlan78", 78, 4789, pair[1-i].Link().V4(), netip.PrefixFrom(hops[i], 24), vxlanMTU)
	}
	c.reference(pair, vxlanNetwork, 20, vxlanMTU, hops)
	c.runSpeed(vxlanNetwork, routedNetwork)

	networks, pods := []string{weftNetwork, routedNetwork, vxlanNetwork}, map[string][]*Pod{}
	for _, name := range networks {
		pods[name] = c.Pods("app=speed-" + name)
		mtu, err := pods[name][0].Exec("cat", "/sys/class/net/eth0/mtu")
		t.Logf("%s: %v on %s to %v on %s, MTU %s, %v", name, pods[name][0].V4(), pods[name][0].Node.Name(), pods[name][1].V4(), pods[name][1].Node.Name(), strings.TrimSpace(mtu), err)
		for i, p := range pods[name] {
			if want := referenceSubnet(map[string]int{routedNetwork: 10, vxlanNetwork: 20}[name] + i); (name != weftNetwork) != want.Contains(p.V4()) {
				t.Fatalf("a pod of %s has the address %v", name, p.V4())
			}
		}
	}
	speeds := map[string][]float64{}
	for round := range speedRounds {
		for i := range networks {
			name := networks[(round+i)%len(networks)]
			speeds[name] = append(speeds[name], speed(t, pods[name]))
		}
	}
	path, err := c.Nodes[0].TryWeft("peers")
	if err != nil || !strings.Contains(path, "vxlan") {
		t.Errorf("the path is not vxlan: %v\n%s", err, path)
	}
	for _, name := range networks {
		sorted := slices.Sorted(slices.Values(speeds[name]))
		t.Logf("%s: median %.1f Gbit/s; half of %d turns have %.1f to %.1f, all %.1f to %.1f", name, median(sorted), len(sorted),
			sorted[len(sorted)/4], sorted[len(sorted)*3/4], sorted[0], sorted[len(sorted)-1])
	}
	ratio := func(a, b string) float64 { return median(speeds[a]) / median(speeds[b]) }
	t.Logf("Weft by VXLAN has %.2f of the speed of the reference on VXLAN made by hand, and %.2f of the reference's as it is, of which that VXLAN leaves %.2f",
		ratio(weftNetwork, vxlanNetwork), ratio(weftNetwork, routedNetwork), ratio(vxlanNetwork, routedNetwork))
	if got := ratio(weftNetwork, vxlanNetwork); got < leastSpeed {
		t.Errorf("Weft by VXLAN has %.2f of the speed of the reference on VXLAN made by hand, want %.2f", got, leastSpeed)
	}
}

// speedSubnets are the addresses of the reference network's pods.
const speedSubnets = "10.201.0.0/16"

// referenceSubnet is a node's share of them.
func referenceSubnet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 201, byte(i), 0}), 24)
}

// reference has the pods that two nodes start from then on be on the reference network: on subnets with these numbers, the first node's and one more,
// by routes to the next hops, each of which is the named node's as the other one reaches it.
func (c *Cluster) reference(pair [2]*Node, name string, first, mtu int, hops [2]netip.Addr) {
	c.tb.Helper()
	for i, n := range pair {
		n.RouteByHand(referenceSubnet(first+1-i), hops[1-i])
		n.Exec("sh", "-c", fmt.Sprintf(`echo '{"cniVersion":"1.0.0","name":"%s","plugins":[{"type":"ptp","mtu":%d,"ipam":{"type":"host-local",`+
			`"ranges":[[{"subnet":"%v"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}' >/etc/cni/net.d/new && mv /etc/cni/net.d/new /etc/cni/net.d/10-reference.conflist`,
			name, mtu, referenceSubnet(first+i)))
	}
	time.Sleep(2 * time.Second) // the runtimes notice
	c.WaitReady(time.Minute, pair[:]...)
}

// runSpeed runs a pod on each node of a kind that takes what it is sent.
func (c *Cluster) runSpeed(name, nodes string) {
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
      nodeSelector: {network: %[3]s}
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: %[2]s, command: [iperf, -s]}]
`, name, Agnhost, nodes))
	c.Kubectl("rollout", "status", "ds/speed-"+name, "--timeout=120s")
}

// speed is how fast the first pod sends to the second by one TCP connection, in Gbit/s.
func speed(t *testing.T, pods []*Pod) float64 {
	t.Helper()
	out, err := pods[0].Exec("iperf", "-c", pods[1].V4().String(), "-t", fmt.Sprint(speedSeconds), "-y", "C")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Split(strings.TrimSpace(out), ",")
	bits, err := strconv.ParseFloat(fields[len(fields)-1], 64)
	if err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	return bits / 1e9
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

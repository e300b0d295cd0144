// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"net/netip"
	"testing"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// TestOwnNodeIsWhatItsInterfacesHave has a workload that may reach nothing but its own node, whose address in the cluster is that of a router before it.
func TestOwnNodeIsWhatItsInterfacesHave(t *testing.T) {
	c := compile.New("n1", compile.Limits{})
	d := newDirectory("n1", c.World(), c)
	pod, on, public, other := netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("192.168.0.2")
	c.SetNamespace(policy.Namespace{Name: "default", Labels: map[string]string{"kubernetes.io/metadata.name": "default"}})
	c.SetEndpoint(policy.Endpoint{Name: policy.Name{Namespace: "default", Name: "pod"}, Node: "n1", Addrs: []netip.Addr{pod}})
	c.SetPolicy(&policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "default", Name: "deny"}}, Tier: policy.Network,
		Pods: &policy.Selector{}, Isolates: [2]bool{policy.Egress: true},
	})
	d.tellNode("n1", &policy.Node{Name: "n1", Labels: map[string]string{"zone": "a"}, Addrs: []netip.Addr{on, public}})
	d.tellNode("n2", &policy.Node{Name: "n2", Addrs: []netip.Addr{other}})
	d.hosts = map[string][]netip.Addr{"n1": {on}}
	d.flushNodes()
	for _, want := range []struct {
		to      netip.Addr
		allowed bool
	}{{on, true}, {public, false}, {other, false}} {
		if got := c.World().Judge(policy.Connection{Src: pod, Dst: want.to, Protocol: policy.TCP, Port: 80}); got.Allowed() != want.allowed {
			t.Errorf("to %v: %+v", want.to, got)
		}
	}
	nodes := c.World().NodesAt(public)
	if len(nodes) != 1 || nodes[0].Labels["zone"] != "a" {
		t.Errorf("%v is of %+v, and rules about nodes with the label zone=a do not find it", public, nodes)
	}
}

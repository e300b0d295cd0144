// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"testing"

	"github.com/weftnet/weft/internal/kube/kubetest"
)

func TestRangeOfTheCluster(t *testing.T) {
	const kubeadm = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking:\n  dnsDomain: cluster.local\n  podSubnet: "
	const proxy = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: "
	for name, c := range map[string]struct {
		given, kubeadm, proxy string
		podCIDRs              [][]string // of the nodes
		services              []string   // of the ServiceCIDR; nil: there are none
		clusterIP             string
		want, err             string
	}{
		"nothing is known":         {want: "10.32.0.0/12"},
		"given":                    {given: "10.1.0.0/16", kubeadm: kubeadm + "10.244.0.0/16", want: "10.1.0.0/16"},
		"by kubeadm":               {kubeadm: kubeadm + "10.244.0.0/16", proxy: proxy + "10.245.0.0/16", want: "10.244.0.0/16"},
		"by kubeadm, two families": {kubeadm: kubeadm + "10.244.0.0/16,fd00:10:244::/56", want: "10.244.0.0/16,fd00:10:244::/56"},
		"by kube-proxy":            {kubeadm: "kind: ClusterConfiguration\nnetworking: {}\n", proxy: proxy + "10.245.0.0/16", want: "10.245.0.0/16"},
		"by kube-proxy, unreadable kubeadm": {
			kubeadm: "\tno: [yaml", proxy: proxy + "\"10.245.0.0/16\"", want: "10.245.0.0/16",
		},
		"by the nodes": {podCIDRs: [][]string{{"10.244.0.0/24"}, {"10.244.255.0/24"}, nil}, want: "10.244.0.0/16"},
		"by the nodes, two families": {
			podCIDRs: [][]string{{"10.244.1.0/24", "fd00:1:2:1::/64"}, {"10.244.2.0/24", "fd00:1:2:2::/64"}}, want: "10.244.0.0/16,fd00:1:2::/48",
		},
		"the nodes are far apart": {podCIDRs: [][]string{{"10.244.0.0/24"}, {"10.245.0.0/24"}}, want: "10.32.0.0/12"},
		"the nodes' are nonsense": {podCIDRs: [][]string{{"10.244.0.0"}}, want: "10.32.0.0/12"},
		"beside the Services":     {given: "10.244.0.0/16", services: []string{"10.96.0.0/16", "fd00:96::/112"}, want: "10.244.0.0/16"},
		"no range": {
			given: "10.244.0.0/16,pods", err: `range "10.244.0.0/16,pods" (--range) is not in CIDR notation; give one like 10.32.0.0/12 by --range`,
		},
		"over the Services": {
			services: []string{"10.40.0.0/16"},
			err:      "range 10.32.0.0/12 (the default) overlaps 10.40.0.0/16 (ServiceCIDR kubernetes); give a range that nothing else has by --range",
		},
		"over the Services of an old cluster": {
			kubeadm: kubeadm + "10.96.0.0/16", clusterIP: "10.96.0.1",
			err: "range 10.96.0.0/16 (networking.podSubnet in ConfigMap kube-system/kubeadm-config) overlaps 10.96.0.1/32 (the ClusterIP of Service default/kubernetes); give a range that nothing else has by --range",
		},
		"over a node": {
			given: "192.0.0.0/16", err: "range 192.0.0.0/16 (--range) holds 192.0.2.1, the address of Node n1; give a range that nothing else has by --range",
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := kubetest.New()
			defer func() { _ = srv.Close() }()
			if c.kubeadm != "" {
				srv.Put("kube-system/configmaps/kubeadm-config", kubetest.Object{"data": kubetest.Object{"ClusterConfiguration": c.kubeadm}})
			}
			if c.proxy != "" {
				srv.Put("kube-system/configmaps/kube-proxy", kubetest.Object{"data": kubetest.Object{"config.conf": c.proxy}})
			}
			if c.services != nil {
				srv.Put("servicecidrs/kubernetes", kubetest.Object{"spec": kubetest.Object{"cidrs": c.services}})
			}
			if c.clusterIP != "" {
				srv.Put("default/services/kubernetes", kubetest.Object{"spec": kubetest.Object{"clusterIPs": []string{c.clusterIP}}})
			}
			nodes := map[string]machine{"n1": {name: "n1", addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}
			for i, p := range c.podCIDRs {
				name := string(rune('a' + i))
				nodes[name] = machine{name: name, podCIDRs: p}
			}
			got, err := clusterOf(t, srv, "test").findRange(t.Context(), c.given, "10.32.0.0/12", nodes)
			if text := textOf(err); got != c.want || text != c.err {
				t.Errorf("the range is %q, %q", got, text)
			}
		})
	}
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func FuzzSubnetIn(f *testing.F) {
	f.Add("networking:\n  podSubnet: 10.244.0.0/16\n")
	f.Add("clusterCIDR: 10.244.0.0/16")
	f.Add("{[")
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := parseRange(subnetIn(text), "a test"); err == nil && len(r.prefixes) == 0 {
			t.Errorf("%q is a range without prefixes", text)
		}
	})
}

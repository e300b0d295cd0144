// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Where the range of pods is looked for.
const (
	systemNamespace = "kube-system"
	kubeadmConfig   = "kubeadm-config"
	kubeProxyConfig = "kube-proxy"
)

// How much wider the range of all pods is taken to be than what one node was given: what clusters have unless they are told otherwise.
const (
	wider4 = 8
	wider6 = 16
)

// rangeFrom is a range and where it comes from, for people.
type rangeFrom struct {
	prefixes []netip.Prefix
	source   string
}

func (r rangeFrom) String() string {
	var parts []string
	for _, p := range r.prefixes {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ",")
}

// findRange returns the range of the mesh to found: given if that is not empty, else the one that the cluster has for pods, else byDefault. One
// that overlaps the cluster's Services or holds the address of a node is refused.
func (c *Cluster) findRange(ctx context.Context, given, byDefault string, nodes map[string]machine) (string, error) {
	r, err := c.podRange(ctx, given, byDefault, nodes)
	if err != nil {
		return "", err
	}
	services, err := c.serviceRanges(ctx)
	if err != nil {
		return "", err
	}
	if err := checkRange(r, services, nodes); err != nil {
		return "", err
	}
	return r.String(), nil
}

func (c *Cluster) podRange(ctx context.Context, given, byDefault string, nodes map[string]machine) (rangeFrom, error) {
	if given != "" {
		return parseRange(given, "--range")
	}
	for _, look := range []struct{ name, key, source string }{
		{kubeadmConfig, "ClusterConfiguration", "networking.podSubnet in ConfigMap " + systemNamespace + "/" + kubeadmConfig},
		{kubeProxyConfig, "config.conf", "clusterCIDR in ConfigMap " + systemNamespace + "/" + kubeProxyConfig},
	} {
		var m configMap
		switch err := c.configMaps(systemNamespace).get(ctx, look.name, &m); {
		case errors.Is(err, errMissing):
			continue
		case err != nil:
			return rangeFrom{}, fmt.Errorf("reading ConfigMap %s/%s: %w", systemNamespace, look.name, err)
		}
		if text := subnetIn(m.Data[look.key]); text != "" {
			return parseRange(text, look.source)
		}
	}
	if r, ok := widened(nodes); ok {
		return r, nil
	}
	return parseRange(byDefault, "the default")
}

// subnetIn returns the range of pods that a configuration of kubeadm or kube-proxy names; "" if it names none, or is none.
func subnetIn(text string) string {
	var known struct {
		ClusterCIDR string `json:"clusterCIDR"`
		Networking  struct {
			PodSubnet string `json:"podSubnet"`
		} `json:"networking"`
	}
	if yaml.Unmarshal([]byte(text), &known) != nil {
		return ""
	}
	if known.Networking.PodSubnet != "" {
		return known.Networking.PodSubnet
	}
	return known.ClusterCIDR
}

// parseRange reads one prefix of a family or one of each.
func parseRange(text, source string) (rangeFrom, error) {
	r := rangeFrom{source: source}
	for part := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return rangeFrom{}, fmt.Errorf("range %q (%s) is not in CIDR notation; give one like 10.32.0.0/12 by --range", brief(errors.New(text)), source)
		}
		r.prefixes = append(r.prefixes, p.Masked())
	}
	return r, nil
}

// widened is the range that those of all nodes are taken to be parts of, if they can be.
func widened(nodes map[string]machine) (rangeFrom, bool) {
	families := map[bool]netip.Prefix{}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		for _, text := range nodes[name].podCIDRs {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return rangeFrom{}, false
			}
			wider := wider6
			if p.Addr().Is4() {
				wider = wider4
			}
			q, err := p.Addr().Prefix(max(p.Bits()-wider, 0))
			if err != nil || p.Bits() <= wider {
				return rangeFrom{}, false
			}
			if known, ok := families[p.Addr().Is4()]; ok && known != q {
				return rangeFrom{}, false
			}
			families[p.Addr().Is4()] = q
		}
	}
	r := rangeFrom{source: "the pod ranges of the nodes"}
	for _, is4 := range []bool{true, false} {
		if p, ok := families[is4]; ok {
			r.prefixes = append(r.prefixes, p)
		}
	}
	return r, len(r.prefixes) > 0
}

// serviceRanges are the prefixes of the cluster's Services, as far as they can be known.
func (c *Cluster) serviceRanges(ctx context.Context) (ranges []rangeFrom, err error) {
	var all list[serviceCIDR]
	err = c.serviceCIDRs().list(ctx, &all)
	if err == nil && len(all.Items) > 0 {
		for _, s := range all.Items {
			for _, text := range s.Spec.CIDRs {
				if p, err := netip.ParsePrefix(text); err == nil {
					ranges = append(ranges, rangeFrom{[]netip.Prefix{p}, "ServiceCIDR " + s.Name})
				}
			}
		}
		return ranges, nil
	}
	if err != nil && !errors.Is(err, errMissing) { // Kubernetes before 1.33 has no such objects
		return nil, fmt.Errorf("reading the ServiceCIDRs: %w", err)
	}
	var first service
	switch err := c.services("default").get(ctx, "kubernetes", &first); {
	case errors.Is(err, errMissing):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading Service default/kubernetes: %w", err)
	}
	for _, text := range first.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil {
			ranges = append(ranges, rangeFrom{[]netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, "the ClusterIP of Service default/kubernetes"})
		}
	}
	return ranges, nil
}

// checkRange refuses a range that the cluster uses otherwise.
func checkRange(r rangeFrom, services []rangeFrom, nodes map[string]machine) error {
	const remedy = "give a range that nothing else has by --range"
	for _, p := range r.prefixes {
		for _, s := range services {
			for _, q := range s.prefixes {
				if p.Overlaps(q) {
					return fmt.Errorf("range %v (%s) overlaps %v (%s); %s", p, r.source, q, s.source, remedy)
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(nodes)) {
			for _, a := range nodes[name].addresses {
				if p.Contains(a) {
					return fmt.Errorf("range %v (%s) holds %v, the address of Node %s; %s", p, r.source, a, name, remedy)
				}
			}
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"net/netip"
	"slices"
	"unique"

	"github.com/weftnet/weft/policy"
)

// The types below have the fields that are read here by their names in JSON, for encoding/json: of a Pod they are a twentieth. What
// an API server has is taken as it is.

// Metadata is what is read of an object's metadata.
type Metadata struct {
	Name            string `json:"name"`
	Namespace       string `json:"namespace"`
	UID             string `json:"uid"`
	ResourceVersion string `json:"resourceVersion"`
	Generation      int64  `json:"generation"`

	Labels map[string]string `json:"labels"`
}

// A Namespace is what is read of one.
type Namespace struct {
	Metadata Metadata `json:"metadata"`
}

// Namespace translates it. The labels are shared.
func (n *Namespace) Namespace() policy.Namespace {
	if n.Metadata.Labels[labelName] != n.Metadata.Name {
		return namespaceOf(n.Metadata.Name, n.Metadata.Labels)
	}
	return policy.Namespace{Name: n.Metadata.Name, Labels: n.Metadata.Labels}
}

// A Pod is what is read of one.
type Pod struct {
	Metadata struct {
		Metadata
		Annotations struct {
			Hash   string `json:"kubernetes.io/config.hash"`
			Mirror string `json:"kubernetes.io/config.mirror"`
		} `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		NodeName       string      `json:"nodeName"`
		HostNetwork    bool        `json:"hostNetwork"`
		Containers     []container `json:"containers"`
		InitContainers []container `json:"initContainers"`
	} `json:"spec"`
	Status struct {
		Phase  string  `json:"phase"`
		PodIP  string  `json:"podIP"`
		PodIPs []podIP `json:"podIPs"`
	} `json:"status"`
}

type container struct {
	RestartPolicy string          `json:"restartPolicy"`
	Ports         []containerPort `json:"ports"`
}

type containerPort struct {
	Name          string `json:"name"`
	Protocol      string `json:"protocol"`
	ContainerPort int64  `json:"containerPort"`
}

type podIP struct {
	IP string `json:"ip"`
}

// Endpoint translates a pod, and tells whether it is an endpoint: not if it shares its node's addresses, nor if it has ended. It has no
// addresses before the kubelet has told them. A static pod's ID is the one that the container runtime is told, its configuration's hash.
func (p *Pod) Endpoint() (e policy.Endpoint, ok bool) {
	if p.Spec.HostNetwork || p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed" {
		return policy.Endpoint{}, false
	}
	e = policy.Endpoint{
		Name: policy.Name{Namespace: shared(p.Metadata.Namespace)}, Node: shared(p.Spec.NodeName), Labels: Shared(p.Metadata.Labels),
	}
	id := p.Metadata.UID
	if p.Metadata.Annotations.Mirror != "" && p.Metadata.Annotations.Hash != "" {
		id = p.Metadata.Annotations.Hash
	}
	both := p.Metadata.Name + id // one piece of memory, as both are kept for as long
	e.Name.Name, e.ID = both[:len(p.Metadata.Name)], both[len(p.Metadata.Name):]
	ips := p.Status.PodIPs
	if len(ips) == 0 {
		ips = []podIP{{p.Status.PodIP}}
	}
	for _, ip := range ips {
		a, err := netip.ParseAddr(ip.IP)
		a = a.Unmap()
		if err == nil && a.Zone() == "" && !slices.ContainsFunc(e.Addrs, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			e.Addrs = append(e.Addrs, a)
		}
	}
	for _, c := range p.Spec.Containers {
		e.Ports = addPorts(e.Ports, c.Ports)
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy == "Always" { // it runs beside the others
			e.Ports = addPorts(e.Ports, c.Ports)
		}
	}
	return e, true
}

// addPorts adds the ports that have names, of each name and protocol the first.
func addPorts(all []policy.NamedPort, more []containerPort) []policy.NamedPort {
	for _, p := range more {
		protocol, known := protocolOf(p.Protocol)
		if p.Protocol == "" {
			protocol, known = policy.TCP, true
		}
		same := func(o policy.NamedPort) bool { return o.Name == p.Name && o.Protocol == protocol }
		if known && p.Name != "" && p.ContainerPort > 0 && p.ContainerPort < 1<<16 && !slices.ContainsFunc(all, same) {
			all = append(all, policy.NamedPort{Name: shared(p.Name), Protocol: protocol, Port: uint16(p.ContainerPort)})
		}
	}
	return all
}

// Shared returns labels whose strings are those that others have too which are in use: thousands of objects bear the same ones.
func Shared(labels map[string]string) map[string]string {
	all := make(map[string]string, len(labels))
	for k, v := range labels {
		all[shared(k)] = shared(v)
	}
	return all
}

// shared is s in the one copy that all have which need it at the time: thousands of pods bear the same labels.
func shared(s string) string { return unique.Make(s).Value() }

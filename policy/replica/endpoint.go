// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/policy"
)

// Bounds of what an endpoint says of itself.
const (
	MaxLabels = 64
	MaxPorts  = 64
)

// HostKey is the key under which a node tells of itself, as an [Endpoint] without a name: which addresses it has on the overlay.
const HostKey = "host"

// Endpoint is what a node tells the others of a workload of its own, as JSON. Newer versions may tell more.
type Endpoint struct {
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name,omitempty"` // unique on the node
	ID        string            `json:"id,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Addrs     []netip.Addr      `json:"addrs,omitempty"`
	Ports     []Port            `json:"ports,omitempty"`
}

// Port is a port with a name.
type Port struct {
	Name     string          `json:"name"`
	Protocol policy.Protocol `json:"protocol"`
	Port     uint16          `json:"port"`
}

// EndpointKey is the key of a workload of a node's, which is known there by id.
func EndpointKey(id string) string { return "endpoint/" + id }

// Encode returns the value of an item.
func (e Endpoint) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("an endpoint: %w", err)
	}
	return b, nil
}

// DecodeEndpoint reads the value of an item of another node's. The error wraps [ErrMalformed].
func DecodeEndpoint(b []byte) (Endpoint, error) {
	var e Endpoint
	if err := json.Unmarshal(b, &e); err != nil {
		return Endpoint{}, fmt.Errorf("an endpoint: %w: %w", ErrMalformed, err)
	}
	if err := e.check(); err != nil {
		return Endpoint{}, fmt.Errorf("an endpoint: %w: %w", ErrMalformed, err)
	}
	return e, nil
}

func (e Endpoint) check() error {
	if len(e.Labels) > MaxLabels || len(e.Ports) > MaxPorts {
		return fmt.Errorf("%d labels and %d ports, and at most %d and %d fit", len(e.Labels), len(e.Ports), MaxLabels, MaxPorts)
	}
	if (e.Namespace != "" || e.Name != "") && (!DNSLabel(e.Namespace) || !ObjectName(e.Name)) {
		return fmt.Errorf("%.80q in %.80q is no name of an endpoint", e.Name, e.Namespace)
	}
	for _, k := range slices.Sorted(maps.Keys(e.Labels)) {
		if err := CheckLabel(k, e.Labels[k]); err != nil {
			return err
		}
	}
	four, six := 0, 0
	for _, a := range e.Addrs {
		switch {
		case !a.IsValid() || a.Is4In6() || a.Zone() != "":
			return fmt.Errorf("%v is no address of an endpoint", a)
		case a.Is4():
			four++
		default:
			six++
		}
	}
	if four > 1 || six > 1 {
		return errors.New("it has more than one address of a family")
	}
	names := map[string]bool{}
	for _, p := range e.Ports {
		if err := CheckPort(p); err != nil {
			return err
		}
		if names[p.Name] {
			return fmt.Errorf("two ports are called %s; give each its own name", p.Name)
		}
		names[p.Name] = true
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// DefaultNamespace is that of endpoints for which none is said.
const DefaultNamespace = "default"

// Find returns the addresses of what an operator names: an address, an endpoint as NAMESPACE/NAME or NAME, or a node. A NAME is that of an endpoint of
// [DefaultNamespace], else of the only namespace that has such a one, else a node's. The error is one line that says what to do.
func (w *World) Find(who string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(who); err == nil {
		if a.Zone() != "" {
			return nil, fmt.Errorf("%s: leave out the zone", plain(who))
		}
		return []netip.Addr{a.Unmap()}, nil
	}
	n, err := w.FindEndpoint(who)
	if err != nil {
		if node, ok := w.nodes[who]; ok && len(node.Addrs) > 0 {
			return slices.Clone(node.Addrs), nil
		}
		return nil, err
	}
	e, _ := w.Endpoint(n)
	if len(e.Addrs) == 0 {
		return nil, fmt.Errorf("%v has no address yet: try again when it runs", n)
	}
	return slices.Clone(e.Addrs), nil
}

// FindEndpoint returns the name of the endpoint that an operator names, as [World.Find] does.
func (w *World) FindEndpoint(who string) (Name, error) {
	namespace, name, ok := strings.Cut(who, "/")
	if !ok {
		namespace, name = DefaultNamespace, who
	}
	if n := (Name{namespace, name}); w.endpoint(n) != nil {
		return n, nil
	}
	var found []string
	var n Name
	for e := range w.Endpoints() {
		if !ok && e.Name.Name == who {
			n = e.Name
			found = append(found, n.String())
		}
	}
	switch len(found) {
	case 1:
		return n, nil
	case 0:
		return Name{}, fmt.Errorf("%s: no endpoint of that name: use NAMESPACE/NAME of an endpoint, the name of a node, or an address", plain(who))
	default:
		return Name{}, fmt.Errorf("%s is in several namespaces: say which of %s", plain(who), list(found))
	}
}

// Connections returns what an operator asks about: one for each pair of addresses of the same family that from and to have (of a node, the first ones of
// each family), to a port as NUMBER, NUMBER/tcp, NUMBER/udp, NUMBER/sctp, the name of a port of the destination, or "icmp". The error is one line that says what to do.
func (w *World) Connections(from, to, port string) ([]Connection, error) {
	src, err := w.Find(from)
	if err != nil {
		return nil, err
	}
	dst, err := w.Find(to)
	if err != nil {
		return nil, err
	}
	var found []Connection
	for _, v4 := range []bool{true, false} {
		family := func(a netip.Addr) bool { return a.Is4() == v4 }
		s, d := slices.IndexFunc(src, family), slices.IndexFunc(dst, family)
		if s < 0 || d < 0 {
			continue
		}
		cs, err := w.services(Connection{Src: src[s], Dst: dst[d]}, port)
		if err != nil {
			return nil, err
		}
		found = append(found, cs...)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s and %s have no addresses of the same family", plain(from), plain(to))
	}
	return found, nil
}

// services returns c to the port that an operator names; a name may stand for several.
func (w *World) services(c Connection, port string) ([]Connection, error) {
	number, protocol, _ := strings.Cut(strings.ToLower(port), "/")
	c.Protocol = map[string]Protocol{"": TCP, "tcp": TCP, "udp": UDP, "sctp": SCTP}[protocol]
	if n, err := strconv.ParseUint(number, 10, 16); err == nil && c.Protocol != 0 && n > 0 {
		c.Port = uint16(n)
		return []Connection{c}, nil
	}
	if number == "icmp" && protocol == "" {
		if c.Protocol = 1; c.Src.Is6() {
			c.Protocol = 58
		}
		return []Connection{c}, nil
	}
	e, _ := w.EndpointAt(c.Dst)
	var found []Connection
	for _, p := range e.Ports {
		if p.Name == port {
			c.Protocol, c.Port = p.Protocol, p.Port
			found = append(found, c)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s is no port: use NUMBER, NUMBER/udp, NUMBER/sctp, icmp, or the name of a port of the destination", plain(port))
	}
	return found, nil
}

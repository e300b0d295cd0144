// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Resolve returns the addresses of a join target: "host", "host:port", an
// address, "[v6]:port"; port is for targets that name none. At most 32 are
// returned, in the order in which the name service gave them. The error says in
// plain words what is wrong with the name.
func Resolve(ctx context.Context, network Network, target string, port uint16) ([]netip.AddrPort, error) {
	host, port, err := splitTarget(target, port)
	if err != nil {
		return nil, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), port)}, nil
	}
	if network == nil {
		network = SystemNetwork{}
	}
	found, err := network.Lookup(ctx, host)
	if err != nil {
		var dns *net.DNSError
		switch {
		case errors.As(err, &dns) && dns.IsNotFound:
			return nil, fmt.Errorf("no such host %s", host)
		case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
			return nil, fmt.Errorf("the name service does not answer for %s", host)
		}
		return nil, fmt.Errorf("cannot look up %s: %w", host, err)
	}
	var addrs []netip.AddrPort
	for _, a := range found {
		ap := netip.AddrPortFrom(a.Unmap(), port)
		if len(addrs) < maxAddrs && !slices.Contains(addrs, ap) {
			addrs = append(addrs, ap)
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("no such host %s", host)
	}
	return addrs, nil
}

// maxAddrs bounds how many addresses of one name are tried.
const maxAddrs = 32

// splitTarget takes a target apart.
func splitTarget(target string, port uint16) (string, uint16, error) {
	if a, err := netip.ParseAddr(strings.Trim(target, "[]")); err == nil { // also v6 without brackets
		return a.String(), port, nil
	}
	host, p, found := strings.Cut(target, ":")
	if h, q, err := net.SplitHostPort(target); err == nil {
		host, p, found = h, q, true
	}
	if found {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("%q is no host or host:port", target)
		}
		port = uint16(n)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.String(), port, nil
	}
	if host == "" || len(host) > maxName || strings.ContainsAny(host, "/ :[]") || !printable(host, maxName) {
		return "", 0, fmt.Errorf("%q is no host or host:port", target)
	}
	return host, port, nil
}

// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/policy"
)

// block reads an ipBlock.
func (r *reader) block(path string, v value) policy.Block {
	var b policy.Block
	if !r.only(path, v, "cidr", "except") {
		return b
	}
	var ok bool
	if b.Prefix, ok = r.prefix(at(path, "cidr"), v.get("cidr")); !ok {
		return b
	}
	r.each(at(path, "except"), v.get("except"), func(path string, v value) {
		p, ok := r.prefix(path, v)
		switch {
		case !ok:
		case p.Addr().Is4() != b.Prefix.Addr().Is4():
			r.fault(path, v, "%s is of another IP family than %s", p, b.Prefix)
		case p.Bits() <= b.Prefix.Bits() || !b.Prefix.Contains(p.Addr()):
			r.fault(path, v, "%s is no part of %s", p, b.Prefix)
		default:
			b.Except = append(b.Except, p)
		}
	})
	slices.SortFunc(b.Except, func(p, q netip.Prefix) int {
		return cmp.Or(p.Addr().Compare(q.Addr()), cmp.Compare(p.Bits(), q.Bits()))
	})
	kept := b.Except[:0]
	for _, p := range b.Except { // one that holds others comes right before them
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	b.Except = kept
	return b
}

// prefix reads a CIDR, masked. One of IPv4-mapped addresses is one of IPv4.
func (r *reader) prefix(path string, v value) (netip.Prefix, bool) {
	if v.kind == absent {
		r.fault(path, v, "it is missing; write a CIDR, as 192.0.2.0/24")
		return netip.Prefix{}, false
	}
	if !r.expect(path, v, text) {
		return netip.Prefix{}, false
	}
	s := v.scalar
	if !r.exact {
		s = withoutZeros(s)
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		r.fault(path, v, "%s is no CIDR, as 192.0.2.0/24 or 2001:db8::/32 is", quote(v.scalar))
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// withoutZeros takes the zeros at the beginning of IPv4's numbers and of a prefix's length away, which Kubernetes reads as decimal.
func withoutZeros(s string) string {
	addr, bits, ok := strings.Cut(s, "/")
	if !ok || len(s) > 64 {
		return s
	}
	if !strings.Contains(addr, ":") {
		parts := strings.Split(addr, ".")
		for i, p := range parts {
			parts[i] = decimal(p)
		}
		addr = strings.Join(parts, ".")
	}
	return addr + "/" + decimal(bits)
}

func decimal(s string) string {
	if t := strings.TrimLeft(s, "0"); t != "" || s == "" {
		return t
	}
	return "0"
}

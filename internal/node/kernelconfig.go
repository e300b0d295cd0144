// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/router/fastpath"
)

// DefaultVNI is the number of the mesh's VXLAN network unless told otherwise.
const DefaultVNI = 6783

const (
	maxVNI     = 1<<24 - 1 // RFC 7348 §5
	maxTrusted = 64        // subnets in a record
)

// KernelConfig is what `weft launch` was told of kernel paths.
type KernelConfig struct {
	Trusted    []string   // --trusted-subnets: networks below which are trusted with plaintext
	Paths      Paths      // empty: all
	Encryption Encryption // of a mesh that is founded; of another it must be what the mesh has
	VNI        uint32     // 0: DefaultVNI
	NoBypass   bool       // packets of established flows go through the host's stack like all others
}

// Paths are kinds of paths that may be used.
type Paths []fastpath.Kind

// ParsePaths reads names of paths, in any order.
func ParsePaths(names []string) (Paths, error) {
	var ps Paths
	for _, name := range names {
		k, err := fastpath.ParseKind(strings.TrimSpace(name))
		if err != nil {
			return nil, fmt.Errorf("--paths %w", err)
		}
		if !slices.Contains(ps, k) {
			ps = append(ps, k)
		}
	}
	if len(ps) == 0 {
		return nil, fmt.Errorf("--paths leaves no path; name some of direct, vxlan, udp")
	}
	return ps, nil
}

// allows tells whether a kind of path may be used.
func (ps Paths) allows(k fastpath.Kind) bool { return len(ps) == 0 || slices.Contains(ps, k) }

// Encryption is whether packets between hosts have to be encrypted.
type Encryption string

// The values of --encryption; the zero value is EncryptionOn for a founder, and what the mesh has for everybody else.
const (
	EncryptionOn  Encryption = "on"
	EncryptionOff Encryption = "off"
)

// ParseEncryption reads one of them; "" is none.
func ParseEncryption(s string) (Encryption, error) {
	switch e := Encryption(s); e {
	case "", EncryptionOn, EncryptionOff:
		return e, nil
	}
	return "", fmt.Errorf("--encryption %q is none of %s, %s", s, EncryptionOn, EncryptionOff)
}

// check validates c, and brings it into its canonical form.
func (c *KernelConfig) check() error {
	if c.VNI == 0 {
		c.VNI = DefaultVNI
	}
	if c.VNI > maxVNI {
		return fmt.Errorf("--vxlan-vni %d is out of range; give 1 to %d", c.VNI, maxVNI)
	}
	trusted, err := parseTrusted(c.Trusted)
	if err != nil {
		return fmt.Errorf("--trusted-subnets %w", err)
	}
	c.Trusted = nil
	for _, p := range trusted {
		c.Trusted = append(c.Trusted, p.String())
	}
	return nil
}

// trusted returns the networks that are trusted. c has been checked.
func (c *KernelConfig) trusted() []netip.Prefix {
	list, _ := parseTrusted(c.Trusted)
	return list
}

// parseTrusted reads networks, each once, in the order in which they were given.
func parseTrusted(list []string) (trusted []netip.Prefix, err error) {
	for _, s := range list {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is not in CIDR notation; write it like 192.0.2.0/24 or 2001:db8::/64", s)
		case p.Addr().Is4In6():
			return nil, fmt.Errorf("%s is IPv4 written as IPv6; write it as IPv4", s)
		case p != p.Masked():
			return nil, fmt.Errorf("%s has host bits set; write %s", s, p.Masked())
		case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast():
			return nil, fmt.Errorf("%s holds no addresses by which hosts reach each other here; give the network between them", s)
		}
		if !slices.Contains(trusted, p) {
			trusted = append(trusted, p)
		}
	}
	if len(trusted) > maxTrusted {
		return nil, fmt.Errorf("names %d networks; name at most %d", len(trusted), maxTrusted)
	}
	return trusted, nil
}

// checkEncryption refuses a wish that is not what the mesh has; whose says which mesh that is.
func (c *KernelConfig) checkEncryption(u universe, whose, remedy string) error {
	has, was := EncryptionOn, "founded with encryption on"
	if u.Plain {
		has, was = EncryptionOff, "founded with --encryption=off"
	}
	if c.Encryption == "" || c.Encryption == has {
		return nil
	}
	return fmt.Errorf("--encryption=%s contradicts %s mesh, which was %s; %s", c.Encryption, whose, was, remedy)
}

// warnPlain says what joining a mesh without encryption means.
func (n *Node) warnPlain(u universe) {
	if u.Plain {
		n.log.Warn("this mesh was founded with --encryption=off: packets between hosts travel in plaintext wherever the kernel can carry them; launch with --encryption=on to refuse such a mesh")
	}
}

// id is that of the mesh: the range's own, or another one if the mesh was founded without encryption, so that a node that does not know of
// that, or has been told otherwise, does not take it for its own.
func (u universe) id(ranges [16]byte) [16]byte {
	if !u.Plain {
		return ranges
	}
	sum := sha256.Sum256(append([]byte("weft universe without encryption 1\x00"), ranges[:]...))
	return [16]byte(sum[:16])
}

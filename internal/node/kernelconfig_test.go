// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"slices"
	"testing"

	"github.com/weftnet/weft/router/fastpath"
)

func TestKernelConfigRefuses(t *testing.T) {
	var many []string
	for i := range 65 {
		many = append(many, fmt.Sprintf("10.0.%d.0/24", i))
	}
	for want, c := range map[string]KernelConfig{
		`--trusted-subnets "everything" is not in CIDR notation; write it like 192.0.2.0/24 or 2001:db8::/64`:                  {Trusted: []string{"everything"}},
		`--trusted-subnets "192.0.2.1" is not in CIDR notation; write it like 192.0.2.0/24 or 2001:db8::/64`:                   {Trusted: []string{"192.0.2.1"}},
		"--trusted-subnets 192.0.2.1/24 has host bits set; write 192.0.2.0/24":                                                 {Trusted: []string{"192.0.2.1/24"}},
		"--trusted-subnets ::ffff:192.0.2.0/120 is IPv4 written as IPv6; write it as IPv4":                                     {Trusted: []string{"::ffff:192.0.2.0/120"}},
		"--trusted-subnets 127.0.0.0/8 holds no addresses by which hosts reach each other here; give the network between them": {Trusted: []string{"127.0.0.0/8"}},
		"--trusted-subnets fe80::/10 holds no addresses by which hosts reach each other here; give the network between them":   {Trusted: []string{"fe80::/10"}},
		"--trusted-subnets names 65 networks; name at most 64":                                                                 {Trusted: many},
		"--vxlan-vni 16777216 is out of range; give 1 to 16777215":                                                             {VNI: 1 << 24},
	} {
		cfg := config()
		cfg.Kernel = c
		if err := cfg.check(); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	c := KernelConfig{Trusted: []string{" 192.0.2.0/24", "2001:db8::/32", "192.0.2.0/24"}}
	if err := c.check(); err != nil || !slices.Equal(c.Trusted, []string{"192.0.2.0/24", "2001:db8::/32"}) || c.VNI != DefaultVNI || len(c.trusted()) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestParsePaths(t *testing.T) {
	ps, err := ParsePaths([]string{"udp", " direct", "udp"})
	if err != nil || !slices.Equal(ps, Paths{fastpath.UDP, fastpath.Direct}) || ps.allows(fastpath.VXLAN) || !ps.allows(fastpath.Direct) {
		t.Errorf("%v, %v", ps, err)
	}
	if !Paths(nil).allows(fastpath.VXLAN) {
		t.Error("no limit limits")
	}
}

// Whether packets are encrypted is a property of the mesh: founders choose it, everybody else has what the mesh has, or refuses it.
func TestEncryptionIsTheMeshs(t *testing.T) {
	on := state{identity: identity{ID: 7}, universe: universe{Range: DefaultRange, Seed: founder(7).Encode()}}
	off := on
	off.universe.Plain = true
	for name, c := range map[string]struct {
		change  func(*Config)
		state   state
		plain   bool
		refused string
	}{
		"a founder":               {state: state{identity: identity{ID: 7}}},
		"a founder with it on":    {change: func(c *Config) { c.Kernel.Encryption = EncryptionOn }, state: state{identity: identity{ID: 7}}},
		"a founder with it off":   {change: func(c *Config) { c.Kernel.Encryption = EncryptionOff }, state: state{identity: identity{ID: 7}}, plain: true},
		"a founder by seed":       {change: func(c *Config) { c.Seed, c.Kernel.Encryption = []string{"n1", "n2"}, EncryptionOff }, state: state{identity: identity{ID: 7}}, plain: true},
		"a joiner":                {change: func(c *Config) { c.Peers, c.Kernel.Encryption = []string{"n2"}, EncryptionOff }, state: state{identity: identity{ID: 7}}},
		"resumed":                 {state: off, plain: true},
		"resumed with the same":   {change: func(c *Config) { c.Kernel.Encryption = EncryptionOff }, state: off, plain: true},
		"resumed with it on":      {change: func(c *Config) { c.Kernel.Encryption = EncryptionOn }, state: on},
		"resumed, and not off":    {change: func(c *Config) { c.Kernel.Encryption = EncryptionOff }, state: on, refused: "--encryption=off contradicts this node's mesh, which was founded with encryption on; leave the flag out, or run weft reset to join another mesh"},
		"resumed, and not any on": {change: func(c *Config) { c.Kernel.Encryption = EncryptionOn }, state: off, refused: "--encryption=on contradicts this node's mesh, which was founded with --encryption=off; leave the flag out, or run weft reset to join another mesh"},
	} {
		cfg := config()
		if c.change != nil {
			c.change(&cfg)
		}
		u, err := cfg.chooseUniverse(c.state)
		if c.refused != "" {
			if err == nil || err.Error() != c.refused {
				t.Errorf("%s: got  %v\nwant %s", name, err, c.refused)
			}
			continue
		}
		if err != nil || u.Plain != c.plain {
			t.Errorf("%s: %+v, %v", name, u, err)
		}
	}
}

// What a peer says of its mesh is taken over as it is; a mesh without encryption has an ID of its own, so that nobody can be told that it is
// one with, nor the other way round, and nodes that know of no such mesh refuse it.
func TestEncryptionTravels(t *testing.T) {
	u := universe{Range: DefaultRange, Seed: founder(7).Encode(), Plain: true}
	plain, err := u.info()
	if err != nil || !plain.Plain {
		t.Fatal(plain, err)
	}
	if got, err := universeOf(plain); err != nil || !got.Plain {
		t.Errorf("%+v, %v", got, err)
	}
	u.Plain = false
	sealed, err := u.info()
	if err != nil || sealed.ID == plain.ID {
		t.Fatal(sealed, err)
	}
	plain.Plain, sealed.Plain = false, true
	if _, err := universeOf(plain); err == nil {
		t.Error("a mesh without encryption was taken for one with")
	}
	if _, err := universeOf(sealed); err == nil {
		t.Error("a mesh with encryption was taken for one without")
	}
	k := KernelConfig{Encryption: EncryptionOn}
	want := "--encryption=on contradicts the mesh, which was founded with --encryption=off; leave the flag out, or join another mesh"
	if err := k.checkEncryption(universe{Plain: true}, "the", "leave the flag out, or join another mesh"); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

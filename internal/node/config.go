// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
)

// Defaults of the command line.
const (
	DefaultPort    = 6783
	DefaultRange   = "10.32.0.0/12"
	DefaultDataDir = "/var/lib/weft"

	DefaultQuarantine = ipam.DefaultQuarantine
)

// DefaultShards is one for every two processors that this process may use (cgroup limits count), and 8 at most: the kernel needs
// about as much for the same packets as a shard does.
func DefaultShards() int { return min((runtime.GOMAXPROCS(0)+1)/2, mostShards) }

// Device is the name of the TUN device.
const Device = "weft0"

const (
	maxName    = 252
	minMTU     = 576  // RFC 791: every host takes in this much
	minMTU6    = 1280 // RFC 8200 §5
	maxMTU     = router.MaxMTU
	maxShards  = 64
	mostShards = 8 // unasked
	maxSeeds   = 1024
	minReclaim = 10 * time.Second

	maxQuarantine = 24 * time.Hour
)

// Config is what `weft launch` was told.
type Config struct {
	Version    string
	Name       string
	Peers      []string    // HOST[:PORT]
	Seed       []string    // names of the founding nodes; empty: none
	Token      token.Token // as given; zero: none
	TokenFile  string      // a file that was named for it, but is not there
	Port       uint16
	Advertise  netip.Addr // zero: found by the host's routes
	Range      string
	RangeGiven bool     // Range was chosen by the user, and must be the mesh's
	Reserve    []string // CIDR prefixes of Range that are kept for static use; empty: what the mesh has
	DataDir    string
	RunDir     string
	MTU        int // of workloads; 0: derived from the link below
	Shards     int
	TUN        TUN
	Offloads   Offloads
	CopyDSCP   bool // datagrams bear the DSCP of the packets in them
	Masquerade bool
	NoBench    bool // other nodes may not measure the way here
	NoRelay    bool // nothing is passed on between other nodes
	// RelayLimit is how much is passed on between other nodes, in bits per second; 0: any amount.
	RelayLimit uint64
	// ReclaimAfter is how long another node must not have answered before it is declared gone without being told; 0: never.
	ReclaimAfter time.Duration
	Kernel       KernelConfig
	// Quarantine is how long a freed address rests; 0: DefaultQuarantine, negative: not at all.
	Quarantine time.Duration
	// Guide directs the node; nil: the rest of Config does.
	Guide Guide
	// GuidePolicies tells that the guide tells network policies, by [Node.Policies]: no pod is attached before it has told all that there are.
	GuidePolicies bool
	join          bool // by the hosts that the guide named

	Log         *zap.Logger
	Out         io.Writer // where the join command is printed
	Interactive bool      // Out is a terminal: the token may be shown
}

// Offloads are what a node may leave to the kernel, each where the kernel can do it.
type Offloads struct {
	TSO bool // runs of TCP segments cross the TUN device as one, and checksums stay open
	USO bool // runs of UDP datagrams do (Linux 6.2)
	GSO bool // runs of sealed datagrams are sent as one (UDP_SEGMENT)
	GRO bool // and received as one (UDP_GRO)
}

// names lists them as the command line and `weft status` do.
func (o Offloads) names() []string {
	names := []string{}
	for _, x := range []struct {
		on   bool
		name string
	}{{o.TSO, "tso"}, {o.USO, "uso"}, {o.GSO, "gso"}, {o.GRO, "gro"}} {
		if x.on {
			names = append(names, x.name)
		}
	}
	return names
}

// check validates what can be validated without looking at the host, and
// brings it into its canonical form.
func (c *Config) check() error {
	if err := checkName(c.Name); err != nil {
		return err
	}
	for i, p := range c.Peers {
		t, err := canonicalTarget(p, c.Port)
		if err != nil {
			return fmt.Errorf("--peer %w", err)
		}
		c.Peers[i] = t
	}
	u, err := ipam.ParseUniverse(c.Range)
	if err != nil {
		return fmt.Errorf("--range %s: %w", c.Range, err)
	}
	c.Range = u.String()
	least := minMTU
	if u.V6.IsValid() {
		least = minMTU6
	}
	if a := c.Advertise.Unmap(); a.IsLoopback() || a.IsLinkLocalUnicast() {
		return fmt.Errorf("--advertise %v is an address that no other host reaches; give one that they do, or leave it out", a)
	}
	if c.MTU != 0 && (c.MTU < least || c.MTU > maxMTU) {
		return fmt.Errorf("--mtu %d is out of range; give 0 to derive it, or %d to %d", c.MTU, least, maxMTU)
	}
	if c.Shards < 1 || c.Shards > maxShards {
		return fmt.Errorf("--shards %d is out of range; give 1 to %d", c.Shards, maxShards)
	}
	if c.ReclaimAfter != 0 && c.ReclaimAfter < minReclaim {
		return fmt.Errorf("--reclaim-after %v does not tell a node that is gone from one that restarts; give 0 to leave it to weft forget, or %v and more", c.ReclaimAfter, minReclaim)
	}
	if c.Quarantine > maxQuarantine {
		return fmt.Errorf("--quarantine %v keeps freed addresses for too long; give %v at most", c.Quarantine, maxQuarantine)
	}
	if err := c.Kernel.check(); err != nil {
		return err
	}
	if len(c.Seed) == 0 {
		return nil
	}
	if len(c.Seed) > maxSeeds {
		return fmt.Errorf("--seed names %d nodes; name at most %d", len(c.Seed), maxSeeds)
	}
	for _, s := range c.Seed {
		if err := checkName(s); err != nil {
			return fmt.Errorf("--seed: %w", err)
		}
	}
	if !slices.Contains(c.Seed, c.Name) {
		return fmt.Errorf("--seed %s does not name this node, %s; give the same list on every node that it names, and --peer alone on all others",
			strings.Join(c.Seed, ","), c.Name)
	}
	return nil
}

// checkName allows what host names and Kubernetes node names look like.
func checkName(s string) error {
	ok := s != "" && len(s) <= maxName
	for _, r := range s {
		ok = ok && (r == '-' || r == '.' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}
	if !ok {
		return fmt.Errorf("name %q is no node name; use letters, digits, '-', '.' and '_', at most %d of them (--name)", s, maxName)
	}
	return nil
}

// canonicalTarget makes HOST, HOST:PORT, an IPv6 address with or without
// brackets into HOST:PORT.
func canonicalTarget(s string, port uint16) (string, error) {
	t, err := mesh.CanonicalTarget(s, port)
	if err != nil {
		return "", fmt.Errorf("%q is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:%d", s, DefaultPort)
	}
	return t, nil
}

// checkAdvertise refuses an address to advertise that is in the mesh's range: what goes to this node would lead to itself.
func (c *Config) checkAdvertise(u universe) error {
	if !c.Advertise.IsValid() || u.Range == "" {
		return nil
	}
	r, err := ipam.ParseUniverse(u.Range)
	if err != nil {
		return fmt.Errorf("the mesh's range %s: %w", u.Range, err)
	}
	if a := c.Advertise.Unmap(); r.V4.Contains(a) || r.V6.Contains(a) {
		return fmt.Errorf("--advertise %v is inside the mesh's own range %s, which is reached by the mesh only; give an address of the network between the hosts, or leave it out", a, u.Range)
	}
	return nil
}

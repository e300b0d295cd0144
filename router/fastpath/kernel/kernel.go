// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/weftnet/weft/router/fastpath"
)

// The marks of what Weft makes in the kernel, and of the packets that prove it.
const (
	// RouteProtocol marks routes and rules (rtm_protocol, see rtnetlink(7)). That of internal/hostnet is another.
	RouteProtocol = 88

	// TableDirect and TableVXLAN hold the routes by which peers may be reached, whatever is used now; TableVXLAN those of IPv6.
	TableDirect = 8701
	TableVXLAN  = 8702
	// MarkDirect and MarkVXLAN are the marks (SO_MARK) of packets that are routed by these tables.
	MarkDirect = 0x57650001
	MarkVXLAN  = 0x57650002

	// Device4 and Device6 are the VXLAN devices, by the family of the underlay.
	Device4 = "weft-vx4"
	Device6 = "weft-vx6"
)

// Config is what a Kernel is made of.
type Config struct {
	ID   uint64 // of this node
	VNI  uint32 // 1 to 16777215
	Port uint16 // UDP, where VXLAN packets are received
	// Group is that of the VXLAN devices (ip-link(8)), by which rules of others recognise them; 0 leaves it as it is.
	Group uint32
	Log   *zap.Logger
}

// Desired is everything that should exist.
type Desired struct {
	Universe         []netip.Prefix // of the overlay, at most one of each family, masked
	Source4, Source6 netip.Addr     // the host's addresses on the overlay; zero: none
	MTU4, MTU6       int            // of the VXLAN devices, in bytes; 0: no device
	Peers            []Peer         // in any order
}

// Peer is another node that may be reached by kernel paths.
type Peer struct {
	ID         uint64
	Prefixes   []netip.Prefix // of the overlay, that it has, masked
	VXLAN      netip.AddrPort // of the underlay, where it receives VXLAN; zero: not to be tried
	Host4      netip.Addr     // its own IPv4 address on the overlay, in one of Prefixes, to which packets may be sent by the VXLAN device without a route; zero: none
	Device     string         // by which it is on the same network; "": it is not, or not to be tried
	Hop4, Hop6 netip.Addr     // its underlay addresses on that network, for packets of each family; Hop4 may be IPv6
	Path       fastpath.Kind  // to be used now; UDP: none of the kernel's
}

// A Kernel is the kernel paths of this host. Its methods may be called from any goroutine; those that change something
// exclude each other.
type Kernel struct {
	config Config
	ns     namespace
	log    *zap.Logger

	seen atomic.Pointer[view] // for Watch, which waits for nobody

	mu      sync.Mutex
	conn    *conn                 // opened when needed
	applied bool                  // there was an Apply: the fields below hold
	doubt   bool                  // the kernel may not have what have says
	want    objects               // of the last Apply
	have    objects               // as far as known
	hops    map[uint64]netip.Addr // of IPv4 inside VXLAN, by peer
	refused []error               // what of the last Apply is not possible
	links   map[string]link       // interfaces that are there and of use
	broken  []error               // what is wrong with others
}

// New returns the kernel paths of the namespace that the process runs in. It does nothing yet. [Kernel.Close] frees what the
// methods open.
func New(c Config) *Kernel { return newAt(c, here) }

// newAt returns those of another namespace, which the caller keeps open as long as it uses the Kernel.
func newAt(c Config, ns namespace) *Kernel { return &Kernel{config: c, ns: ns, log: c.Log} }

// Close closes the connection to the kernel, and changes nothing there. Any method opens it again.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn == nil {
		return nil
	}
	err := k.conn.close()
	k.conn = nil
	return err
}

// Apply makes the kernel paths as d says, and remembers d for [Kernel.Reconcile]. The first one compares all that the kernel has
// and leaves alone what is right; later ones send what is different from the one before.
//
// Whatever can be done is done. An error says in one line what could not; calling Apply or Reconcile again tries it again.
func (k *Kernel) Apply(d Desired) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := planner{config: k.config, desired: d, hops: k.hops}
	want := p.plan()
	k.want, k.hops, k.refused = want, p.hops, p.errs
	if !k.applied || k.doubt || !maps.Equal(k.have.devices, want.devices) || !k.knows(want) {
		k.applied = true
		_, err := k.reconcile(newObjects())
		return err
	}
	c, err := k.open()
	if err != nil {
		return err
	}
	k.show() // before: Watch does not tell of what is done here
	w := &worker{conn: c, links: k.links, have: k.have, errs: slices.Concat(k.refused, k.broken)}
	w.run(k.possible())
	k.doubt = w.stale
	return joined(w.sorted())
}

// Reconcile compares everything with what the kernel has and puts it right. It returns one line for each thing that somebody
// else has changed since. Before the first Apply it does nothing. Errors are as those of Apply, which are repeated as long as
// they hold.
func (k *Kernel) Reconcile() (repaired []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.applied {
		return nil, nil
	}
	return k.reconcile(k.have)
}

// knows says whether the interfaces of direct routes have been looked at.
func (k *Kernel) knows(want objects) bool {
	for name := range want.segments() {
		if !k.usable(name) {
			return false
		}
	}
	return true
}

// open returns the connection.
func (k *Kernel) open() (*conn, error) {
	if k.conn == nil {
		c, err := k.ns.open()
		if err != nil {
			return nil, err
		}
		k.conn = c
	}
	return k.conn, nil
}

// joined makes one line of errors: of many, the first ones.
func joined(errs []error) error {
	const most = 8
	if len(errs) == 0 {
		return nil
	}
	return &errorList{errs: errs, most: most}
}

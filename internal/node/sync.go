// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/cpu"

	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

const (
	// syncGap is the shortest time between two recomputations of the routes: a
	// burst of gossip costs one.
	syncGap = 20 * time.Millisecond
	// repairInterval is how often the host's network is compared with what it
	// should be.
	repairInterval = 30 * time.Second
	// featureNoRelay in a node's record says that it passes nothing on for others.
	featureNoRelay = "no-relay"
)

// signal is a flag that somebody waits for; raising it twice is raising it once.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// follow keeps the router's peers in step with node records and ring, until ctx
// ends.
func (n *Node) follow(ctx context.Context, e *engines) {
	alive := -1
	for {
		if a := n.syncPeers(e); a != alive {
			alive = a
			e.alloc.Wake()
		}
		n.withdraw(e)
		later := n.laterLook()
		select {
		case <-ctx.Done():
			return
		case <-time.After(syncGap):
		}
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-later:
		}
	}
}

// laterLook is when to look again although nothing changes; nil: never.
func (n *Node) laterLook() <-chan time.Time {
	n.syncing.Lock()
	defer n.syncing.Unlock()
	if n.lookAgain.IsZero() {
		return nil
	}
	return time.After(time.Until(n.lookAgain))
}

// syncPeers gives the router its peers and prefixes, of which a retired node has none, saves new records, and returns
// how many nodes are alive.
func (n *Node) syncPeers(e *engines) int {
	n.syncing.Lock()
	defer n.syncing.Unlock()
	nodes, holdings, retired := e.mesh.Nodes(), e.alloc.Owned(), n.retire(e)
	if err := n.setPeers(e, nodes, holdings); err != nil {
		n.log.Error("the router refused the mesh's peers", zap.Error(err))
	}
	news, again := e.watch.look(nodes, time.Now())
	n.history.log.Add(news...)
	n.lookAgain = again
	local := router.Local{MTU: n.mtu, Prefixes: n.ownPrefixes(holdings)}
	if l, ok := e.alloc.Lookup(hostOwner); ok && !retired {
		local.Gateway4, local.Gateway6 = l.V4, l.V6
	}
	e.plane.SetLocal(local)
	honest, _ := n.keyHolders.only(nodes) // so that the first one is the first one again after a restart
	if err := n.records.save(honest); err != nil {
		n.setWarning("records", err.Error())
	} else {
		n.setWarning("records", "")
	}
	n.tellHosts(e, nodes)
	n.tellOwners(e, nodes, holdings)
	e.kernel.wake.raise()
	e.shared.raise()
	alive := 0
	for _, m := range nodes {
		if m.Status == mesh.Alive || m.Status == mesh.Self {
			alive++
		}
	}
	return alive
}

// connectPeers gives the router its peers at once.
func (n *Node) connectPeers(e *engines) error {
	n.syncing.Lock()
	defer n.syncing.Unlock()
	return n.setPeers(e, e.mesh.Nodes(), e.alloc.Owned())
}

// setPeers gives the router the nodes and the WireGuard clients, if they have changed. The caller has n.syncing.
func (n *Node) setPeers(e *engines, nodes []mesh.Node, holdings []ipam.Holding) error {
	var peers []router.Peer
	nodes, warning := n.keyHolders.only(nodes)
	n.setWarning("key-claimed", warning)
	warning = ""
	if n.whyRetired() == nil {
		nodes = without(nodes, e.alloc.Retirements())
		peers, warning = withClients(withPreshared(n.sealed(peersOf(nodes, holdings, n.mtu)), nodes, n.rotor.snapshot()), e.clients.peers(n.ownPrefixes(holdings), n.mtu))
	}
	n.setWarning("client-key", warning)
	if reflect.DeepEqual(peers, n.peers) { // most gossip says nothing new to the router
		return nil
	}
	usable, warning := n.keyCheck.of(peers)
	n.setWarning("node-key", warning)
	if err := e.plane.SetPeers(usable); err != nil {
		return err
	}
	n.peers = peers
	return nil
}

// ownPrefixes are what this node owns.
func (n *Node) ownPrefixes(holdings []ipam.Holding) []netip.Prefix {
	for _, h := range holdings {
		if h.Owner == ring.Owner(n.state.identity.ID) {
			return h.Prefixes
		}
	}
	return nil
}

// repair compares the host's network with what it should be, now and then,
// until ctx ends.
func (n *Node) repair(ctx context.Context, ws *workloads) {
	t := time.NewTicker(repairInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-ws.mending:
		}
		_, _ = n.workOff(n.engines(), "") // has told
		n.warnHost(errors.Join(ws.reconcile()))
		n.noteRepaired(ws.takeRepaired())
	}
}

// guard has the packet filter put right as soon as somebody changes it, until ctx ends.
func (n *Node) guard(ctx context.Context, host hostNetwork) {
	if err := host.Guard(ctx, n.noteRepaired); err != nil {
		n.log.Warn("changes of the packet filter by others are noticed late: only twice a minute", zap.Error(err))
	}
}

// warnHost says what is not as it ought to be on the host, if anything.
func (n *Node) warnHost(err error) {
	text := ""
	if err != nil {
		text = strings.ReplaceAll(err.Error(), "\n", "; ")
		n.log.Warn("the host's network could not be put right; trying again", zap.String("error", text))
	}
	n.setWarning("host", text)
}

// peersOf is the router's desired state: every other node that has not left,
// with the addresses that the ring gives it. Liveness has no part in it, as the
// data path works where gossip does not.
func peersOf(nodes []mesh.Node, holdings []ipam.Holding, mtu int) []router.Peer {
	owned := make(map[ring.Owner][]netip.Prefix, len(holdings))
	for _, h := range holdings {
		owned[h.Owner] = h.Prefixes
	}
	seen := map[session.PublicKey]bool{}
	var peers []router.Peer
	for _, m := range nodes {
		if m.Status == mesh.Self {
			seen[m.PublicKey] = true
		}
	}
	for _, m := range nodes {
		key := session.PublicKey(m.PublicKey)
		if m.Status == mesh.Self || m.Status == mesh.Left || seen[key] || key == (session.PublicKey{}) {
			continue
		}
		seen[key] = true
		p := router.Peer{
			Key: key, ID: uint64(m.ID), Boot: m.Boot, NoRelay: slices.Contains(m.Features, featureNoRelay), Name: m.Name,
			Suite: suiteWith(m.Suites), Prefixes: owned[ring.Owner(m.ID)], MTU: mtu,
		}
		for _, l := range m.Links {
			p.Links = append(p.Links, uint64(l))
		}
		if theirs := int(m.MTU); theirs != 0 {
			p.MTU = min(p.MTU, theirs)
		}
		for _, a := range append([]netip.AddrPort{m.Addr}, m.Endpoints...) {
			if a.IsValid() && a.Port() != 0 && !slices.Contains(p.Endpoints, a) {
				p.Endpoints = append(p.Endpoints, a)
			}
		}
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b router.Peer) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	return peers
}

// keyCheck remembers which keys are of use: to find out takes a multiplication on the curve for each. The zero value is ready.
type keyCheck struct{ usable map[session.PublicKey]bool }

// of returns those of the peers whose keys are of use; the router refuses the others, and with them all.
func (c *keyCheck) of(peers []router.Peer) (usable []router.Peer, warning string) {
	known := make(map[session.PublicKey]bool, len(peers)) // keys that are no peer's any more are forgotten
	for _, p := range peers {
		ok, checked := c.usable[p.Key]
		if !checked {
			ok = p.Key.Usable()
		}
		known[p.Key] = ok
		if !ok {
			warning = fmt.Sprintf("node %s claims a key that nobody can own, and is not connected; reset that node", cmp.Or(p.Name, p.Key.String()))
			continue
		}
		usable = append(usable, p)
	}
	c.usable = known
	return usable, warning
}

// suites are the suites that this node offers, best first.
func suites() []uint8 {
	if aesInHardware() {
		return []uint8{uint8(session.Weft), uint8(session.WireGuard)}
	}
	return []uint8{uint8(session.WireGuard)}
}

// suiteWith chooses AES-GCM where both sides have it in hardware.
func suiteWith(theirs []uint8) session.Suite {
	if slices.Contains(suites(), uint8(session.Weft)) && slices.Contains(theirs, uint8(session.Weft)) {
		return session.Weft
	}
	return session.WireGuard
}

func aesInHardware() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL || cpu.S390X.HasAESGCM
}

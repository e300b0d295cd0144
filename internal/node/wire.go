// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"

	"github.com/coreos/go-systemd/v22/daemon"
)

const (
	channelIPAM = "ipam" // of mesh.Send
	stateRing   = "ring" // of mesh.Register

	// seedPatience is how long a node of --seed looks for the others at its first
	// start, so as to see whether its name's share was taken by another.
	seedPatience = 3 * time.Second
	// networkRetry is the time between two looks for the host's network.
	networkRetry = 100 * time.Millisecond
	// fullRetry is the time between two tries to get an address of a full universe. If other nodes answer than before,
	// which is looked at every fullLook, it is tried at once.
	fullRetry = 5 * time.Second
	fullLook  = 250 * time.Millisecond
)

// engines are the parts of a running node, connected.
type engines struct {
	plane     dataplane
	mesh      *mesh.Mesh
	alloc     *ipam.Allocator
	workloads *workloads
	clients   *clients
	benches   *benches
	universe  ipam.Universe
	where     whereabouts
	moved     signal // where may have changed
	watch     watcher
	paths     pathNews
	kernel    *kernelPaths
	shared    *policyHosts // what plain hosts share of policies; nil: they come from Kubernetes

	// adopting is set until this node has the share of its name. It asks for no addresses before: it would end up with
	// more than its share, and whoever owns half of the range cannot be forgotten.
	adopting atomic.Bool
}

// makeEngines makes the engines, which do nothing yet, and makes a first start
// final in the store. It takes over port if it succeeds.
func (n *Node) makeEngines(ctx context.Context, port socket) (made *engines, err error) {
	u, seed, err := n.state.universe.parse()
	if err != nil {
		return nil, err
	}
	info, err := n.state.universe.info()
	if err != nil {
		return nil, err
	}
	reserve, err := n.state.universe.reserve()
	if err != nil {
		return nil, err
	}
	if n.state.first {
		if err := n.sys.overlap(u.Prefixes()); err != nil {
			return nil, err
		}
	}
	e := &engines{universe: u, moved: newSignal(), paths: newPathNews(), watch: watcher{h: n.history, started: n.started, seen: map[mesh.NodeID]bool{}}}
	e.watch.gone = func(id mesh.NodeID) bool { return retirees(e.alloc.Retirements())[id] }
	e.benches = &benches{n: n, e: e, net: n.sys.overlay()}
	e.adopting.Store(len(n.cfg.Seed) > 0)
	link, err := n.awaitNetwork(ctx)
	if err != nil {
		return nil, err
	}
	n.sayAdvertised(link)
	e.where.set(link)
	if n.mtu = n.cfg.MTU; n.mtu == 0 {
		n.mtu = router.InnerMTU(link.MTU)
	}
	known, err := loadRecords(n.store)
	if err != nil {
		return nil, err
	}
	n.records = &recordSaver{st: n.store, saved: map[mesh.NodeID]uint64{}}
	var signed [][]byte
	for _, k := range known {
		n.records.saved[k.ID] = k.Seq
		signed = append(signed, k.Signed)
	}
	targets, err := n.allTargets()
	if err != nil {
		return nil, err
	}
	keys := meshKeys(n.rotor.snapshot())
	m, err := mesh.New(mesh.Config{
		Identity: n.state.signer, Name: n.cfg.Name, Keys: keys[0], Accept: keys[1:], Universe: info,
		Port: n.cfg.Port, Advertise: link.Addr, Targets: targets, Known: signed,
		Packets: packets{e}, Network: n.sys.network(), Log: n.log.Named("mesh"),
		OnChange:  n.changed.raise,
		OnRefused: n.noteRefused,
		OnMessage: func(from mesh.NodeID, channel string, payload []byte) {
			switch channel {
			case channelIPAM:
				e.alloc.HandleMessage(ring.Owner(from), payload)
			case channelBench:
				e.benches.take(from, payload)
			case channelToken:
				n.rotor.take(from, payload)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	e.mesh = m
	n.rotor.e = e
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Stop(ctx, false)) // it has not run: closes its listener
		}
	}()
	if e.alloc, err = ipam.New(ipam.Config{
		Self: ring.Owner(n.state.identity.ID), Universe: u, Seed: seed, Reserve: reserve,
		Store: ipamStore{n.store, func() *workloads { return e.workloads }}, Net: &ipamNet{m: e.mesh, alone: &e.adopting}, Now: time.Now,
		Quarantine: n.cfg.Quarantine, ReclaimAfter: n.cfg.ReclaimAfter,
		NameOf: n.nameOf(e.mesh), Log: n.log.Named("ipam"), OnChange: n.changed.raise,
		OnNews: n.noteAddresses(e),
	}); err != nil {
		return nil, err
	}
	e.mesh.Register(stateRing, e.alloc)
	e.mesh.Register(stateRotation, n.rotor)
	if n.cfg.Guide == nil {
		if e.shared, err = n.newPolicyHosts(e, n.policies); err != nil {
			return nil, err
		}
		e.shared.register()
	}
	if e.clients, err = loadClients(n.store, e.alloc, rand.Reader); err != nil {
		return nil, err
	}
	if e.workloads, err = n.loadWorkloads(e); err != nil {
		return nil, err
	}
	if e.kernel, err = n.newKernelPaths(e); err != nil {
		return nil, err
	}
	sealing, err := planeKeys(n.rotor.snapshot())
	if err != nil {
		return nil, err
	}
	e.plane, err = n.sys.plane(port, planeConfig{
		private: n.state.identity.key(), preshared: session.PresharedKey(n.rotor.snapshot().Tokens[0].Keys().Preshared),
		shards: n.cfg.Shards, tun: n.cfg.TUN, offloads: n.cfg.Offloads, copyDSCP: n.cfg.CopyDSCP, log: n.log.Named("router"),
		id: n.state.identity.ID, boot: e.mesh.Boot(), keys: sealing,
		noRelay: n.cfg.NoRelay, relayLimit: n.cfg.RelayLimit, onReach: e.moved.raise, onProof: e.kernel.proof, onAsk: e.kernel.asked,
		onPath: func(c pathChange) {
			e.paths.note(c)
			e.kernel.wake.raise()
		},
		control: func(b []byte, from router.Addr, at time.Time) {
			e.mesh.Deliver(b, mesh.Addr{Node: mesh.NodeID(from.Node), Addr: from.Addr}, at)
		},
	})
	if err != nil {
		return nil, err
	}
	if err := n.save(); err != nil {
		err = errors.Join(err, e.plane.Close())
		if n.state.first {
			err = errors.Join(err, n.sys.removeDevice())
		}
		return nil, err
	}
	return e, nil
}

// awaitNetwork finds the host's way out, and waits for one while it has none: a
// host that boots may start its daemon before its links are up.
func (n *Node) awaitNetwork(ctx context.Context) (hostnet.Link, error) {
	for waiting := false; ; waiting = true {
		link, err := n.sys.egress(n.cfg.Advertise)
		if !errors.Is(err, hostnet.ErrNoNetwork) {
			return link, err
		}
		if !waiting {
			n.setPhase(api.Starting, err.Error())
			n.log.Warn("waiting for the host's network", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return hostnet.Link{}, context.Cause(ctx)
		case <-time.After(networkRetry):
		}
	}
}

// save makes a first start final: the token first, without which the rest would
// be of no use.
func (n *Node) save() error {
	if n.saveToken {
		if err := token.WriteKept(n.cfg.DataDir, n.rotor.snapshot().Kept()); err != nil {
			return err
		}
	}
	if !n.state.first {
		return nil
	}
	if len(n.cfg.Seed) > 0 {
		n.state.identity.Seed = n.cfg.Name
	}
	err := saveState(n.store, n.state)
	if err != nil && n.saveToken {
		err = errors.Join(err, os.Remove(filepath.Join(n.cfg.DataDir, token.FileName)))
	}
	return err
}

func (n *Node) loadWorkloads(e *engines) (*workloads, error) {
	own, err := n.sys.netnsAt("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	boot, err := n.sys.bootID()
	if err != nil {
		return nil, err
	}
	ws := &workloads{
		st: n.store, host: n.sys.host(n.log.Named("host")), alloc: e.alloc, space: e.universe, netnsAt: n.sys.netnsAt,
		ownNS: own, boot: boot, kept: e.clients.keeps, now: time.Now, uptime: n.sys.uptime, log: n.log, state: map[string]string{}, mending: newSignal(),
		known: newSignal(), guided: n.cfg.Guide != nil, policies: n.policies, podsTold: n.cfg.GuidePolicies, node: n.cfg.Name,
	}
	if ws.all, err = loadWorkloads(n.store); err != nil {
		return nil, err
	}
	ws.changes, err = loadChanges(n.store)
	return ws, err
}

// start runs the engines until ctx ends; the first that fails ends the group.
func (e *engines) start(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return ended(ctx, "the router", e.plane.Run(ctx)) })
	g.Go(func() error {
		err := e.mesh.Run(ctx)
		if errors.Is(err, mesh.ErrNotRunning) { // told to stop before it had begun
			err = nil
		}
		return ended(ctx, "the mesh", err)
	})
	g.Go(func() error { return ended(ctx, "the address allocator", e.alloc.Run(ctx)) })
}

func ended(ctx context.Context, who string, err error) error {
	if err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return fmt.Errorf("%s ended: %w", who, err)
}

// Close frees what the engines hold, after they have ended.
func (e *engines) Close() error { return e.plane.Close() }

// bringUp gets the host its addresses and puts its network into place; when it
// returns nil, traffic can flow.
func (n *Node) bringUp(ctx context.Context, e *engines) error {
	if err := e.mesh.SetRecord(n.describe(e)); err != nil {
		return err
	}
	lease, err := n.ownLease(ctx, e)
	if err != nil {
		return err
	}
	if err := e.mesh.SetRecord(n.describe(e)); err != nil { // with the addresses
		return err
	}
	e.kernel.adopt(time.Now())
	e.workloads.setDesired(hostnet.Desired{
		Device: Device, MTU: n.mtu, Addrs: addresses(lease), Universe: e.universe.Prefixes(), Masquerade: n.cfg.Masquerade,
	}, e.kernel.workloadMTU())
	_, _ = n.workOff(e, "") // has told
	undone, err := e.workloads.reconcile()
	if err != nil && e.kernel.giveUp(err) { // nothing of kernel paths keeps a node from starting
		undone, err = e.workloads.reconcile()
	}
	if err != nil {
		return err
	}
	n.warnHost(undone)
	n.syncPeers(e)
	if n.retire(e) { // it answers commands, and that is all that there is to wait for
		n.sys.notify(daemon.SdNotifyReady)
		return nil
	}
	if !n.state.first {
		e.plane.Greet()
	}
	n.setPhase(api.Ready, "")
	n.sys.notify(daemon.SdNotifyReady)
	n.log.Info("ready: traffic can flow", zap.Stringers("addresses", addresses(lease)), zap.String("range", n.state.universe.Range),
		zap.Int("mtu", n.mtu), zap.Duration("after", time.Since(n.started)))
	if len(n.cfg.Peers) == 0 && n.cfg.Guide == nil && countNodes(e.members()).Total == 1 {
		n.invite(e)
	}
	return nil
}

// ownLease gets the host its own addresses on the overlay. A node that is retired, or becomes so while it waits for them,
// has none; that is no error.
func (n *Node) ownLease(ctx context.Context, e *engines) (ipam.Lease, error) {
	if n.retire(e) {
		e.adopting.Store(false)
		n.withdraw(e)
		return ipam.Lease{}, nil
	}
	err := n.adopt(ctx, e)
	var lease ipam.Lease
	if err == nil {
		lease, err = n.hostLease(ctx, e)
	}
	if err != nil && n.retire(e) {
		n.withdraw(e)
		return ipam.Lease{}, nil
	}
	return lease, err
}

// describe edits this node's record.
func (n *Node) describe(e *engines) func(*mesh.Record) {
	return func(r *mesh.Record) {
		r.Name, r.PublicKey = n.cfg.Name, n.state.identity.key().Public()
		r.Suites, r.MTU, r.Build = suites(), uint16(n.mtu), n.cfg.Version
		r.Features = []string{featureBench}
		r.Keys = tokenNames(n.rotor.snapshot())
		if n.cfg.NoRelay {
			r.Features = append(r.Features, featureNoRelay)
		}
		if n.cfg.Guide != nil {
			r.Features = append(r.Features, FeatureGuided)
		}
		r.Features = append(r.Features, e.kernel.features()...)
		r.TrustedSubnets, r.Hosts = e.kernel.trusted, e.kernel.hosts()
		r.Endpoints, r.Links = e.where.endpoints(n.cfg.Port), e.where.neighbours()
	}
}

// adopt takes the share of the universe that --seed gives this node's name.
func (n *Node) adopt(ctx context.Context, e *engines) error {
	if len(n.cfg.Seed) == 0 {
		return nil
	}
	if e.alloc.Usage().Owned == 0 && len(n.cfg.Peers) > 0 { // not adopted yet: has another node?
		select {
		case <-e.mesh.Joined():
		case <-time.After(seedPatience):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := e.alloc.Adopt(ipam.NameOwner(n.cfg.Name))
	e.adopting.Store(false)
	e.alloc.Wake()
	return err
}

// hostLease gets the host its own addresses on the overlay, waiting for other
// nodes to give some if there are none here.
func (n *Node) hostLease(ctx context.Context, e *engines) (ipam.Lease, error) {
	if l, ok := e.alloc.Lookup(hostOwner); ok {
		return l, nil
	}
	n.setPhase(api.Waiting, "addresses from the other nodes")
	for {
		alive := countNodes(e.members()).Alive
		l, err := e.alloc.Allocate(ctx, hostOwner)
		var full *ipam.ExhaustedError
		switch {
		case err == nil:
			return l, nil
		case !errors.As(err, &full):
			return ipam.Lease{}, err
		}
		n.setPhase(api.Waiting, full.Error())
		n.log.Warn("waiting for an address", zap.Error(err))
		for wait := fullRetry; wait > 0 && countNodes(e.members()).Alive == alive; wait -= fullLook {
			select {
			case <-ctx.Done():
				return ipam.Lease{}, context.Cause(ctx)
			case <-time.After(fullLook):
			}
		}
	}
}

// nameOf names nodes for people; a seed's name stands for itself.
func (n *Node) nameOf(m *mesh.Mesh) func(ring.Owner) string {
	return func(o ring.Owner) string {
		for _, s := range n.cfg.Seed {
			if ipam.NameOwner(s) == o {
				return s
			}
		}
		for _, node := range m.Nodes() {
			if node.Name != "" && (ring.Owner(node.ID) == o || unadopted(o) && ipam.NameOwner(node.Name) == o) {
				return node.Name
			}
		}
		return mesh.NodeID(o).String()
	}
}

// unadopted tells an owner that stands for a name of --seed from a node.
func unadopted(o ring.Owner) bool { return !mesh.NodeID(o).Valid() }

// packets lets the mesh send its gossip by the router's socket.
type packets struct{ e *engines }

func (p packets) SendControl(b []byte, to mesh.Addr) error {
	return p.e.plane.SendControl(b, router.Addr{Node: uint64(to.Node), Addr: to.Addr})
}

func (p packets) Examine(id mesh.NodeID) { p.e.plane.Examine(uint64(id)) }

// ipamNet carries the allocator's messages by the mesh. As long as alone is set there is nobody whom it could ask.
type ipamNet struct {
	m     *mesh.Mesh
	alone *atomic.Bool

	mu      sync.Mutex
	known   []ipam.Peer // when the mesh had this version
	version uint64
}

func (t *ipamNet) Send(to ring.Owner, msg []byte) error {
	return t.m.Send(mesh.NodeID(to), channelIPAM, msg)
}

func (t *ipamNet) Broadcast(delta []byte) { t.m.Broadcast(stateRing, delta) }

// Peers is asked for each message, so it looks at the nodes only if something has changed.
func (t *ipamNet) Peers() []ipam.Peer {
	if t.alone.Load() {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	version := t.m.Version() // before Nodes: what changes meanwhile is seen the next time
	if t.known != nil && version == t.version {
		return t.known
	}
	peers := []ipam.Peer{}
	for _, node := range t.m.Nodes() {
		if node.Status != mesh.Self {
			peers = append(peers, ipam.Peer{Owner: ring.Owner(node.ID), Alive: node.Status == mesh.Alive, Left: node.Status == mesh.Left})
		}
	}
	t.known, t.version = peers, version
	return peers
}

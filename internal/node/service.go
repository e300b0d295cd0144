// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/session"
)

// errNotReady is the refusal of what needs a node that is up.
func (n *Node) errNotReady() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.retired != nil {
		return n.retired
	}
	if n.waitsFor != "" {
		return fmt.Errorf("this node is not ready yet (%s: %s); try again when weft status says ready", n.phase, n.waitsFor)
	}
	return fmt.Errorf("this node is not ready yet (%s); try again when weft status says ready", n.phase)
}

// engines returns the running engines, nil before there are any.
func (n *Node) engines() *engines { return n.running.Load() }

// ready returns the engines if traffic can flow.
func (n *Node) ready() (*engines, error) {
	n.mu.Lock()
	ok := n.phase == api.Ready
	n.mu.Unlock()
	if e := n.engines(); ok && e != nil {
		return e, nil
	}
	return nil, n.errNotReady()
}

// meshed returns the engines if this node is one of its mesh, though it may have no addresses yet.
func (n *Node) meshed() (*engines, error) {
	if e := n.engines(); e != nil && !n.isStopping() && n.whyRetired() == nil {
		return e, nil
	}
	return nil, n.errNotReady()
}

// Status implements [api.Service].
func (n *Node) Status() api.Status {
	s := api.Status{
		Version: n.cfg.Version, Name: n.cfg.Name, NodeID: n.state.identity.ID.String(), PID: os.Getpid(),
		Uptime: time.Since(n.started), Port: n.cfg.Port, DataDir: n.cfg.DataDir,
		Socket: filepath.Join(n.cfg.RunDir, api.SocketName), Device: Device,
		Shards: n.cfg.Shards, Encrypted: true, Nodes: api.NodeCount{Total: 1, Alive: 1},
	}
	n.mu.Lock()
	s.Phase, s.WaitsFor = n.phase, n.waitsFor
	for _, about := range slices.Sorted(maps.Keys(n.warning)) {
		s.Warnings = append(s.Warnings, n.warning[about])
	}
	n.mu.Unlock()
	s.Ready = s.Phase == api.Ready
	policies, warnings := n.policyStatus()
	s.Policies, s.Warnings = policies, append(s.Warnings, warnings...)
	e := n.engines()
	if e == nil {
		for _, t := range n.joinTargets() {
			s.Targets = append(s.Targets, api.Target{Host: t, State: "waiting: " + s.WaitsFor})
		}
		return s
	}
	s.Encrypted = !e.kernel.plain
	s.Universe, s.MeshID, s.Reserve = e.universe.String(), meshID(e.mesh.Universe()), e.mesh.Universe().Reserve
	s.MTU, s.Offloads = n.mtu, e.plane.Offloads().names()
	s.TUN, s.Shards = string(e.plane.TUN()), e.plane.Shards()
	if l, ok := e.alloc.Lookup(hostOwner); ok && s.Phase != api.Retired {
		s.Addresses = addresses(l)
	}
	nodes := e.members()
	s.Nodes = countNodes(nodes)
	s.Warnings = append(s.Warnings, sameNames(nodes)...)
	s.Warnings = append(s.Warnings, e.workloads.warnings()...)
	if c := e.alloc.Usage(); c.Conflicts > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the ring saw %d conflicting claims to addresses, the last one %s; find the node that was copied or restored from a backup", c.Conflicts, c.LastConflict))
	}
	s.Workloads = len(e.workloads.list())
	for _, t := range e.mesh.Targets() {
		s.Targets = append(s.Targets, api.Target{Host: t.Host, State: t.State})
	}
	stats := e.plane.Stats()
	s.Packets = packetCounts(stats)
	s.Reach, s.Relaying = n.reachStatus(e, nodes, e.plane.PeerStats()), n.relaying(stats)
	s.Rotation = n.rotor.status(e)
	s.Kernel = n.kernelStatus(e, nodes, e.plane.PeerStats())
	s.Warnings = append(s.Warnings, e.kernel.unreachable()...)
	return s
}

func packetCounts(s router.Stats) map[string]uint64 {
	m := map[string]uint64{
		"rx_packets": s.RxPackets, "rx_bytes": s.RxBytes, "tx_packets": s.TxPackets, "tx_bytes": s.TxBytes,
		"gossip_rx": s.ControlRx, "gossip_tx": s.ControlTx, "handshakes": s.Handshakes,
		"proofs_rx": s.ProofsRx, "proofs_tx": s.ProofsTx,
		"probes_tx": s.ProbesTx, "probes_acked": s.ProbesAcked,
		"relayed_packets": s.Relayed.Packets, "relayed_bytes": s.Relayed.Bytes, "relayed_control": s.ControlRelayed,
	}
	for r, count := range s.Drops {
		m["drop_"+r.String()] = count
	}
	return m
}

func meshID(u mesh.UniverseInfo) string {
	if !u.Known() {
		return ""
	}
	return fmt.Sprintf("%x", u.ID)
}

func countNodes(nodes []mesh.Node) (c api.NodeCount) {
	for _, m := range nodes {
		if m.Status == mesh.Left {
			continue
		}
		c.Total++
		if m.Status == mesh.Self || m.Status == mesh.Alive {
			c.Alive++
		}
	}
	return c
}

// sameNames warns of nodes that bear one name, which no command can then name.
func sameNames(nodes []mesh.Node) []string {
	count := map[string]int{}
	for _, m := range nodes {
		if m.Status != mesh.Left && m.Name != "" {
			count[m.Name]++
		}
	}
	var w []string
	for _, name := range slices.Sorted(maps.Keys(count)) {
		if count[name] > 1 {
			w = append(w, fmt.Sprintf("%d nodes are named %s; give each a name of its own with --name", count[name], name))
		}
	}
	return w
}

// Peers implements [api.Service].
func (n *Node) Peers() []api.Peer {
	e := n.engines()
	if e == nil {
		return []api.Peer{}
	}
	stats := map[session.PublicKey]router.PeerStats{}
	for _, p := range e.plane.PeerStats() {
		stats[p.Key] = p
	}
	owned, holdings := map[mesh.NodeID][]netip.Prefix{}, e.alloc.Owned()
	for _, h := range holdings {
		owned[mesh.NodeID(h.Owner)] = h.Prefixes
	}
	retired := retirees(e.alloc.Retirements())
	peers := []api.Peer{}
	nodes := e.mesh.Nodes()
	names, byKernel := shownNames(nodes), e.kernel.describe(nodes)
	for _, m := range nodes {
		if m.Status == mesh.Self {
			continue
		}
		p := api.Peer{
			Name: m.Name, NodeID: m.ID.String(), State: m.Status.String(), Since: m.Since, Build: m.Build,
			Prefixes: owned[m.ID], MTU: int(m.MTU), Gone: isGone(m, retired[m.ID], holdings),
		}
		if retired[m.ID] {
			p.State = string(api.Retired)
		}
		if s, ok := stats[session.PublicKey(m.PublicKey)]; ok {
			p.Session = string(s.State)
			describePath(&p, s, names, m.Blocked)
			p.RxBytes, p.TxBytes, p.RxPackets, p.TxPackets = s.RxBytes, s.TxBytes, s.RxPackets, s.TxPackets
			p.PathMTU, p.PathMTUConfirmed = s.MTU, s.Confirmed
			if s.Endpoint.IsValid() {
				p.Endpoint = s.Endpoint.String()
			}
			if s.State != router.Idle {
				p.Suite = s.Suite.String()
			}
			if !s.Handshake.IsZero() {
				p.LastHandshake = &s.Handshake
			}
		}
		if x, ok := byKernel[m.ID]; ok {
			p.Kernel = &x
			if p.SealedPath = p.Path; x.Path != fastpath.UDP.String() {
				p.Path = x.Path
			}
		}
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b api.Peer) int { return compareNames(a.Name, a.NodeID, b.Name, b.NodeID) })
	return peers
}

// Workloads implements [api.Service].
func (n *Node) Workloads() []api.Workload {
	list := []api.Workload{}
	if e := n.engines(); e != nil {
		for _, w := range e.workloads.list() {
			list = append(list, e.workloads.describe(w))
		}
	}
	return list
}

// IPAM implements [api.Service].
func (n *Node) IPAM() api.IPAM {
	e := n.engines()
	if e == nil {
		return api.IPAM{Holdings: []api.Holding{}, Allocations: []api.Allocation{}}
	}
	u := e.alloc.Usage()
	res := api.IPAM{
		Universe: e.universe.String(), MeshID: meshID(e.mesh.Universe()), Size: u.Size,
		Reserve: e.mesh.Universe().Reserve, Reserved: u.Reserved,
		Free: u.Free, Quarantined: u.Resting, Pending: u.Pending,
		Holdings: []api.Holding{}, Allocations: []api.Allocation{},
	}
	name := n.nameOf(e.mesh)
	for _, h := range e.alloc.Owned() {
		res.Holdings = append(res.Holdings, api.Holding{
			Node: name(h.Owner), NodeID: mesh.NodeID(h.Owner).String(), Slots: h.Slots, Prefixes: append([]netip.Prefix{}, h.Prefixes...),
			Percent: 100 * float64(h.Slots) / float64(max(e.universe.Size(), 1)),
		})
	}
	slices.SortFunc(res.Holdings, func(a, b api.Holding) int { return compareNames(a.Node, a.NodeID, b.Node, b.NodeID) })
	for _, l := range e.alloc.List() {
		res.Allocations = append(res.Allocations, api.Allocation{Owner: l.Owner, Addresses: addresses(l)})
	}
	for _, r := range e.alloc.Reclaims() {
		res.Takeovers = append(res.Takeovers, takeover(r, name))
	}
	for _, r := range e.alloc.Retirements() {
		res.Retirements = append(res.Retirements, retirement(r, name))
	}
	if n.whyRetired() != nil {
		res.Notes = append(res.Notes, "this node is retired: others may use what is allocated here")
		return res
	}
	if u.Outgoing > 0 {
		res.Notes = append(res.Notes, fmt.Sprintf("%d addresses were granted to nodes that have not said yet that they have them", u.Outgoing))
	}
	if !u.Majority {
		res.Notes = append(res.Notes, "the nodes that answer own no majority of the range: nothing is granted until more of them answer; each goes on with what it has")
	}
	for _, w := range u.Waiting {
		res.Notes = append(res.Notes, fmt.Sprintf("%s waits for an address since %s: %s", w.Owner, w.Since.Format(time.TimeOnly), w.Reason))
	}
	return res
}

// Token implements [api.Service].
func (n *Node) Token() (api.Token, error) {
	e := n.engines()
	if e == nil {
		return api.Token{}, n.errNotReady()
	}
	t := n.rotor.snapshot().Tokens[0].Token.Reveal()
	n.mu.Lock()
	refused := n.warning["token"] // see rotor
	n.mu.Unlock()
	return api.Token{Token: t, Command: n.joinCommand(e, "WEFT_TOKEN="+t+" weft launch"), Warning: refused}, nil
}

// joinCommand completes a launch command with what joins this node's mesh.
func (n *Node) joinCommand(e *engines, launch string) string {
	addr := e.where.exit().Addr.String()
	if n.cfg.Port != DefaultPort {
		p := strconv.Itoa(int(n.cfg.Port))
		return fmt.Sprintf("%s --port %s --peer %s", launch, p, net.JoinHostPort(addr, p))
	}
	return launch + " --peer " + addr
}

// invite prints how the next host joins; the token itself is shown to a person
// at a terminal only, as anything else may be a log.
func (n *Node) invite(e *engines) {
	text := "To join, run on the next host, with the token that `weft token --raw` prints here in FILE (mode 0600):\n\n    " +
		n.joinCommand(e, "weft launch --token-file FILE") + "\n\n"
	if n.cfg.Interactive {
		text = "To join, run on the next host:\n\n    " + n.joinCommand(e, "WEFT_TOKEN="+n.rotor.snapshot().Tokens[0].Token.Reveal()+" weft launch") + "\n\n"
	}
	if _, err := fmt.Fprint(n.cfg.Out, text); err != nil {
		n.log.Warn("the join command could not be printed; weft token prints it, too", zap.Error(err))
	}
}

// Attach implements [api.Service].
func (n *Node) Attach(ctx context.Context, r api.AttachRequest) (api.Workload, error) {
	e, err := n.ready()
	if err != nil {
		return api.Workload{}, err
	}
	return e.workloads.attachNetns(ctx, r)
}

// Detach implements [api.Service].
func (n *Node) Detach(_ context.Context, r api.DetachRequest) (api.DetachResult, error) {
	e, err := n.ready()
	if err != nil && n.whyRetired() == nil { // a retired node still lets go of what it has
		return api.DetachResult{}, err
	}
	if e == nil {
		e = n.engines()
	}
	return e.workloads.detachNetns(r)
}

func compareNames(name1, id1, name2, id2 string) int {
	if name1 != name2 {
		if name1 < name2 {
			return -1
		}
		return 1
	}
	if id1 < id2 {
		return -1
	}
	return 1
}

var (
	_ api.Service = (*Node)(nil)
	_ ipam.Net    = (*ipamNet)(nil)
	_ ipam.Store  = ipamStore{}
)

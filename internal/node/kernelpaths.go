// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/fastpath/kernel"
)

// Kernel paths. Where two nodes trust the network between them, packets pass by the kernel, in plaintext: by VXLAN, or by a route to the
// other host. The parts know nothing of each other and meet here: fastpath plans and decides, probe asks, the router brings the
// answers, kernel has the routes, hostnet the rules of what may enter and leave in plaintext.
//
// One goroutine, run, owns the machine and whatever it decides. The rules are always as wide as the routes: what is to be allowed is allowed before a
// route leads there, and forbidden after none does any more.

const (
	// surveyGap is the shortest time between two looks at who may be reached how: a burst of gossip costs one. surveyAgain is the longest, as the routes
	// of the host change without a word.
	surveyGap, surveyAgain = 100 * time.Millisecond, 5 * time.Second
	// trafficGap is how often packets are counted, to know which paths are in use.
	trafficGap = 500 * time.Millisecond
	// mendGap is the shortest time between two comparisons of what the kernel has with what it should have.
	mendGap = 200 * time.Millisecond
	// ruleGap is after what time rules that were refused are tried again.
	ruleGap = time.Second
	// maxProofs is how many answers to probes may wait.
	maxProofs = 4096
)

// kernelPaths is the engine of kernel paths.
type kernelPaths struct {
	n      *Node
	e      *engines
	kernel pathKernel
	bypass flowBypass // nil: none
	log    *zap.Logger

	trusted []netip.Prefix
	plain   bool // the mesh was founded without encryption
	vxlan4  bool // VXLAN is possible over IPv4, and
	vxlan6  bool // over IPv6

	wake    signal // something that planning needs may have changed
	foreign signal // somebody may have changed what is ours
	proofs  chan proof
	asks    chan func()   // run by the engine's goroutine
	began   chan struct{} // closed when asks are answered
	ended   chan struct{} // closed when they are not any more

	answers atomic.Bool // probes of others are, or never will be

	mu      sync.Mutex
	kinds   []fastpath.Kind // direct and vxlan, as far as they are allowed and this host can do them; empty: the engine does not run
	lacking []string        // what the host cannot do, and what to do about it, one line each
	wants   map[mesh.NodeID]fastpath.Want
	known   map[uint64]neighbour // whose probes are answered
	keep    bool                 // the paths outlive the daemon
	through string               // why there is no bypass

	// Of the engine's goroutine, and of adopt before it runs.
	machine    *fastpath.Machine
	peers      []fastpath.Peer // when it was planned last,
	planned    time.Time       // which was then
	names      map[uint64]string
	ports      map[uint64]uint16 // where their tunnels end
	prefixes   map[uint64][]netip.Prefix
	candidates []fastpath.Candidate
	desired    kernel.Desired
	rules      hostnet.Plaintext // in place
	ruled      bool              // nftables takes the rules of kernel paths
	short      bool              // the last rules were refused: some routes may not be as wanted
	counted    map[netip.Prefix]uint64
	sealed     map[uint64]uint64 // packets by the router, by node
	failed     string            // what could not be put in place
}

// proof is an answer to a probe.
type proof struct {
	node, echo uint64
	at         time.Time
}

// neighbour is a node whose probes are answered: they must come from its addresses and, without a tunnel, by one of its networks.
type neighbour struct {
	hosts   []netip.Addr
	devices []string
}

// vxlanPort is the UDP port of VXLAN, 0 if there is none.
func vxlanPort(port uint16) uint16 { return port + 1 }

// newKernelPaths finds out what is possible. Without trust in anything it changes nothing, and possible is nothing.
func (n *Node) newKernelPaths(e *engines) (*kernelPaths, error) {
	k := &kernelPaths{
		n: n, e: e, log: n.log.Named("paths"), trusted: n.cfg.Kernel.trusted(), plain: n.state.universe.Plain,
		wake: newSignal(), foreign: newSignal(), proofs: make(chan proof, maxProofs), asks: make(chan func()), began: make(chan struct{}), ended: make(chan struct{}),
		known: map[uint64]neighbour{}, machine: fastpath.New(fastpath.Config{Rand: rand.Reader, Asks: true}),
		kernel: n.sys.kernel(kernel.Config{
			ID: uint64(n.state.identity.ID), VNI: n.cfg.Kernel.VNI, Port: vxlanPort(n.cfg.Port), Group: hostnet.GroupPaths, Log: n.log.Named("paths"),
		}),
	}
	var err error
	if k.wants, err = loadWants(n.store); err != nil {
		return nil, err
	}
	if k.trusts() {
		k.findKinds()
	}
	k.findBypass()
	return k, nil
}

// trusts tells whether this node trusts any network.
func (k *kernelPaths) trusts() bool { return k.plain || len(k.trusted) > 0 }

// lacks is what this host cannot do.
func (k *kernelPaths) lacks() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lacking
}

// on tells whether there is anything to do.
func (k *kernelPaths) on() bool { return len(k.offered()) > 0 }

// findKinds asks kernel and nftables what they can do.
func (k *kernelPaths) findKinds() {
	lacks := func(format string, err error) {
		k.lacking = append(k.lacking, format+err.Error())
	}
	paths := k.n.cfg.Kernel.Paths
	if !paths.allows(fastpath.Direct) && !paths.allows(fastpath.VXLAN) {
		return
	}
	if err := k.e.workloads.host.Support(); err != nil {
		lacks("no kernel path is possible: ", err)
		return
	}
	can := k.kernel.Support()
	if can.Rules != nil {
		lacks("no kernel path is possible: ", can.Rules)
		return
	}
	k.ruled = true
	if paths.allows(fastpath.Direct) {
		k.kinds = append(k.kinds, fastpath.Direct)
	}
	if !paths.allows(fastpath.VXLAN) {
		return
	}
	switch {
	case vxlanPort(k.n.cfg.Port) == 0:
		lacks("vxlan is not possible: ", errors.New("its port would be the one above 65535; choose another --port"))
		return
	case can.VXLAN4 != nil:
		lacks("vxlan is not possible over IPv4: ", can.VXLAN4)
	}
	if can.VXLAN6 != nil && (can.VXLAN4 == nil || can.VXLAN6.Error() != can.VXLAN4.Error()) {
		lacks("vxlan is not possible over IPv6: ", can.VXLAN6)
	}
	k.vxlan4, k.vxlan6 = can.VXLAN4 == nil, can.VXLAN6 == nil
	if k.vxlan4 || k.vxlan6 {
		k.kinds = append(k.kinds, fastpath.VXLAN)
	}
}

// proof takes an answer to a probe. It does not block.
func (k *kernelPaths) proof(node, echo uint64, at time.Time) {
	select {
	case k.proofs <- proof{node, echo, at}:
	default:
	}
}

// run keeps the kernel paths as they should be, until ctx ends.
func (k *kernelPaths) run(ctx context.Context) error {
	over, err := k.serve(ctx)
	close(k.ended) // who asks does not wait for what follows
	if over {
		k.off(ctx)
	}
	if err != nil {
		k.fail(err)
	}
	return nil
}

// serve is run as long as there is something to be done by the kernel; over tells that there is nothing any more, because of the error if there is one.
func (k *kernelPaths) serve(ctx context.Context) (over bool, err error) {
	if !k.on() {
		k.answers.Store(true)
		return false, nil
	}
	probes, err := k.n.sys.probes(probeConfig{id: uint64(k.n.state.identity.ID), hosts: k.hosts(), port: k.n.cfg.Port}, k.answer, k.log)
	if err != nil {
		return true, err
	}
	var wg sync.WaitGroup
	inner, stop := context.WithCancel(ctx)
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		if err := probes.Run(inner); err != nil && inner.Err() == nil {
			k.log.Error("probes of other nodes are not received any more; restart the daemon", zap.Error(err))
		}
	})
	if k.bypass != nil {
		wg.Go(func() {
			if err := k.bypass.Run(inner); err != nil && inner.Err() == nil {
				k.log.Warn("packets of established flows all go through the host's stack; restart the daemon", zap.Error(err))
			}
		})
	}
	wg.Go(func() {
		if err := k.kernel.Watch(inner, k.foreign.raise); err != nil && inner.Err() == nil {
			k.log.Warn("changes of the kernel's paths by others are noticed late: only twice a minute", zap.Error(err))
		}
	})
	return k.loop(ctx, probes), nil
}

// loop is serve once everything is there.
func (k *kernelPaths) loop(ctx context.Context, probes pathProbes) (over bool) {
	traffic, mend := time.NewTicker(trafficGap), time.NewTicker(repairInterval)
	defer traffic.Stop()
	defer mend.Stop()
	var survey, mending, retry <-chan time.Time // due
	surveyed, mended := time.Now(), time.Now()
	k.plan(surveyed)
	k.effect(surveyed) // also what adopt has planned
	k.answers.Store(true)
	close(k.began)
	for {
		if k.n.whyRetired() != nil {
			k.log.Info("this node is retired: no packet goes by the kernel any more")
			return true
		}
		if k.short && retry == nil {
			retry = time.After(ruleGap)
		}
		var next <-chan time.Time
		if at := k.step(probes, time.Now()); !at.IsZero() {
			next = time.After(time.Until(at))
		}
		select {
		case <-ctx.Done():
			return false
		case <-next:
		case <-retry:
			retry = nil
			k.carryOut()
		case p := <-k.proofs:
			k.machine.Proof(p.node, p.echo, p.at)
		case ask := <-k.asks:
			ask()
		case <-k.wake:
			if survey == nil {
				survey = time.After(max(0, surveyGap-time.Since(surveyed)))
			}
		case <-survey:
			survey, surveyed = nil, time.Now()
			k.survey(surveyed)
		case <-k.foreign:
			if mending == nil {
				mending = time.After(max(0, mendGap-time.Since(mended)))
			}
		case <-mending:
			mending, mended = nil, time.Now()
			k.mend()
		case <-mend.C:
			mended = time.Now()
			k.mend()
		case <-traffic.C:
			k.count(time.Now())
			if time.Since(surveyed) > surveyAgain {
				k.wake.raise()
			}
		}
	}
}

// step hands the machine all proofs that have come, does what it says, and returns when it is to be asked again.
func (k *kernelPaths) step(probes pathProbes, now time.Time) time.Time {
	for more := true; more; {
		select {
		case p := <-k.proofs:
			k.machine.Proof(p.node, p.echo, p.at)
		default:
			more = false
		}
	}
	do, next := k.machine.Step(now)
	var switched []fastpath.Action
	for _, a := range do {
		switch a.Kind {
		case fastpath.Send:
			send := probes.Send
			if a.Way == fastpath.UDP {
				send = func(a fastpath.Action) error { return k.e.plane.SendAsk(a.ID, a.Echo) }
			}
			if err := send(a); err != nil {
				k.machine.Unsent(a.Echo, err, now)
			}
		case fastpath.Switch:
			switched = append(switched, a)
		}
	}
	if len(switched) > 0 {
		k.carryOut()
		k.tell(switched)
	}
	return next
}

// asked answers a node that asks whether there is anybody who answers probes. Nobody does before everything is there: a node that has just started is not
// to be taken for one that is not reached by the kernel.
func (k *kernelPaths) asked(node, echo uint64, _ time.Time) {
	if !k.answers.Load() {
		return
	}
	if err := k.e.plane.SendProof(node, echo); err != nil {
		k.log.Debug("a node that asks could not be answered", zap.Stringer("node", mesh.NodeID(node)), zap.Error(err))
	}
}

// answer answers another node's probe, if it came by the way that it is to prove.
func (k *kernelPaths) answer(p probeSeen) {
	k.mu.Lock()
	from, known := k.known[p.from]
	k.mu.Unlock()
	if !known || !slices.Contains(from.hosts, p.source) {
		return
	}
	switch p.way {
	case fastpath.VXLAN:
		if p.device != deviceVXLAN4 && p.device != deviceVXLAN6 {
			return
		}
	case fastpath.Direct:
		if !slices.Contains(from.devices, p.device) {
			return
		}
	default:
		return
	}
	if err := k.e.plane.SendProof(p.from, p.echo); err != nil {
		k.log.Debug("a probe could not be answered", zap.Stringer("node", mesh.NodeID(p.from)), zap.Error(err))
	}
}

// ask has the engine's goroutine run f; false: it does not run.
func (k *kernelPaths) ask(f func()) bool {
	select {
	case <-k.began:
	default:
		return false
	}
	done := make(chan struct{})
	select {
	case k.asks <- func() { defer close(done); f() }:
		<-done
		return true
	case <-k.ended:
		return false
	}
}

// hosts are this host's own addresses on the overlay, of the families that it can do.
func (k *kernelPaths) hosts() []netip.Addr {
	l, ok := k.e.alloc.Lookup(hostOwner)
	if !ok {
		return nil
	}
	list := addresses(l)
	if l.V6.IsValid() && !k.e.workloads.host.CarriesIPv6(Device, k.n.mtu) {
		list = slices.DeleteFunc(list, netip.Addr.Is6)
	}
	return list
}

// fail says what could not be put in place; nil takes that back.
func (k *kernelPaths) fail(err error) {
	text := ""
	if err != nil {
		text = "kernel paths: " + oneLine(err)
	}
	if text != k.failed && text != "" {
		k.log.Warn("kernel paths could not be put in place; trying again", zap.String("error", text))
	}
	k.failed = text
	k.n.setWarning("paths", text)
}

// adopt takes over what an earlier run has left in the kernel, as far as it is still consented to by what is known of the others, so that no
// packet is lost; the rest goes. It comes before the rules are put in place, which are to allow the same.
func (k *kernelPaths) adopt(now time.Time) {
	if !k.on() || k.n.whyRetired() != nil {
		if err := k.remove(); err != nil {
			k.log.Warn("not all kernel paths of an earlier run could be removed; run weft reset", zap.Error(err))
		}
		return
	}
	if err := k.kernel.Retire(); err != nil {
		k.log.Warn("a VXLAN device of an earlier run could not be removed; delete it by hand: what arrives by it is not filtered", zap.Error(err))
	}
	k.plan(now)
	d, _ := k.wanted()
	found, err := k.kernel.Found(d)
	if err != nil {
		k.log.Warn("kernel paths of an earlier run cannot be taken over; they are made anew", zap.Error(err))
	}
	for i := range k.candidates {
		c := &k.candidates[i]
		if kind := found[c.ID]; kind != fastpath.UDP {
			if _, possible := c.Way(kind); possible {
				k.machine.Adopt(c.ID, kind, now)
				k.log.Info("kernel path of an earlier run taken over", zap.String("node", k.names[c.ID]), zap.Stringer("path", kind))
			}
		}
	}
	_, rules := k.wanted()
	if err := k.e.workloads.setPlain(rules, loose(k.candidates)); err == nil {
		k.rules = rules
	}
}

// workloadMTU is that of new workloads: what the widest way takes, 0 if there is none. The kernel tells them where a way is narrower.
func (k *kernelPaths) workloadMTU() int {
	below := k.e.where.exit().MTU
	switch kinds := k.offered(); {
	case k.n.cfg.MTU != 0 || below == 0:
		return 0
	case slices.Contains(kinds, fastpath.Direct):
		return max(below, k.n.mtu)
	case k.vxlan4:
		return max(below-fastpath.Overhead4, k.n.mtu)
	case k.vxlan6:
		return max(below-fastpath.Overhead6, k.n.mtu)
	}
	return 0
}

// sealed takes their addresses from the peers of the router where packets may not go by it (--paths).
func (n *Node) sealed(peers []router.Peer) []router.Peer {
	if n.cfg.Kernel.Paths.allows(fastpath.UDP) {
		return peers
	}
	for i := range peers {
		peers[i].Prefixes = nil
	}
	return peers
}

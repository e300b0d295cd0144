// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/token"
)

const (
	// look is how often the node is looked at, and lookAround how often its mesh is.
	look       = 250 * time.Millisecond
	lookAround = 5 * time.Second
	// glancePatience bounds a question to the API server on whose answer nothing depends.
	glancePatience = time.Second
	// spread is the time over which nodes that start with a mesh spread their first requests.
	spread = 10 * time.Second
	// joinPatience is how long a node looks for its mesh before it says what may be wrong.
	joinPatience = 30 * time.Second
)

// Daemon is the node that an [Agent] directs. Its methods are safe for concurrent use.
type Daemon interface {
	Phase() (p api.Phase, waitsFor string)
	Status() api.Status
	IPAM() api.IPAM
	Token() (api.Token, error)
	// GaveUp tells whether a token is one that the node had before the mesh's was rotated.
	GaveUp(t token.Token) bool
	// Adopt goes over to a token that the mesh was rotated to while the node was away, if others accept it. It does nothing if the node has it already.
	Adopt(ctx context.Context, t token.Token) error
	Members() []Member
	Direct(hosts []string) error
	Warn(about, text string)
	Forget(ctx context.Context, r api.ForgetRequest, progress func(api.ForgetProgress)) (api.ForgetResult, error)
	// Policies is who enforces network policies, from the beginning of Run on; nil: nobody does.
	Policies() Sink
}

// Config says what an [Agent] works with.
type Config struct {
	Cluster   *Cluster
	Node      string // name of this host's Node object
	Namespace string // of Secret and DaemonSet
	DaemonSet string // that runs this; empty: none does, and nothing is removed when one is deleted
	// Range and Encryption ("on" or "off") are those of a mesh that this node founds; an empty Range is found out, or DefaultRange.
	Range, DefaultRange string
	Encryption          string
	// Up is called when traffic can flow for the first time, and again while it fails.
	Up   func(ctx context.Context) error
	Rand io.Reader // of tokens
	Log  *zap.Logger
}

// An Agent directs one node by what the cluster says. Begin, Confirm and Run are called one after the other, and again if the node begins
// anew, but for Confirm, which may be called while Run runs; Health and Removed at any time.
type Agent struct {
	cfg     Config
	changed chan struct{} // something that is mirrored did
	nodes   *mirror[machine]
	secret  *mirror[*secret]
	set     *mirror[*daemonSet]
	events  *recorder
	feed    *feed
	bad     *problems
	working sync.WaitGroup
	ctx     context.Context //nolint:containedctx // of what follows the cluster, from New to Close
	cancel  context.CancelFunc

	mu        sync.Mutex
	following bool
	stage     string // what is done before the node has a phase
	phase     api.Phase
	up        bool     // Up has succeeded
	joining   founding // by which the node was told to join
	seen      bool     // the DaemonSet was there
	deleted   bool     // and is not any more, or not for long
}

// New makes an agent, which does nothing yet. Close ends what it begins.
func New(c Config) *Agent {
	a := &Agent{cfg: c, changed: make(chan struct{}, 1), stage: "starting"}
	a.nodes = newMirror(c.Cluster.nodes(), "", trimNode, a.nodesChanged)
	a.secret = newMirror(c.Cluster.secrets(c.Namespace), SecretName, func(s *secret) *secret {
		s.ManagedFields, s.Annotations = nil, nil
		return s
	}, a.raise)
	a.set = newMirror(c.Cluster.daemonSets(c.Namespace), c.DaemonSet, func(s *daemonSet) *daemonSet {
		s.ManagedFields, s.Annotations = nil, nil
		return s
	}, a.setChanged)
	a.events = newRecorder(c.Cluster, c.Node, c.Log)
	a.bad = newProblems()
	a.feed = newFeed(c.Cluster, c.Log, a.bad.note, a.raise)
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// Close ends what the agent has begun, and waits for that.
func (a *Agent) Close() {
	a.cancel()
	a.working.Wait()
}

func (a *Agent) raise() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// nodesChanged has policies know the nodes.
func (a *Agent) nodesChanged() {
	if _, synced := a.nodes.snapshot(); synced {
		a.feed.followNodes(func() map[string]machine {
			all, _ := a.nodes.snapshot()
			return all
		})
	}
	a.raise()
}

// setChanged remembers that the DaemonSet was deleted, which the API server may not tell any more when that matters.
func (a *Agent) setChanged() {
	s, ok, synced := a.set.get(a.cfg.DaemonSet)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = a.seen || ok
	a.deleted = synced && a.seen && (!ok || s.DeletionTimestamp != nil)
}

// follow begins to follow the cluster, once, some time within the next.
func (a *Agent) follow(within time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.following {
		return
	}
	a.following = true
	runs := []func(context.Context){a.nodes.run, a.secret.run}
	if a.cfg.DaemonSet != "" {
		runs = append(runs, a.set.run)
	}
	a.working.Go(func() { a.events.run(a.ctx) })
	a.working.Go(func() { a.feed.run(a.ctx, min(within, feedSpread)) })
	for _, run := range runs {
		a.working.Go(func() {
			if within > 0 {
				select {
				case <-a.ctx.Done():
				case <-time.After(rand.N(within)):
				}
			}
			run(a.ctx)
		})
	}
}

func (a *Agent) setStage(s string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stage, a.phase = s, ""
}

// StandBy says that this node waits for another daemon on its host to end. It can take over at once.
func (a *Agent) StandBy(by string) {
	a.cfg.Log.Info("standing by: another daemon runs on this host, and this one takes over when it ends", zap.String("daemon", by))
	a.setStage(standingBy)
	a.follow(0) // so that nothing has to be asked for when it takes over
}

const standingBy = "standing by"

// Attached tells what does not work for a pod.
func (a *Agent) Attached(p Pod, warnings []string) {
	for _, w := range warnings {
		a.events.onPod(p, warning, "NetworkWarning", w)
	}
}

// Refused tells why a pod was not attached.
func (a *Agent) Refused(p Pod, why string) { a.events.onPod(p, warning, "NotAttached", why) }

// Health says whether this node does its work, or could at once in the place of another, and in a line what it does.
func (a *Agent) Health() (ready bool, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.phase == "":
		return a.stage == standingBy, a.stage
	case a.phase == api.Ready && !a.up:
		return false, "ready, but for the CNI configuration"
	}
	return a.phase == api.Ready, string(a.phase)
}

// Removed tells whether the DaemonSet that runs this was deleted, so that nothing is to stay on this host. One that was never seen does not count: it may
// have another name.
func (a *Agent) Removed(ctx context.Context) bool {
	a.mu.Lock()
	seen, deleted := a.seen, a.deleted
	a.mu.Unlock()
	if !seen {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, glancePatience)
	defer cancel()
	var s daemonSet
	err := a.cfg.Cluster.daemonSets(a.cfg.Namespace).get(ctx, a.cfg.DaemonSet, &s)
	switch {
	case err == nil:
		return s.DeletionTimestamp != nil
	case errors.Is(err, errMissing):
		return true
	}
	return deleted // the right to ask may have been deleted, too
}

// Run directs the node until ctx ends, and returns nil then; an error says why the node must end. One that wraps [ErrAnew] says that it is to
// begin anew.
func (a *Agent) Run(ctx context.Context, id string, d Daemon) error {
	if s := d.Policies(); s != nil {
		a.feed.to(s)
	}
	a.follow(spread)
	r := &run{a: a, id: id, d: d, began: time.Now(), reclaim: reclaimer{since: map[string]time.Time{}, tried: map[string]time.Time{}}}
	defer r.forgetting.Wait()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for news := true; ; {
		if err := r.step(ctx, news); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.changed:
			news = true
		case <-tick.C:
			news = false
		}
	}
}

// run is what one Run knows.
type run struct {
	a     *Agent
	id    string
	d     Daemon
	began time.Time

	mesh       string // ID of the node's mesh; empty: not known yet
	phase      api.Phase
	around     time.Time // when it was last looked around
	telling    attempt
	keeping    attempt
	adopting   attempt
	upping     attempt
	peers      []string  // whom the node is told to connect to
	chosen     uint64    // state of the Nodes that they were chosen from
	absent     time.Time // since when the Secret is not what it should be; zero: it is
	turn       time.Time // when this node is to put it right, and looks at it once more; zero: not to
	reclaim    reclaimer
	forgetting sync.WaitGroup
}

// attempt is something that is tried again, with growing patience.
type attempt struct {
	next time.Time
	wait time.Duration
}

// try does it if it is time to. After a success it may be done again at once.
func (t *attempt) try(do func() error) error {
	if t.wait > 0 && time.Now().Before(t.next) {
		return nil
	}
	err := do()
	if err == nil {
		t.wait = 0
		return nil
	}
	t.wait = min(max(2*t.wait, retryAfter), time.Minute)
	t.next = time.Now().Add(t.wait + rand.N(t.wait/2))
	return err
}

// step looks at the node and, if there is news or it is time to, at the cluster and the mesh.
func (r *run) step(ctx context.Context, news bool) error {
	phase, waitsFor := r.d.Phase()
	r.a.mu.Lock()
	if phase != api.Starting || r.a.phase != "" {
		r.a.phase = phase
	}
	r.a.mu.Unlock()
	if phase != r.phase {
		r.phaseChanged(phase, waitsFor)
		news = true
	}
	if phase == api.Ready {
		r.bringUp(ctx)
	}
	around := time.Since(r.around) >= lookAround
	turn := !r.turn.IsZero() && !time.Now().Before(r.turn)
	if !news && !around && !turn {
		return nil
	}
	if turn {
		r.turn = time.Time{}
	}
	if around {
		r.around = time.Now()
	}
	state := r.a.nodes.state() // read first: it may be older than the nodes, never newer
	nodes, synced := r.a.nodes.snapshot()
	r.d.Warn("policies", r.a.feed.trouble())
	if synced && phase == api.Ready {
		for _, f := range r.a.bad.take(r.a.cfg.Node, nodes) {
			r.a.events.onPolicy(f)
		}
	}
	switch phase {
	case api.Joining:
		return r.join(nodes, around)
	case api.Ready, api.Waiting, api.Retired:
		r.report(ctx, nodes, phase, waitsFor)
	}
	if phase != api.Ready && phase != api.Waiting || !synced {
		return nil
	}
	if err := r.keep(ctx); err != nil || !around {
		return err
	}
	if state != r.chosen {
		r.peers, r.chosen = choosePeers(r.a.cfg.Node, nodes), state
	}
	if err := r.d.Direct(r.peers); err != nil {
		r.a.cfg.Log.Warn("the node could not be told whom to connect to", zap.Error(err))
	}
	for _, m := range r.reclaim.due(r.id, r.d.Members(), nodes, time.Now()) {
		r.forgetting.Go(func() { r.a.forget(ctx, r.d, m) })
	}
	r.fullness()
	return nil
}

func (r *run) phaseChanged(phase api.Phase, waitsFor string) {
	r.phase = phase
	switch phase {
	case api.Waiting:
		r.a.events.onNode(normal, "Waiting", "waiting for "+waitsFor)
	case api.Retired:
		r.a.events.onNode(warning, "Retired", waitsFor)
	}
}

// join directs a node that looks for its mesh, and has it begin anew if the Secret is another one by now.
func (r *run) join(nodes map[string]machine, around bool) error {
	r.a.mu.Lock()
	by := r.a.joining
	r.a.mu.Unlock()
	s, ok, synced := r.a.secret.get(SecretName)
	if synced && by.version != "" {
		f, err := readFounding(s)
		if !ok || err == nil && (!f.founded || f.founder != by.founder || !f.token.Equal(by.token)) {
			return fmt.Errorf("%w: Secret %s has changed", ErrAnew, r.a.secretPath())
		}
	}
	if !around {
		return nil
	}
	if hosts := chooseDoors(r.a.cfg.Node, by.founder.Node, nodes); len(hosts) > 0 {
		if err := r.d.Direct(hosts); err != nil {
			r.a.cfg.Log.Warn("the node could not be told whom to connect to", zap.Error(err))
		}
	}
	if time.Since(r.began) > joinPatience {
		text := fmt.Sprintf("no node of the mesh that Secret %s names answers; if all nodes were set up anew, that mesh is gone: delete the Secret to have one founded anew", r.a.secretPath())
		r.d.Warn("join", text)
		r.a.events.onNode(warning, "NoMesh", text)
	}
	return nil
}

// bringUp lets the cluster use the node.
func (r *run) bringUp(ctx context.Context) {
	r.a.mu.Lock()
	up := r.a.up
	r.a.mu.Unlock()
	if up {
		return
	}
	r.d.Warn("join", "")
	err := r.upping.try(func() error { return r.a.cfg.Up(ctx) })
	if err != nil {
		r.d.Warn("up", err.Error())
		r.a.cfg.Log.Error("the CNI configuration could not be installed", zap.Error(err))
		r.a.events.onNode(warning, "NotInstalled", brief(err))
		return
	}
	if r.upping.wait == 0 {
		r.d.Warn("up", "")
		r.a.mu.Lock()
		r.a.up = true
		r.a.mu.Unlock()
	}
}

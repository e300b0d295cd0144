// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
)

// stopPatience bounds how long telling the peers of one's end may take.
const stopPatience = 3 * time.Second

// errStopped is why a launch ends that was told to, by signal or by command.
var errStopped = errors.New("stopped")

// Node is a running daemon. Its fields are set before the control socket
// serves, but for those under mu and the engines, which come when they are made.
type Node struct {
	cfg     Config
	sys     system
	log     *zap.Logger
	started time.Time

	store   *store.Store
	history *history
	state   state
	rotor   *rotor
	// saveToken tells that the data directory has yet to get the token.
	saveToken  bool
	syncing    sync.Mutex // one syncPeers at a time; guards the three below
	lookAgain  time.Time  // see watcher.look
	records    *recordSaver
	keyCheck   keyCheck
	keyHolders keyHolders    // under syncing
	peers      []router.Peer // as the router has them, and those whose keys it would refuse
	mtu        int           // of workloads and TUN device; set before the engines
	setbacks   setbacks      // of the backlog
	backlog    *cni.Backlog  // what runtimes have deleted while no daemon was there
	changed    signal        // records or ring did
	targeted   signal        // the hosts to join by did
	policies   *enforce.Enforcer
	flows      flows
	hosts      map[string][]netip.Addr // as the policies have them; under syncing
	owners     *addrOwners             // likewise
	quit       context.CancelCauseFunc
	targeting  sync.Mutex // one connect or disconnect at a time

	running atomic.Pointer[engines]

	mu       sync.Mutex
	phase    api.Phase
	waitsFor string
	warning  map[string]string  // by what it is about
	leaving  bool               // the end is for good
	draining bool               // see drain.go
	retired  *ipam.RetiredError // nil: it is not
}

// Launch runs a node until ctx ends, which is no error, or until something that
// it cannot go on without fails.
func Launch(ctx context.Context, cfg Config) error { return launch(ctx, cfg, linux{}) }

func launch(ctx context.Context, cfg Config, sys system) (err error) {
	if err := cfg.check(); err != nil {
		return err
	}
	n := &Node{
		cfg: cfg, sys: sys, log: cfg.Log, started: time.Now(), changed: newSignal(), targeted: newSignal(),
		phase: api.Starting, warning: map[string]string{}, backlog: cni.NewBacklog(cfg.RunDir),
	}
	lock, err := n.takeLock(ctx)
	if err != nil {
		return whyEnded(ctx, err)
	}
	defer closing(&err, lock)
	if err := sys.probe(); err != nil {
		return err
	}
	if n.store, err = store.Open(cfg.DataDir, usable); err != nil {
		return err
	}
	done := n.store.Close
	defer func() { err = errors.Join(err, done()) }()
	if u, ok := n.store.Upgraded(); ok {
		n.log.Info("the state of an earlier version was upgraded; the old file is kept", zap.Uint32("from", u.From), zap.Uint32("to", u.To),
			zap.String("kept", filepath.Join(cfg.DataDir, u.Kept)))
	}
	if n.state, err = loadState(n.store); err != nil {
		return err
	}
	if n.state.first {
		done = n.store.Discard
	}
	if n.history, err = loadHistory(n.store, n.state.identity.ID, n.log.Named("events")); err != nil {
		return err
	}
	var found foundTokens
	if cfg.Guide == nil { // a refusal comes before anything is seen from outside
		if found, err = n.chooseMesh(); err != nil {
			return err
		}
	}
	endPolicies, err := n.startPolicies(ctx)
	if err != nil {
		return err
	}
	defer endPolicies()
	port, err := sys.listen(cfg.Port, cfg.Shards, cfg.Offloads, n.log.Named("underlay"))
	if err != nil {
		return err
	}
	defer func() {
		if port != nil {
			err = errors.Join(err, port.Close())
		}
	}()
	srv, err := sys.control(ctx, cfg.RunDir, n.serving(), n.log)
	if err != nil {
		return err
	}

	ctx, n.quit = context.WithCancelCause(ctx)
	defer n.quit(nil)
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	var served errgroup.Group
	served.Go(func() error {
		err := srv.Run(serving)
		n.quit(err)
		return err
	})
	defer func() {
		stopServing()
		endPolicies() // nobody waits for them any more
		err = errors.Join(err, served.Wait())
		if e := n.engines(); e != nil {
			e.workloads.host.Close() // nobody detaches any more
		}
	}()
	n.log.Info("weft starts", zap.String("version", cfg.Version), zap.String("name", cfg.Name),
		zap.Stringer("node", n.state.identity.ID), zap.String("socket", srv.Path()))

	if cfg.Guide != nil {
		if err := n.guided(ctx); err != nil {
			return whyEnded(ctx, err)
		}
		if found, err = n.chooseMesh(); err != nil {
			return err
		}
		defer n.beside(ctx)()
	}
	if n.state.universe.isZero() {
		if n.state.universe, err = n.findMesh(ctx); err != nil {
			return whyEnded(ctx, err)
		}
	}
	if !found.other.IsZero() {
		if err := n.tryToken(ctx, found.other); err != nil {
			return whyEnded(ctx, err)
		}
	}
	if !n.state.first {
		if err := n.refuseCopy(ctx); err != nil {
			return err
		}
	}
	e, err := n.makeEngines(ctx, port)
	if err != nil {
		return whyEnded(ctx, err)
	}
	port = nil // the engines' now
	defer closing(&err, e)
	founded := n.state.founding
	if err := n.confirm(ctx, e); err != nil {
		if done = n.store.Close; errors.Is(err, ErrAnew) {
			done = n.store.Discard
		}
		return n.unmade(ctx, e, err)
	}
	if err = n.run(ctx, e); err == nil || !n.state.first || founded || n.isMember(e) {
		done = n.store.Close
		return err
	}
	// Nobody has anything of this node's: the start is taken back.
	return errors.Join(err, n.undo(e))
}

// chooseMesh decides by configuration and data directory about token and universe.
func (n *Node) chooseMesh() (found foundTokens, err error) {
	if found, err = n.cfg.findToken(n.state.first); err != nil {
		return found, err
	}
	n.saveToken = found.save
	if n.cfg.TokenFile != "" {
		n.log.Warn("the token file is not there; going on with the token in the data directory", zap.String("file", n.cfg.TokenFile))
	}
	if n.rotor, err = newRotor(n, found.tokens); err != nil {
		return found, err
	}
	if n.state.universe, err = n.cfg.chooseUniverse(n.state); err != nil {
		return found, err
	}
	return found, n.cfg.checkAdvertise(n.state.universe)
}

// isMember tells whether others may have learnt from this node what would be
// wrong if it were gone: it owns addresses, and others are in the mesh.
func (n *Node) isMember(e *engines) bool {
	return e.alloc.Usage().Owned > 0 && countNodes(e.members()).Total > 1
}

// undo takes a first start off the host.
func (n *Node) undo(e *engines) error {
	_, kerr := e.kernel.kernel.Remove()
	_, err := e.workloads.host.Remove(e.workloads.changed())
	for _, path := range token.Files(n.cfg.DataDir) {
		if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return errors.Join(kerr, err, n.sys.removeDevice())
}

// findMesh asks the hosts of --peer which mesh they are of, for as long as none
// answers, and checks that this host fits into it.
func (n *Node) findMesh(ctx context.Context) (universe, error) {
	n.setPhase(api.Joining, "an answer of "+fmt.Sprint(n.cfg.Peers))
	tokens := n.rotor.snapshot()
	keys, err := planeKeys(tokens)
	if err != nil {
		return universe{}, err
	}
	probe := n.prober(tokens)
	probe.Knock = func(deliver func(b []byte, from mesh.Addr)) (mesh.Knocker, error) {
		return n.sys.knock(n.state.signer.ID(), keys, deliver)
	}
	u, err := finder{
		targets: n.joinTargets, again: n.targeted, network: n.sys.network(),
		probe: probe,
		waits: func(reason string) { n.setPhase(api.Joining, reason) },
		log:   n.log,
	}.find(ctx)
	if err != nil {
		return universe{}, err
	}
	if n.cfg.RangeGiven && n.cfg.Range != u.Range {
		return universe{}, fmt.Errorf("--range %s differs from the mesh's, which has %s; leave the flag out", n.cfg.Range, u.Range)
	}
	if err := n.cfg.checkAdvertise(u); err != nil {
		return universe{}, err
	}
	if err := n.cfg.checkReserve(u, "the", "leave the flag out"); err != nil {
		return universe{}, err
	}
	if err := n.cfg.Kernel.checkEncryption(u, "the", "leave the flag out, or join another mesh"); err != nil {
		return universe{}, err
	}
	n.warnPlain(u)
	return u, nil
}

// run brings the node up, keeps it going, and ends it in order: the peers are
// told first, the engines stop then.
func (n *Node) run(ctx context.Context, e *engines) error {
	g, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	working, stop := context.WithCancel(failed)
	defer stop()
	defer n.keepHistory(ctx)()
	e.start(working, g)
	n.running.Store(e)
	n.beginPolicies(e)
	if err := n.settleTargets(e); err != nil {
		n.log.Error("not all hosts of weft connect are connected to; restart the daemon", zap.Error(err))
	}
	g.Go(func() error { n.follow(working, e); return nil })
	g.Go(func() error { n.followClients(working, e); return nil })
	g.Go(func() error { n.followNetwork(working, e); return nil })
	g.Go(func() error { n.followPaths(working, e); return nil })
	g.Go(func() error { n.rotor.run(working, e); return nil })
	if e.shared != nil {
		g.Go(func() error { e.shared.run(working); return nil })
	}

	coming, giveUp := context.WithCancelCause(ctx)
	defer context.AfterFunc(failed, func() { giveUp(context.Cause(failed)) })()
	err := n.bringUp(coming, e)
	if err == nil {
		g.Go(func() error { n.repair(working, e.workloads); return nil })
		g.Go(func() error { return e.kernel.run(working) })
		g.Go(func() error { n.guard(working, e.workloads.host); return nil })
		g.Go(func() error { e.benches.Run(coming); return nil })
		<-coming.Done()
	}
	giveUp(nil)

	n.setPhase(api.Stopping, "")
	n.noteEnd(ctx, failed, err)
	n.sys.notify(daemon.SdNotifyStopping)
	inOrder := failed.Err() == nil
	if inOrder {
		tell, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
		left := n.isLeaving() || err != nil && n.state.first && !n.isMember(e)
		if terr := e.mesh.Stop(tell, left); terr != nil {
			n.log.Warn("the peers could not be told that this node stops; they find out by themselves", zap.Error(terr))
		}
		cancel()
	}
	stop()
	gerr := g.Wait()
	e.kernel.end(inOrder)
	n.log.Info("weft ends", zap.Duration("uptime", time.Since(n.started)))
	if gerr != nil && (err == nil || errors.Is(err, gerr)) {
		return gerr
	}
	return errors.Join(whyEnded(ctx, err), gerr)
}

// whyEnded is err, or nil if it only says that ctx ended because the node was
// told to stop.
func whyEnded(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, errStopped) || errors.Is(cause, context.Canceled) {
			return nil
		}
		return cause
	}
	return err
}

// setPhase says how far the node has come; one that is retired goes nowhere from there but to its end, and from that
// nowhere at all.
func (n *Node) setPhase(p api.Phase, waitsFor string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.phase == api.Retired && p != api.Stopping || n.phase == api.Stopping {
		return
	}
	n.phase, n.waitsFor = p, waitsFor
}

func (n *Node) isStopping() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.phase == api.Stopping
}

func (n *Node) isLeaving() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leaving
}

// setWarning sets the standing warning about a thing; an empty text takes it away.
func (n *Node) setWarning(about, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if text == "" {
		delete(n.warning, about)
	} else {
		n.warning[about] = text
	}
}

// closing closes c and adds what goes wrong to err.
func closing(err *error, c io.Closer) { *err = errors.Join(*err, c.Close()) }

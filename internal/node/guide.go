// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/netlock"
	"github.com/weftnet/weft/internal/rotation"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
)

const (
	keyFounding = "founding" // in Meta: the mesh was founded here, and the guide has yet to confirm it
	keyGuided   = "guided"   // in Meta: the hosts to connect to that the guide named last

	// FeatureGuided is how the members of a mesh that are directed by a guide know each other.
	FeatureGuided = "guided"

	standbyLook = 20 * time.Millisecond
)

// ErrAnew says that what this node had founded has been taken back, as another one founds the mesh: launch it again.
var ErrAnew = errors.New("another node founds the mesh")

// Guide directs a node whose surroundings, such as a cluster, know its mesh: whether to found or to join one, and whom to
// connect to. A node that has one waits for the daemon that still runs on this host to end, instead of refusing to start.
type Guide interface {
	// StandBy is told once if the node waits for another daemon, and who that is.
	StandBy(by string)
	// Begin says what the node is to do, given what its data directory says. Its error ends the launch.
	Begin(ctx context.Context, k Known, waits func(reason string)) (Orders, error)
	// Confirm is asked by a node that has founded a mesh, once that is on disk and before anybody else learns of it, as often as
	// it starts until it has agreed. An error that wraps [ErrAnew] takes the founding back; any other one ends the launch.
	Confirm(ctx context.Context, f Founded, waits func(reason string)) error
	// Attached is told what does not work for a pod that was attached, a line each. It is called from any goroutine, and does not block.
	Attached(p Pod, warnings []string)
	// Refused is told why a pod is not attached as long as its network policies are not in force. It is called as Attached is.
	Refused(p Pod, why string)
	// Run works beside the node until ctx ends. Its error ends the node.
	Run(ctx context.Context, n *Node) error
}

// A Pod is one as the container runtime names it.
type Pod struct{ Namespace, Name, UID string }

// Known is what a data directory says of its node.
type Known struct {
	NodeID string
	MeshID string // empty: it is in no mesh yet
	// Founding tells that the mesh was founded here, which the guide has yet to confirm.
	Founding bool
}

// Orders are what a node without a mesh is to do.
type Orders struct {
	Token token.Token
	Peers []string // to join by; none: found a mesh
	Range string   // of the mesh to found
}

// Founded is a mesh that was founded here.
type Founded struct {
	NodeID, MeshID, Range string
	Token                 token.Token
}

// A Member is another node of the mesh, as the guide sees it.
type Member struct {
	Name   string
	NodeID string
	Alive  bool
	Guided bool
	Gone   bool // nothing of it is left that anybody would have to look after
}

// takeLock takes the host's lock, and waits for it where there is a guide.
func (n *Node) takeLock(ctx context.Context) (io.Closer, error) {
	self := netlock.Holder{PID: os.Getpid(), Socket: filepath.Join(n.cfg.RunDir, api.SocketName)}
	for waiting := false; ; waiting = true {
		lock, err := n.sys.lock(ctx, self)
		var taken *netlock.TakenError
		if n.cfg.Guide == nil || !errors.As(err, &taken) {
			return lock, err
		}
		if !waiting {
			n.cfg.Guide.StandBy(fmt.Sprintf("pid %d, socket %s", taken.Holder.PID, taken.Holder.Socket))
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(standbyLook):
		}
	}
}

// serving is what the control socket serves.
func (n *Node) serving() api.Service {
	if n.cfg.Guide == nil {
		return n
	}
	return attended{n}
}

// attended is a node whose guide is told about pods.
type attended struct{ *Node }

// CNIAttach implements [api.Service].
func (n attended) CNIAttach(ctx context.Context, r cni.Request) (cni.Attachment, error) {
	a, err := n.Node.CNIAttach(ctx, r)
	if len(a.Warnings) > 0 && r.Pod.Name != "" {
		n.cfg.Guide.Attached(Pod(r.Pod), a.Warnings)
	}
	return a, err
}

// guided asks the guide, if there is one, what to do, and makes that the configuration.
func (n *Node) guided(ctx context.Context) error {
	if n.cfg.Guide == nil {
		return nil
	}
	k := Known{NodeID: n.state.identity.ID.String(), Founding: n.state.founding}
	if !n.state.universe.isZero() {
		info, err := n.state.universe.info()
		if err != nil {
			return err
		}
		k.MeshID = meshID(info)
	}
	orders, err := n.cfg.Guide.Begin(ctx, k, func(reason string) { n.setPhase(api.Starting, reason) })
	encryption := n.cfg.Kernel.Encryption
	n.cfg.Kernel.Encryption = "" // that of a mesh that exists is what it is
	if err != nil || k.MeshID != "" {
		return err
	}
	n.cfg.Token = orders.Token
	if len(orders.Peers) > 0 {
		n.cfg.join = true
		return n.Direct(orders.Peers)
	}
	u, err := ipam.ParseUniverse(orders.Range)
	if err != nil {
		return fmt.Errorf("range %s: %w", orders.Range, err)
	}
	n.cfg.Range, n.cfg.Kernel.Encryption, n.state.founding = u.String(), encryption, true
	return nil
}

// confirm has the guide agree to what was founded here.
func (n *Node) confirm(ctx context.Context, e *engines) error {
	if n.cfg.Guide == nil || !n.state.founding {
		return nil
	}
	f := Founded{
		NodeID: n.state.identity.ID.String(), MeshID: meshID(e.mesh.Universe()), Range: n.state.universe.Range,
		Token: n.rotor.snapshot().Tokens[0].Token,
	}
	err := n.cfg.Guide.Confirm(ctx, f, func(reason string) { n.setPhase(api.Starting, reason) })
	if err != nil {
		return err
	}
	if err := n.store.Update(func(tx *store.Tx) error { return tx.Delete(store.Meta, keyFounding) }); err != nil {
		return err
	}
	n.state.founding = false
	return nil
}

// unmade ends engines that have not run. What was founded in vain goes from the host; else the next start goes on with it, as the guide may
// have agreed without this node's hearing of it.
func (n *Node) unmade(ctx context.Context, e *engines, why error) error {
	err := errors.Join(whyEnded(ctx, why), e.mesh.Stop(context.WithoutCancel(ctx), false))
	if errors.Is(why, ErrAnew) {
		err = errors.Join(err, n.undo(e))
	}
	return err
}

// ID is the node's NodeID.
func (n *Node) ID() string { return n.state.identity.ID.String() }

// Phase is how far the node has come and, while it is not ready, what it waits for.
func (n *Node) Phase() (p api.Phase, waitsFor string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.phase, n.waitsFor
}

// Members are the other nodes of the mesh; none before this one is in it.
func (n *Node) Members() []Member {
	e := n.engines()
	if e == nil {
		return nil
	}
	holdings, retired := e.alloc.Owned(), retirees(e.alloc.Retirements())
	var members []Member
	for _, m := range e.mesh.Nodes() {
		if m.Status != mesh.Self {
			members = append(members, Member{
				Name: m.Name, NodeID: m.ID.String(), Alive: m.Status == mesh.Alive, Guided: slices.Contains(m.Features, FeatureGuided),
				Gone: isGone(m, retired[m.ID], holdings),
			})
		}
	}
	return members
}

// GaveUp tells whether a token is one that this node had before the mesh's was rotated.
func (n *Node) GaveUp(t token.Token) bool {
	k, err := rotation.NewKey(t)
	if err != nil {
		return false
	}
	past, err := n.isPastToken(k.ID)
	return past && err == nil
}

// Adopt goes over to a token that the mesh's may have been rotated to while this node was away. It does nothing if the node has it, or has given it up
// itself; the error says why it goes on with what it has, such as that no node of its mesh accepts the other one. It takes five seconds at most.
func (n *Node) Adopt(ctx context.Context, t token.Token) error {
	k, err := rotation.NewKey(t)
	if err != nil {
		return err
	}
	if _, has := n.rotor.snapshot().Holds(k.ID); has {
		return nil
	}
	if past, err := n.isPastToken(k.ID); err != nil || past {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tokenPatience)
	defer cancel()
	probe := n.prober(rotation.State{Tokens: []rotation.Key{k}})
	if probe.Universe, err = n.state.universe.info(); err != nil {
		return err
	}
	hosts, asked, err := n.whoKnows(ctx)
	if err != nil {
		return err
	}
	by, err := askAll(ctx, probe, hosts)
	if err != nil {
		return fmt.Errorf("asking %s: %w", brief(asked), err)
	}
	n.log.Info("the mesh's token was rotated while this node was away: it takes the new one", zap.Stringer("accepted by", by))
	return n.rotor.update(false, func(s rotation.State) (rotation.State, error) { return s.Adopt(k), nil })
}

// Warn sets a standing warning of weft status; an empty text takes it away.
func (n *Node) Warn(about, text string) { n.setWarning("guide-"+about, text) }

// Direct has the node connect to hosts beside those of --peer and weft connect, and to no others that it was directed to before. They
// are kept for the next start.
func (n *Node) Direct(hosts []string) error {
	hosts, err := n.canonicalTargets(hosts)
	if err != nil {
		return err
	}
	n.targeting.Lock()
	defer n.targeting.Unlock()
	before, err := loadHosts(n.store, keyGuided)
	if err != nil {
		return err
	}
	if slices.Equal(before, hosts) {
		return nil
	}
	if err := saveHosts(n.store, keyGuided, hosts); err != nil {
		return err
	}
	n.log.Info("directed to connect", zap.Strings("hosts", hosts))
	e := n.engines()
	if e == nil {
		n.targeted.raise()
		return nil
	}
	return n.settle(e)
}

// beside runs the guide until the function that it returns is called.
func (n *Node) beside(ctx context.Context) (end func()) {
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.cfg.Guide.Run(ctx, n); err != nil && ctx.Err() == nil {
			n.quit(err)
		}
	})
	return func() {
		stop()
		running.Wait()
	}
}

// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/token"
)

// How one mesh comes about, however many nodes start at once. Whoever creates the Secret is the founder. It founds its mesh on its own
// disk, where nobody sees it, then says in the Secret that it is founded, guarded by the version that it has read; only then it takes part
// in anything. Until then the others wait; if the Secret stays as it is for too long, one of them names itself the founder, guarded the same
// way, so that the old one, if it comes back, finds that it is not, and takes back what it has founded. As nobody joins before the mesh
// is founded, nobody can join what is taken back.

const (
	// founderPatience is how long a founder may take, by the clock of whoever waits. The next in rank waits longer by rankPatience, as do those
	// that follow, up to maxRank of them.
	founderPatience = 30 * time.Second
	rankPatience    = 5 * time.Second
	maxRank         = 6
	// returnPatience is how long a Secret that is missing, while nodes bear signs of a mesh, is left to them to publish again.
	returnPatience = 20 * time.Second
	// worthAnEvent is how long something is waited for before an Event says so.
	worthAnEvent = 5 * time.Second
	// retryAfter is the time between two requests that failed, and a half more at random.
	retryAfter = time.Second
)

// ErrAnew says that what this node has founded, or is about to join, is not what the Secret says any more: it begins anew.
var ErrAnew = errors.New("another node founds the mesh")

// Known is what the data directory of this node says.
type Known struct {
	NodeID   string
	MeshID   string // empty: it is in no mesh yet
	Founding bool   // the mesh was founded here, and that is not confirmed yet
}

// Orders say what a node without a mesh is to do.
type Orders struct {
	Token token.Token
	Peers []string // HOSTs to join by; none: found a mesh
	Range string   // of the mesh to found
}

// Founded is a mesh that this node has founded on its disk.
type Founded struct {
	NodeID, MeshID, Range string
	Token                 token.Token
}

// Begin returns what the node is to do. A node that has a mesh goes on with it, without asking anybody; others wait for as long as it takes, and
// tell why. What cannot be put right by waiting is an error.
func (a *Agent) Begin(ctx context.Context, k Known, waits func(reason string)) (Orders, error) {
	a.setStage("starting")
	if k.MeshID != "" {
		return Orders{}, a.refuseOther(ctx, k)
	}
	a.follow(0)
	b := beginning{a: a, k: k}
	var since time.Time // of the reason told
	for told := ""; ; {
		orders, again, reason, err := b.step(ctx)
		if err != nil || orders != nil {
			if err != nil {
				a.events.onNode(warning, "CannotStart", err.Error())
				return Orders{}, err
			}
			return *orders, nil
		}
		if reason != told {
			told = reason
			waits(reason)
			a.setStage("waiting for " + reason)
			a.cfg.Log.Info("waiting for " + reason)
			since = time.Now()
		}
		if left := worthAnEvent - time.Since(since); left > 0 {
			again = min(again, left)
		} else {
			a.events.onNode(normal, "Waiting", "waiting for "+reason)
		}
		select {
		case <-ctx.Done():
			return Orders{}, context.Cause(ctx)
		case <-a.changed:
		case <-time.After(again):
		}
	}
}

// refuseOther refuses a node of another mesh than the cluster's, if that can be known at once.
func (a *Agent) refuseOther(ctx context.Context, k Known) error {
	if k.Founding {
		return nil // see Confirm
	}
	s, ok, synced := a.secret.get(SecretName)
	if !synced {
		ctx, cancel := context.WithTimeout(ctx, glancePatience)
		defer cancel()
		s = &secret{}
		ok = a.cfg.Cluster.secrets(a.cfg.Namespace).get(ctx, SecretName, s) == nil
	}
	if !ok {
		return nil
	}
	f, err := readFounding(s)
	if err != nil {
		return nil // a node that has a mesh needs no Secret
	}
	return a.otherMesh(f, k.MeshID)
}

// otherMesh is the refusal of a node whose mesh is not the Secret's; nil if it is.
func (a *Agent) otherMesh(f founding, mine string) error {
	if !f.founded || f.mesh == "" || f.mesh == mine {
		return nil
	}
	return fmt.Errorf("this node is of the mesh %s, and Secret %s names the mesh %s; run weft reset on this node to have it join that one, or delete the Secret if it is the wrong one",
		mine, a.secretPath(), f.mesh)
}

// beginning is the way of a node that has no mesh to one.
type beginning struct {
	a *Agent
	k Known

	seen   string    // version of the Secret; empty: there is none
	since  time.Time // when that was first seen
	failed string    // what the last request ended in
	wait   time.Time // when to try again
}

// step looks at the Secret, and does what is to be done about it. It returns orders, or what it waits for and when to look again at the latest.
func (b *beginning) step(ctx context.Context) (orders *Orders, again time.Duration, reason string, err error) {
	s, ok, synced := b.a.secret.get(SecretName)
	nodes, all := b.a.nodes.snapshot()
	if !synced || !all {
		return nil, time.Minute, "the Kubernetes API server at " + b.a.cfg.Cluster.host + because(b.a.secret.why(), b.a.nodes.why()), nil
	}
	version := ""
	if ok {
		version = string(s.UID) + s.ResourceVersion
	}
	if now := time.Now(); b.since.IsZero() || version != b.seen {
		b.seen, b.since = version, now
	}
	if left := time.Until(b.wait); left > 0 {
		return nil, left, b.failed, nil
	}
	self, known := nodes[b.a.cfg.Node]
	if !known {
		return nil, time.Minute, fmt.Sprintf("Node %s, which the API server does not know; --name or NODE_NAME has to be the name of this host's Node object", b.a.cfg.Node), nil
	}
	if !ok {
		return b.create(ctx, self, nodes)
	}
	f, err := readFounding(s)
	if err != nil {
		return nil, 0, "", fmt.Errorf("the Secret %s cannot be used: %w; put it right, or delete it to have a mesh founded anew", b.a.secretPath(), err)
	}
	switch {
	case f.founded:
		return b.join(f, nodes)
	case f.founder.NodeID == b.k.NodeID:
		b.a.events.onNode(normal, "Founding", "this node founds the mesh, with the range "+f.inRange)
		return &Orders{Token: f.token, Range: f.inRange}, 0, "", nil
	}
	return b.claim(ctx, f, self, nodes)
}

func (b *beginning) create(ctx context.Context, self machine, nodes map[string]machine) (*Orders, time.Duration, string, error) {
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		left := time.Until(b.since.Add(returnPatience))
		if nodes[name].nodeID != "" && name != b.a.cfg.Node && left > 0 {
			return nil, left, fmt.Sprintf("Node %s, which has been in a mesh, to publish Secret %s again", name, b.a.secretPath()), nil
		}
	}
	f, err := b.new(ctx, self, nodes)
	if err != nil {
		return b.failedTo(err)
	}
	if f.token, err = token.New(b.a.cfg.Rand); err != nil {
		return nil, 0, "", err
	}
	switch err := b.a.publish(ctx, f); {
	case err == nil:
		b.a.events.onNode(normal, "Founding", "this node founds the mesh, with the range "+f.inRange)
		return &Orders{Token: f.token, Range: f.inRange}, 0, "", nil
	case unmet(err) && !errors.Is(err, errMissing):
		return nil, time.Minute, "news of Secret " + b.a.secretPath() + ", which another node has created", nil
	default:
		return b.failedTo(fmt.Errorf("creating Secret %s: %w", b.a.secretPath(), err))
	}
}

// new is what this node would found.
func (b *beginning) new(ctx context.Context, self machine, nodes map[string]machine) (founding, error) {
	r, err := b.a.cfg.Cluster.findRange(ctx, b.a.cfg.Range, b.a.cfg.DefaultRange, nodes)
	return founding{
		inRange: r, encryption: b.a.cfg.Encryption, founder: founder{Node: b.a.cfg.Node, UID: self.uid, NodeID: b.k.NodeID},
	}, err
}

// failedTo has a request tried again later.
func (b *beginning) failedTo(err error) (*Orders, time.Duration, string, error) {
	again := retryAfter + rand.N(retryAfter/2)
	b.wait, b.failed = time.Now().Add(again), brief(err)
	return nil, again, b.failed, nil
}

// claim waits for the founder, and takes its place if it does not get on with it.
func (b *beginning) claim(ctx context.Context, f founding, self machine, nodes map[string]machine) (*Orders, time.Duration, string, error) {
	if f.founder.NodeID != "" && f.founder.Node != b.a.cfg.Node {
		matter := f.founder.NodeID + f.version
		names := slices.DeleteFunc(slices.Collect(maps.Keys(nodes)), func(name string) bool { return name == f.founder.Node })
		due := b.since.Add(founderPatience + time.Duration(min(rank(b.a.cfg.Node, matter, names), maxRank))*rankPatience)
		if left := time.Until(due); left > 0 {
			return nil, left, fmt.Sprintf("Node %s to found the mesh; another one does if it takes longer than %v", f.founder.Node, founderPatience), nil
		}
	}
	mine, err := b.new(ctx, self, nodes)
	if f.inRange == "" && err != nil {
		return b.failedTo(err)
	}
	was := f.founder.Node
	f.founder = mine.founder
	if f.inRange == "" {
		f.inRange, f.encryption = mine.inRange, mine.encryption
	}
	switch err := b.a.rewrite(ctx, f); {
	case err == nil:
		b.a.cfg.Log.Warn("taking the place of the node that was to found the mesh and did not", zap.String("node", was))
		return &Orders{Token: f.token, Range: f.inRange}, 0, "", nil
	case unmet(err):
		return nil, time.Minute, "news of Secret " + b.a.secretPath() + ", which has changed", nil
	default:
		return b.failedTo(fmt.Errorf("changing Secret %s: %w", b.a.secretPath(), err))
	}
}

func (b *beginning) join(f founding, nodes map[string]machine) (*Orders, time.Duration, string, error) {
	hosts := chooseDoors(b.a.cfg.Node, f.founder.Node, nodes)
	if len(hosts) == 0 {
		return nil, time.Minute, fmt.Sprintf("another Node with an address, as Secret %s says that there is a mesh; if this is the only node and was set up anew, that mesh is gone: delete the Secret to have one founded anew",
			b.a.secretPath()), nil
	}
	b.a.mu.Lock()
	b.a.joining = f
	b.a.mu.Unlock()
	return &Orders{Token: f.token, Peers: hosts}, 0, "", nil
}

// Confirm says in the Secret that this node has founded its mesh, and waits for as long as that takes. An error that wraps [ErrAnew] says that
// another one does.
func (a *Agent) Confirm(ctx context.Context, k Founded, waits func(reason string)) error {
	a.follow(0)
	for told := ""; ; {
		err := a.confirm(ctx, k)
		if err == nil || errors.Is(err, ErrAnew) {
			if err == nil {
				a.events.onNode(normal, "Founded", "this node has founded the mesh, with the range "+k.Range)
			}
			return err
		}
		if !errors.Is(err, errConflict) && !errors.Is(err, errExists) {
			reason := "the Secret " + a.secretPath() + ", that says that the mesh is founded: " + brief(err)
			if reason != told {
				told = reason
				waits(reason)
				a.setStage("waiting for " + reason)
				a.cfg.Log.Warn("waiting for " + reason)
				a.events.onNode(warning, "Waiting", "waiting for "+reason)
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(retryAfter + rand.N(retryAfter/2)):
		}
	}
}

func (a *Agent) confirm(ctx context.Context, k Founded) error {
	self, _, _ := a.nodes.get(a.cfg.Node)
	mine := founding{
		token: k.Token, inRange: k.Range, encryption: a.cfg.Encryption, founded: true, mesh: k.MeshID,
		founder: founder{Node: a.cfg.Node, UID: self.uid, NodeID: k.NodeID},
	}
	var s secret
	err := a.cfg.Cluster.secrets(a.cfg.Namespace).get(ctx, SecretName, &s)
	if errors.Is(err, errMissing) {
		return a.publish(ctx, mine)
	}
	if err != nil {
		return err
	}
	f, err := readFounding(&s)
	switch {
	case err != nil:
		return err
	case f.founder.NodeID != k.NodeID:
		return fmt.Errorf("%w: Secret %s names Node %s", ErrAnew, a.secretPath(), f.founder.Node)
	case f.founded:
		return nil
	}
	f.founded, f.mesh = true, k.MeshID
	return a.rewrite(ctx, f)
}

// publish creates the Secret.
func (a *Agent) publish(ctx context.Context, f founding) error {
	data, err := f.data()
	if err != nil {
		return err
	}
	return a.cfg.Cluster.secrets(a.cfg.Namespace).create(ctx, &secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: SecretName, Namespace: a.cfg.Namespace, Labels: map[string]string{"app.kubernetes.io/name": "weft"}},
		Type:       "Opaque", Data: data,
	})
}

// rewrite changes the Secret if it is still the version that f was read from.
func (a *Agent) rewrite(ctx context.Context, f founding) error {
	data, err := f.data()
	if err != nil {
		return err
	}
	return a.cfg.Cluster.secrets(a.cfg.Namespace).patch(ctx, SecretName, "", types.MergePatchType, map[string]any{
		"metadata": map[string]any{"resourceVersion": f.version}, "data": data,
	})
}

func (a *Agent) secretPath() string { return a.cfg.Namespace + "/" + SecretName }

// because appends the first of the errors to a reason.
func because(errs ...error) string {
	for _, err := range errs {
		if err != nil {
			return ": " + brief(err)
		}
	}
	return ""
}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/rotation"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
)

const (
	// rotateLook is how often it is looked how far a rotation is, for whoever waits for it.
	rotateLook = 100 * time.Millisecond
	// lostPatience is how long a command waits for a token that no node says to have, before it begins anew.
	lostPatience = 5 * time.Second
)

// errNothingToRevoke is the refusal of a revocation without a rotation.
var errNothingToRevoke = errors.New("the token was never rotated, so there is no old one; begin by weft token rotate")

// errNothingToAddTo is the refusal to add nodes to no rotation.
var errNothingToAddTo = errors.New("no rotation is under way that --with could add a node to; weft token rotate without it gives every node a new token")

// errCutOff is the refusal of what a node without the mesh's token asks for.
var errCutOff = errors.New("the mesh does not accept this node's token any more; launch it with the new one, which `weft token --raw` prints on another node")

// status is the rotation that is under way, nil if there is none.
func (r *rotor) status(e *engines) *api.Rotation {
	s := r.snapshot()
	if s.Register.Phase == rotation.None {
		return nil
	}
	p := rotation.ProgressOf(s.Register, r.sight(e))
	if _, ok := s.New(); ok && p.Phase == rotation.Revoked && p.Complete() {
		return nil
	}
	told := r.describe(e, s.Register, p)
	return &told
}

func (r *rotor) describe(e *engines, reg rotation.Register, p rotation.Progress) api.Rotation {
	name := r.n.nameOf(e.mesh)
	names := func(ids []uint64) []string {
		list := []string{}
		for _, id := range ids {
			list = append(list, name(ring.Owner(id)))
		}
		slices.Sort(list)
		return list
	}
	return api.Rotation{
		Phase: p.Phase.String(), Confirmed: p.Confirmed, Total: p.Total, Begun: reg.Begun,
		Waiting: names(p.Waiting), Away: names(p.Away), Newcomers: names(p.Strangers), LeftOut: names(p.LeftOut),
	}
}

// errTokenElsewhere is the refusal of a node that lacks the token which others say that the mesh has.
func errTokenElsewhere(holders []string) error {
	return fmt.Errorf("%s say that the mesh has another token, which this node does not have; launch it with that one, or, if they mean harm, leave them out by --without", brief(holders))
}

// holders returns whether other nodes answer, and the names of those that say to have a token, without those who are left out: that somebody says so is
// no proof.
func (r *rotor) holders(e *engines, key token.ID, nodes []rotation.Node, without []uint64) (others bool, names []string) {
	for _, m := range nodes {
		if !m.Alive || m.ID == uint64(r.n.state.identity.ID) {
			continue
		}
		others = true
		if slices.Contains(m.Keys, key) && !slices.Contains(without, m.ID) {
			names = append(names, r.n.nameOf(e.mesh)(ring.Owner(m.ID)))
		}
	}
	slices.Sort(names)
	return others, names
}

// rotationWatch tells whoever gave a command how far it is, whenever that changes.
type rotationWatch struct {
	tell func(api.RotationProgress)
	last string
}

func (w *rotationWatch) say(text string, a api.Rotation) {
	if text != w.last {
		w.last = text
		w.tell(api.RotationProgress{Text: text, Rotation: a})
	}
}

func (w *rotationWatch) look(a api.Rotation, nodes []rotation.Node) {
	what := map[string]string{"distributing": "have the new token", "switched": "send under the new token", "revoked": "have forgotten the old token"}[a.Phase]
	text := fmt.Sprintf("%d of %d nodes %s", a.Confirmed, a.Total, what)
	if len(a.Waiting) > 0 {
		text += "; waiting for " + brief(a.Waiting)
	}
	if slices.ContainsFunc(nodes, func(m rotation.Node) bool { return m.Alive && len(m.Keys) == 0 }) {
		text += " (among the nodes are some of a release that cannot rotate: upgrade them, or leave them out by --without)"
	}
	if len(a.Away) > 0 {
		text += "; away: " + brief(a.Away)
	}
	w.say(text, a)
}

// brief lists names, and of many the first ones only.
func brief(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// Rotate implements [api.Service].
func (n *Node) Rotate(ctx context.Context, q api.RotateRequest, progress func(api.RotationProgress)) (api.RotationResult, error) {
	e, err := n.meshed()
	if err != nil {
		return api.RotationResult{}, err
	}
	if n.rotor.refusedWarning(e, n.rotor.snapshot()) != "" {
		return api.RotationResult{}, errCutOff
	}
	with, without, err := n.rotor.invited(e, q)
	if err != nil {
		return api.RotationResult{}, err
	}
	w := rotationWatch{tell: progress}
	extended := false
	var lostSince time.Time
	return n.driveRotation(ctx, func() (api.RotationResult, bool, error) {
		s, nodes := n.rotor.snapshot(), n.rotor.sight(e)
		p := rotation.ProgressOf(s.Register, nodes)
		told := n.rotor.describe(e, s.Register, p)
		_, has := s.New()
		others, holders := n.rotor.holders(e, s.Register.Key, nodes, without)
		someone := len(holders) > 0
		lost := !has && !someone && others
		switch {
		case p.Phase == rotation.Revoked && !has && someone:
			return api.RotationResult{}, false, errTokenElsewhere(holders)
		case p.Phase == rotation.Revoked && !has && !lost:
			return api.RotationResult{}, false, errCutOff
		case p.Phase == rotation.Revoked && has && !p.Complete():
			w.look(told, nodes) // the last one has to be over everywhere
			return api.RotationResult{}, false, nil
		case (p.Phase == rotation.None || p.Phase == rotation.Revoked && has) && len(with) > 0 && !extended:
			return api.RotationResult{}, false, errNothingToAddTo
		case p.Phase == rotation.None, p.Phase == rotation.Revoked && has:
			extended = true
			return api.RotationResult{}, false, n.rotor.begin(e, with, without, false)
		case !has && !someone:
			if lostSince.IsZero() {
				lostSince = time.Now()
			}
			w.say("no node that answers has the new token of the rotation that is under way; beginning anew in a moment", told)
			if time.Since(lostSince) < lostPatience {
				return api.RotationResult{}, false, nil
			}
			extended = true
			return api.RotationResult{}, false, n.rotor.begin(e, with, without, true)
		case !has:
			lostSince = time.Time{}
			w.say("a rotation is under way; waiting for "+brief(holders)+" to give its new token to this node (if it never comes, leave them out by --without)", told)
			return api.RotationResult{}, false, nil
		case !extended:
			extended = true
			for _, m := range nodes {
				if slices.Contains(without, m.ID) && slices.Contains(m.Keys, s.Register.Key) {
					return api.RotationResult{}, false, fmt.Errorf("%s has the new token of the rotation that is under way; run weft token revoke-old, and then weft token rotate --without %[1]s",
						n.nameOf(e.mesh)(ring.Owner(m.ID)))
				}
			}
			w.say(fmt.Sprintf("the rotation that began at %s is not over; going on with it (for another new token run weft token revoke-old first)", s.Register.Begun.Local().Format(time.DateTime)), told)
			return api.RotationResult{}, false, n.rotor.advance(func(s rotation.State) (rotation.State, error) {
				return s.Extend(uint64(n.state.identity.ID), with, without)
			})
		}
		w.look(told, nodes)
		if !p.Complete() || p.Phase >= rotation.Switched {
			return api.RotationResult{Rotation: told}, p.Complete(), nil
		}
		return api.RotationResult{}, false, n.rotor.advanceTo(rotation.Switched)
	})
}

// RevokeOld implements [api.Service].
func (n *Node) RevokeOld(ctx context.Context, _ api.RevokeRequest, progress func(api.RotationProgress)) (api.RotationResult, error) {
	e, err := n.meshed()
	if err != nil {
		return api.RotationResult{}, err
	}
	if n.rotor.refusedWarning(e, n.rotor.snapshot()) != "" {
		return api.RotationResult{}, errCutOff
	}
	w := rotationWatch{tell: progress}
	return n.driveRotation(ctx, func() (api.RotationResult, bool, error) {
		s, nodes := n.rotor.snapshot(), n.rotor.sight(e)
		p := rotation.ProgressOf(s.Register, nodes)
		told := n.rotor.describe(e, s.Register, p)
		_, has := s.New()
		switch {
		case p.Phase == rotation.None:
			return api.RotationResult{}, false, errNothingToRevoke
		case p.Phase == rotation.Distributing:
			return api.RotationResult{}, false, fmt.Errorf("not all nodes have the new token yet (%d of %d); run weft token rotate, which goes on with that, and revoke the old one then", p.Confirmed, p.Total)
		case p.Phase == rotation.Revoked && !has:
			return api.RotationResult{}, false, errCutOff
		case !has:
			return api.RotationResult{}, false, errors.New("this node does not have the new token yet; run weft token revoke-old on one that has, or in a moment")
		}
		w.look(told, nodes)
		if !p.Complete() || p.Phase == rotation.Revoked {
			return api.RotationResult{Rotation: told}, p.Complete(), nil
		}
		return api.RotationResult{}, false, n.rotor.advanceTo(rotation.Revoked)
	})
}

// driveRotation does step again and again until it has done, fails, ctx ends or this node stops.
func (n *Node) driveRotation(ctx context.Context, step func() (api.RotationResult, bool, error)) (api.RotationResult, error) {
	tick := time.NewTicker(rotateLook)
	defer tick.Stop()
	for {
		res, done, err := step()
		if err != nil || done {
			return res, err
		}
		select {
		case <-ctx.Done():
			return api.RotationResult{}, context.Cause(ctx)
		case <-tick.C:
		}
		if n.isStopping() {
			return api.RotationResult{}, fmt.Errorf("node %s stops; what was begun stands, and weft token rotate on any node goes on with it", n.cfg.Name)
		}
	}
}

// invited resolves the names of a request. Unless a node is named, who is known at the beginning of a rotation is invited to it, and nobody
// later.
func (r *rotor) invited(e *engines, q api.RotateRequest) (with []rotation.Node, without []uint64, err error) {
	find := func(what string) (mesh.NodeID, error) {
		var found []mesh.Node
		for _, m := range e.members() {
			if what != "" && (m.Name == what || m.ID.String() == what) {
				found = append(found, m)
			}
		}
		switch {
		case len(found) == 0:
			return 0, fmt.Errorf("there is no node %q in the mesh; weft peers lists them", what)
		case len(found) > 1:
			return 0, fmt.Errorf("%q may be each of %d nodes; give the NodeID of one: %s", what, len(found), list(found, func(m mesh.Node) string { return m.ID.String() }))
		case found[0].Status == mesh.Self:
			return 0, fmt.Errorf("%s is this node; run the command on another one to leave it out", what)
		}
		return found[0].ID, nil
	}
	for _, name := range q.With {
		id, err := find(name)
		if err != nil {
			return nil, nil, err
		}
		for _, m := range r.sight(e) {
			if m.ID == uint64(id) {
				with = append(with, m)
			}
		}
	}
	for _, name := range q.Without {
		id, err := find(name)
		if err != nil {
			return nil, nil, err
		}
		if slices.ContainsFunc(with, func(m rotation.Node) bool { return m.ID == uint64(id) }) {
			return nil, nil, fmt.Errorf("%s is named by --with and by --without; name it by one of them", name)
		}
		without = append(without, uint64(id))
	}
	return with, without, nil
}

// begin begins a rotation among the nodes known here.
func (r *rotor) begin(e *engines, with []rotation.Node, without []uint64, anew bool) error {
	k, err := newTokenKey()
	if err != nil {
		return err
	}
	members := append(slices.DeleteFunc(r.sight(e), func(m rotation.Node) bool { return slices.Contains(without, m.ID) }), with...)
	err = r.update(true, func(s rotation.State) (rotation.State, error) {
		next, err := s.Begin(k, uint64(r.n.state.identity.ID), time.Now(), members, without, anew)
		if errors.Is(err, rotation.ErrUnderWay) {
			return s, nil // by another node, just now: it is gone on with
		}
		return next, err
	})
	if err != nil {
		return err
	}
	r.n.log.Info("a rotation of the mesh's token begins here", zap.Int("members", len(members)), zap.Bool("anew", anew))
	r.tell()
	return nil
}

func (r *rotor) advanceTo(p rotation.Phase) error {
	return r.advance(func(s rotation.State) (rotation.State, error) {
		return s.Advance(p, uint64(r.n.state.identity.ID), time.Now())
	})
}

func (r *rotor) advance(f func(rotation.State) (rotation.State, error)) error {
	if err := r.update(false, f); err != nil {
		return err
	}
	r.tell()
	return nil
}

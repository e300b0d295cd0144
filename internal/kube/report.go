// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/token"
)

// Reasons of the condition NetworkUnavailable.
const (
	reasonUp   = "WeftIsUp"
	reasonDown = "WeftIsRetired"
)

// almostFull is how many percent of the range are given out when that is told.
const almostFull = 90

// report writes into this host's Node object which node of Weft it is, and whether it has a network: both by its status, where the annotations can be
// written, too, so that no more rights are needed.
func (r *run) report(ctx context.Context, nodes map[string]machine, phase api.Phase, waitsFor string) {
	self, ok := nodes[r.a.cfg.Node]
	if !ok {
		return // not known yet, or deleted
	}
	change := map[string]any{}
	if self.nodeID != r.id && phase != api.Retired {
		change["metadata"] = map[string]any{"annotations": map[string]string{AnnotationNodeID: r.id}}
	}
	want := nodeCondition{Type: conditionUnavailable, Status: "False", Reason: reasonUp, Message: "Weft is up on this node"}
	if phase == api.Retired {
		want.Status, want.Reason, want.Message = "True", reasonDown, brief(errors.New(waitsFor))
	}
	// One that restarts has a network all the while.
	if phase != api.Waiting && (self.condition.Status != want.Status || self.condition.Reason != want.Reason) {
		now := time.Now().UTC().Format(time.RFC3339)
		change["status"] = map[string]any{"conditions": []map[string]string{{
			"type": want.Type, "status": want.Status, "reason": want.Reason, "message": want.Message,
			"lastHeartbeatTime": now, "lastTransitionTime": now,
		}}}
	}
	if len(change) == 0 {
		return
	}
	r.warned("the status of the Node could not be written", r.telling.try(func() error {
		err := r.a.cfg.Cluster.nodes().patch(ctx, r.a.cfg.Node, "status", types.StrategicMergePatchType, change)
		if err == nil && phase == api.Ready {
			r.a.events.onNode(normal, reasonUp, "the pods of this node can be reached; it is the node "+r.id+" of Weft")
		}
		return err
	}))
}

func (r *run) warned(what string, err error) {
	if err != nil {
		r.a.cfg.Log.Warn(what+"; trying again", zap.Error(err))
	}
}

// keep sees to it that the Secret names the mesh of this node, with its token. One of the nodes is to do it; the others wait longer, and find that it is done.
func (r *run) keep(ctx context.Context) error {
	s, ok, synced := r.a.secret.get(SecretName)
	if !synced {
		return nil
	}
	if r.mesh == "" {
		r.mesh = r.d.Status().MeshID
	}
	var f founding
	if ok {
		var err error
		if f, err = readFounding(s); err != nil {
			r.d.Warn("secret", fmt.Sprintf("Secret %s cannot be used: %s; delete it, and a node publishes it again", r.a.secretPath(), brief(err)))
			return nil
		}
	}
	r.d.Warn("secret", "")
	if err := r.a.otherMesh(f, r.mesh); err != nil {
		r.a.events.onNode(warning, "OtherMesh", err.Error())
		return err
	}
	now, known := r.current()
	// A token that this node has not given up itself may be newer than its own: a node that is cut off knows of no rotation.
	if named := ok && f.founded && (f.mesh == "" || !r.d.GaveUp(f.token)); !known || named {
		if named {
			r.adopt(ctx, f.token, now)
		}
		r.absent, r.turn = time.Time{}, time.Time{}
		r.compare(f)
		return nil
	}
	if r.absent.IsZero() {
		r.absent = time.Now()
	}
	// Exactly then, as turns that are put off until the mesh is looked at come to be one.
	if turn := r.absent.Add(r.patience()); time.Now().Before(turn) {
		r.turn = turn
		return nil
	}
	r.absent = time.Now().Add(retryAfter) // when the watch will have brought what is written now
	r.warned("Secret "+r.a.secretPath()+" could not be published", r.keeping.try(func() error {
		if !ok {
			self, _, _ := r.a.nodes.get(r.a.cfg.Node)
			f = founding{inRange: r.d.Status().Universe, encryption: r.a.cfg.Encryption, founder: founder{Node: r.a.cfg.Node, UID: self.uid, NodeID: r.id}}
		}
		version := f.version
		f.token, f.founded, f.mesh = now, true, r.mesh
		r.a.cfg.Log.Info("publishing the mesh of this node in Secret "+r.a.secretPath(), zap.Bool("anew", version == ""))
		var err error
		if version == "" {
			err = r.a.publish(ctx, f)
		} else {
			err = r.a.rewrite(ctx, f)
		}
		if unmet(err) {
			return nil // another one did; the watch brings it
		}
		return err
	}))
	return nil
}

// adopt has the node take the Secret's token, if that is not mine, which is its own. The node sees to it that the mesh accepts it.
func (r *run) adopt(ctx context.Context, t, mine token.Token) {
	if t.Equal(mine) {
		r.d.Warn("token", "")
		return
	}
	err := r.adopting.try(func() error { return r.d.Adopt(ctx, t) })
	if err == nil {
		return
	}
	r.d.Warn("token", fmt.Sprintf("Secret %s has another token than this node, which goes on with its own: %s; if it is not the mesh's, delete the Secret, and a node publishes it again", r.a.secretPath(), brief(err)))
	r.warned("the token of Secret "+r.a.secretPath()+" is not taken", err)
}

// patience is for how long this node leaves it to others to publish the Secret.
func (r *run) patience() time.Duration {
	var others []string
	for _, m := range r.d.Members() {
		if m.Alive && m.Guided {
			others = append(others, m.NodeID)
		}
	}
	return time.Duration(min(rank(r.id, SecretName, others), 2*maxRank)) * retryAfter
}

// current is the token that others may join with.
func (r *run) current() (t token.Token, ok bool) {
	answer, err := r.d.Token()
	if err != nil || answer.Warning != "" || r.d.Status().Rotation != nil {
		return t, false
	}
	t, err = token.Parse(answer.Token)
	return t, err == nil
}

// compare says where the flags differ from the mesh, which goes on as it was founded.
func (r *run) compare(f founding) {
	text := ""
	switch {
	case r.a.cfg.Range != "" && f.inRange != "" && r.a.cfg.Range != f.inRange:
		text = fmt.Sprintf("--range %s is not that of the mesh, which was founded with %s, and keeps it", r.a.cfg.Range, f.inRange)
	case r.a.cfg.Encryption != "" && f.encryption != "" && r.a.cfg.Encryption != f.encryption:
		text = fmt.Sprintf("--encryption %s is not that of the mesh, which was founded with %s, and keeps it", r.a.cfg.Encryption, f.encryption)
	}
	r.d.Warn("flags", text)
	if text != "" {
		r.a.events.onNode(warning, "FlagsIgnored", text)
	}
}

// fullness warns when there are few addresses left. What others have free is not known here; but whoever has few and less than its share gets
// some of those who have more.
func (r *run) fullness() {
	use := r.d.IPAM()
	given, share := uint64(len(use.Allocations)), use.Size/(2*uint64(max(len(use.Holdings), 1)))
	if all := given + use.Quarantined + use.Free; all < share || given*100 < all*almostFull {
		return
	}
	r.a.events.onNode(warning, "FewAddresses", fmt.Sprintf("%d%% of the addresses of this node are in use, and the other nodes have no more of the range %s to give than it has: weft ipam tells who has them",
		100*given/max(given+use.Quarantined+use.Free, 1), use.Universe))
}

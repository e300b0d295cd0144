// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
)

// A member of the mesh that does not answer and whose Node object was deleted, or is that of a new node of that name by now, is declared gone:
// its addresses are taken over. Every daemon sees that by itself, from the mesh and the Node objects, and waits its turn; the
// mesh decides, so that it does no harm if several do it at once, and nobody has to survive. Members that are no nodes of a cluster, such as
// hosts where weft launch was called, are left alone.

const (
	// goneFor is how long a member has to be found gone before the first in rank declares it so; those that follow wait longer by rankPatience.
	goneFor = 10 * time.Second
	// forgetPatience bounds one try, and forgetAgain is the time until the next.
	forgetPatience = time.Minute
	forgetAgain    = 30 * time.Second
)

// A Member is another node of the mesh.
type Member struct {
	Name   string
	NodeID string
	Alive  bool
	Guided bool // it is a node of a cluster
	Gone   bool // nothing of it is left that anybody would have to look after
}

// reclaimer finds the members that are gone.
type reclaimer struct {
	since map[string]time.Time // when a member was found gone, by NodeID
	tried map[string]time.Time // when it was last declared so
}

// due returns the members that the node with this NodeID is to declare gone now.
func (r *reclaimer) due(id string, members []Member, nodes map[string]machine, now time.Time) (gone []Member) {
	alive := map[string]bool{id: true}
	var others []string
	for _, m := range members {
		if m.Alive && m.Guided {
			alive[m.NodeID] = true
			others = append(others, m.NodeID)
		}
	}
	found := map[string]time.Time{}
	for _, m := range members {
		if m.Alive || !m.Guided || m.Gone || m.Name == "" {
			continue
		}
		if n, ok := nodes[m.Name]; ok && (n.nodeID == m.NodeID || !alive[n.nodeID]) {
			continue
		}
		since, ok := r.since[m.NodeID]
		if !ok {
			since = now
		}
		found[m.NodeID] = since
		turn := since.Add(goneFor + time.Duration(min(rank(id, m.NodeID, others), maxRank))*rankPatience)
		if tried, ok := r.tried[m.NodeID]; now.Before(turn) || ok && now.Sub(tried) < forgetPatience+forgetAgain {
			continue
		}
		gone = append(gone, m)
		r.tried[m.NodeID] = now
	}
	r.since = found
	for id := range r.tried {
		if _, ok := found[id]; !ok {
			delete(r.tried, id)
		}
	}
	return gone
}

// forget declares a member gone, if the API server confirms what its watch said.
func (a *Agent) forget(ctx context.Context, d Daemon, m Member) {
	ctx, cancel := context.WithTimeout(ctx, forgetPatience)
	defer cancel()
	var n node
	why := "its Node was deleted"
	switch err := a.cfg.Cluster.nodes().get(ctx, m.Name, &n); {
	case err == nil && (n.Annotations[AnnotationNodeID] == m.NodeID || n.Annotations[AnnotationNodeID] == ""):
		return
	case err == nil:
		why = "a new node has its name"
	case !errors.Is(err, errMissing):
		a.cfg.Log.Warn("whether a node is gone for good is not known", zap.String("node", m.Name), zap.Error(err))
		return
	}
	a.cfg.Log.Info("declaring a node gone", zap.String("node", m.Name), zap.String("id", m.NodeID), zap.String("why", why))
	res, err := d.Forget(ctx, api.ForgetRequest{Node: m.NodeID}, func(api.ForgetProgress) {})
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			a.events.onNode(warning, "NotReclaimed", fmt.Sprintf("the addresses of %s (%s) are not taken over yet, %s: %s", m.Name, m.NodeID, why, brief(err)))
		}
		return
	}
	for _, f := range res.Forgotten {
		if f.Addresses > 0 {
			a.events.onNode(normal, "Reclaimed", fmt.Sprintf("%s took over %d addresses of %s (%s): %s", f.Heir, f.Addresses, m.Name, m.NodeID, why))
		}
	}
}

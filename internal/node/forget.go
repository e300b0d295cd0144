// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
)

// forgetLook is how often it is looked how far a takeover is, for whoever waits for it.
const forgetLook = 200 * time.Millisecond

// Forget implements [api.Service]: it has the addresses of a node that is gone taken over, and waits for that.
func (n *Node) Forget(ctx context.Context, r api.ForgetRequest, progress func(api.ForgetProgress)) (api.ForgetResult, error) {
	e, err := n.meshed()
	if err != nil {
		return api.ForgetResult{}, err
	}
	name := n.nameOf(e.mesh)
	k := known{nodes: e.mesh.Nodes(), holdings: e.alloc.Owned(), retired: e.alloc.Retirements()}
	dead, err := k.find(r.Node, name)
	if err != nil {
		return api.ForgetResult{}, err
	}
	w := takeoverWatch{dead: dead, before: k.holdings, left: map[ring.Owner]uint64{}, texts: map[ring.Owner]string{}, tell: progress}
	for _, h := range k.holdings {
		w.left[h.Owner] = h.Slots
	}
	n.log.Info("told to declare a node gone", zap.String("node", r.Node), zap.Bool("although it answers", r.Sure), zap.Bool("without a majority", r.Force))

	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	done := make(chan error, 1)
	go func() { done <- e.alloc.Forget(ctx, ipam.ForgetRequest{Dead: dead, Sure: r.Sure, Force: r.Force}) }()
	tick := time.NewTicker(forgetLook)
	defer tick.Stop()
	for {
		select {
		case err = <-done:
			if err != nil {
				return api.ForgetResult{}, err
			}
			return w.result(e.alloc.Retirements(), e.alloc.Owned(), name), nil
		case <-tick.C:
			w.look(e.alloc.Reclaims())
			if n.isStopping() {
				end(fmt.Errorf("node %s stops", n.cfg.Name))
			}
		}
	}
}

// known is what a name can stand for.
type known struct {
	nodes    []mesh.Node
	holdings []ipam.Holding
	retired  []ipam.Retirement
}

// find returns what is to be forgotten: the node of a name or a NodeID, and what --seed gave to the name. Where several
// nodes bear the name, it is the only one that does not answer, as a host that is set up anew comes back under its name.
func (k known) find(what string, name func(ring.Owner) string) ([]ring.Owner, error) {
	var found []mesh.Node
	for _, m := range k.nodes {
		if what != "" && m.Name == what {
			found = append(found, m)
		}
	}
	found = prefer(found, func(m mesh.Node) bool { return !k.finished(ring.Owner(m.ID)) })
	if gone := prefer(found, func(m mesh.Node) bool { return m.Status != mesh.Alive && m.Status != mesh.Self }); len(gone) == 1 {
		found = gone
	}
	var dead []ring.Owner
	for _, m := range found {
		dead = append(dead, ring.Owner(m.ID))
	}
	if seed := ipam.NameOwner(what); what != "" && (k.owns(seed) || len(dead) == 0 && k.isRetired(seed)) {
		dead = append(dead, seed)
	}
	if o, ok := ownerOf(what); ok && len(dead) == 0 && k.knows(o) {
		dead = append(dead, o)
	}
	switch {
	case len(dead) == 0:
		return nil, k.unknown(what, name)
	case len(found) > 1:
		return nil, fmt.Errorf("%q may be each of %d nodes; give the NodeID of one: %s", what, len(found),
			list(found, func(m mesh.Node) string { return fmt.Sprintf("%v (%v)", m.ID, m.Status) }))
	case slices.ContainsFunc(k.nodes, func(m mesh.Node) bool { return m.Status == mesh.Self && ring.Owner(m.ID) == dead[0] }):
		return nil, fmt.Errorf("%s is this node; take it out of the mesh by weft leave", name(dead[0]))
	}
	return dead, nil
}

// prefer returns those of whom ok is true, or all if that is none.
func prefer(nodes []mesh.Node, ok func(mesh.Node) bool) []mesh.Node {
	var out []mesh.Node
	for _, m := range nodes {
		if ok(m) {
			out = append(out, m)
		}
	}
	if len(out) == 0 {
		return nodes
	}
	return out
}

// ownerOf reads 16 hexadecimal digits: a NodeID, or what stands for a name of --seed.
func ownerOf(s string) (ring.Owner, bool) {
	o, err := strconv.ParseUint(s, 16, 64)
	return ring.Owner(o), err == nil && len(s) == 16 && o != 0
}

func (k known) owns(o ring.Owner) bool {
	return slices.ContainsFunc(k.holdings, func(h ipam.Holding) bool { return h.Owner == o && h.Slots > 0 })
}

func (k known) isRetired(o ring.Owner) bool {
	return slices.ContainsFunc(k.retired, func(r ipam.Retirement) bool { return r.Dead == o })
}

// finished tells whether a node was declared gone, and nothing of it is left.
func (k known) finished(o ring.Owner) bool { return k.isRetired(o) && !k.owns(o) }

func (k known) knows(o ring.Owner) bool {
	return k.owns(o) || k.isRetired(o) || slices.ContainsFunc(k.nodes, func(m mesh.Node) bool { return ring.Owner(m.ID) == o })
}

// unknown says what could have been meant.
func (k known) unknown(what string, name func(ring.Owner) string) error {
	var names []string
	self := ring.Owner(0)
	for _, m := range k.nodes {
		if m.Status == mesh.Self {
			self = ring.Owner(m.ID)
		} else if !k.finished(ring.Owner(m.ID)) {
			names = append(names, shownName(m))
		}
	}
	for _, h := range k.holdings {
		if h.Owner != self && h.Slots > 0 {
			names = append(names, name(h.Owner)) // also of those of whom the mesh knows nothing
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		return fmt.Errorf("there is no node %q: this node knows no other one", what)
	}
	return fmt.Errorf("there is no node %q; known are: %s", what, strings.Join(head(names, 20), ", "))
}

// takeoverWatch tells what changes in the takeovers of some nodes.
type takeoverWatch struct {
	dead   []ring.Owner
	before []ipam.Holding        // who owned what when it began
	left   map[ring.Owner]uint64 // the most slots that were seen left to it
	texts  map[ring.Owner]string // told last
	tell   func(api.ForgetProgress)
}

func (w *takeoverWatch) look(now []ipam.Reclaim) {
	for _, r := range now {
		if !slices.Contains(w.dead, r.Dead) {
			continue
		}
		w.left[r.Dead] = max(w.left[r.Dead], r.Left)
		if r.Text != "" && w.texts[r.Dead] != r.Text {
			w.texts[r.Dead] = r.Text
			w.tell(api.ForgetProgress{Text: r.Text})
		}
	}
}

// result says who has the addresses now, which need not be the heir that was named for a node: whoever is named last takes
// over what all have left by then.
func (w *takeoverWatch) result(log []ipam.Retirement, after []ipam.Holding, name func(ring.Owner) string) api.ForgetResult {
	res := api.ForgetResult{Forgotten: []api.Forgotten{}}
	for _, r := range log {
		if !slices.Contains(w.dead, r.Dead) {
			continue
		}
		f := api.Forgotten{Retirement: retirement(r, name), Addresses: w.left[r.Dead]}
		if f.Addresses > 0 {
			heir := cmp.Or(successor(r.Dead, w.before, after), log[len(log)-1].Heir)
			f.Heir, f.HeirID = name(heir), mesh.NodeID(heir).String()
		}
		res.Forgotten = append(res.Forgotten, f)
	}
	return res
}

// successor returns who has the greatest part of what a node had before; 0 if nobody else has any.
func successor(dead ring.Owner, before, after []ipam.Holding) (best ring.Owner) {
	var had []netip.Prefix
	for _, h := range before {
		if h.Owner == dead {
			had = h.Prefixes
		}
	}
	most := uint64(0)
	for _, h := range after {
		got := uint64(0)
		for _, p := range h.Prefixes {
			for _, q := range had {
				if p.Overlaps(q) { // one lies in the other
					got += 1 << (p.Addr().BitLen() - max(p.Bits(), q.Bits()))
				}
			}
		}
		if h.Owner != dead && got > most {
			best, most = h.Owner, got
		}
	}
	return best
}

func retirement(r ipam.Retirement, name func(ring.Owner) string) api.Retirement {
	return api.Retirement{
		Node: name(r.Dead), NodeID: mesh.NodeID(r.Dead).String(), Heir: name(r.Heir), HeirID: mesh.NodeID(r.Heir).String(),
		By: name(r.By), ByID: mesh.NodeID(r.By).String(), At: r.At, Forced: r.Forced,
	}
}

func takeover(r ipam.Reclaim, name func(ring.Owner) string) api.Takeover {
	t := api.Takeover{
		Node: name(r.Dead), NodeID: mesh.NodeID(r.Dead).String(), Since: r.Since, Left: r.Left, Text: r.Text,
	}
	if r.Heir == 0 || r.Slots > 0 { // else only the heir knows
		voted := 100 * float64(r.Slots) / float64(cmp.Or(r.Size, 1))
		t.Voted = &voted
	}
	if r.Heir != 0 {
		t.Heir, t.HeirID = name(r.Heir), mesh.NodeID(r.Heir).String()
	}
	for _, o := range r.Missing {
		t.Missing = append(t.Missing, name(o))
	}
	return t
}

// Explain implements [api.Service].
func (n *Node) Explain(r api.ExplainRequest) (api.Explanation, error) {
	e := n.engines()
	if e == nil {
		return api.Explanation{}, n.errNotReady()
	}
	lines, err := e.alloc.Explain(r.Address)
	return api.Explanation{Address: r.Address, Lines: append([]string{}, lines...)}, err
}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/fastpath"
	"github.com/weftnet/weft/router/session"
)

const (
	// pathPatience is how long a path that was chosen may take until it is used for that to be the answer.
	pathPatience = 3 * time.Second
	pathLook     = 50 * time.Millisecond
)

// Path implements [api.Service].
func (n *Node) Path(ctx context.Context, r api.PathRequest) (api.PathResult, error) {
	e, err := n.ready()
	if err != nil {
		return api.PathResult{}, err
	}
	want, err := wantOf(r.Path)
	if err != nil {
		return api.PathResult{}, err
	}
	m, err := pathTo(e.members(), r.Node)
	if err != nil {
		return api.PathResult{}, err
	}
	k := e.kernel
	if want.Forced && want.Kind != fastpath.UDP {
		if err := k.whyNever(want.Kind); err != nil {
			return api.PathResult{}, err
		}
	}
	if err := k.choose(m.ID, want); err != nil {
		return api.PathResult{}, err
	}
	n.log.Info("path chosen", zap.String("node", shownName(m)), zap.String("path", r.Path))
	res := api.PathResult{Node: shownName(m), NodeID: m.ID.String()}
	for end := time.Now().Add(pathPatience); ; {
		known := k.describe([]mesh.Node{m})
		if known == nil {
			res.KernelPath = api.KernelPath{Want: wantName(want), Path: fastpath.UDP.String(), Why: "no kernel path is possible on this host", Kinds: []api.PathKind{}}
			return res, nil
		}
		res.KernelPath = known[m.ID]
		taken := res.Want == wantName(want)
		if taken && (!want.Forced || res.Path == want.Kind.String() || k.hopeless(m.ID, want.Kind)) || time.Now().After(end) {
			return res, nil
		}
		select {
		case <-ctx.Done():
			return res, nil
		case <-time.After(pathLook):
		}
	}
}

// pathTo finds the other node that a user means.
func pathTo(nodes []mesh.Node, what string) (mesh.Node, error) {
	var others, found, begun []mesh.Node
	for _, m := range nodes {
		if m.Status == mesh.Left {
			continue
		}
		if m.Status != mesh.Self {
			others = append(others, m)
		}
		if m.Name == what {
			found = append(found, m)
		}
		if len(what) >= 4 && len(m.ID.String()) >= len(what) && m.ID.String()[:len(what)] == what {
			begun = append(begun, m)
		}
	}
	if len(found) == 0 {
		found = begun
	}
	switch {
	case len(others) == 0:
		return mesh.Node{}, errors.New("this node is alone in its mesh; there is nobody to reach")
	case len(found) == 0:
		return mesh.Node{}, fmt.Errorf("there is no node %q; the others are %s", what, list(others, shownName))
	case len(found) > 1:
		return mesh.Node{}, fmt.Errorf("%q may be each of %d nodes; give the NodeID of one: %s", what, len(found),
			list(found, func(m mesh.Node) string { return fmt.Sprintf("%v (%s)", m.ID, shownName(m)) }))
	case found[0].Status == mesh.Self:
		return mesh.Node{}, fmt.Errorf("%s is this node; name another one: %s", shownName(found[0]), list(others, shownName))
	}
	return found[0], nil
}

// wantOf reads what a user wants.
func wantOf(s string) (fastpath.Want, error) {
	if s == api.PathAuto {
		return fastpath.Want{}, nil
	}
	kind, err := fastpath.ParseKind(s)
	if err != nil {
		return fastpath.Want{}, fmt.Errorf("%q is no path; choose auto, udp, vxlan or direct", s)
	}
	return fastpath.Want{Forced: true, Kind: kind}, nil
}

func wantName(w fastpath.Want) string {
	if w.Forced {
		return w.Kind.String()
	}
	return api.PathAuto
}

// whyNever tells why this node cannot reach any other by a kernel path of a kind.
func (k *kernelPaths) whyNever(kind fastpath.Kind) error {
	switch {
	case slices.Contains(k.offered(), kind):
		return nil
	case !k.trusts():
		return errors.New("this node trusts no network with plaintext; launch it with --trusted-subnets")
	case !k.n.cfg.Kernel.Paths.allows(kind):
		return fmt.Errorf("--paths leaves out %v; launch this node with it", kind)
	case len(k.lacks()) > 0:
		return errors.New(k.lacks()[0])
	}
	return fmt.Errorf("%v is not possible on this host; see the warnings of weft status", kind)
}

// choose notes what is wanted, durably.
func (k *kernelPaths) choose(id mesh.NodeID, want fastpath.Want) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	wants := maps.Clone(k.wants)
	if want.Forced {
		wants[id] = want
	} else {
		delete(wants, id)
	}
	if err := saveWants(k.n.store, wants); err != nil {
		return err
	}
	k.wants = wants
	k.wake.raise()
	return nil
}

// hopeless tells whether there is no way of a kind to a node.
func (k *kernelPaths) hopeless(id mesh.NodeID, kind fastpath.Kind) (none bool) {
	k.ask(func() {
		for i := range k.candidates {
			if k.candidates[i].ID == uint64(id) {
				_, possible := k.candidates[i].Way(kind)
				none = !possible
			}
		}
	})
	return none && kind != fastpath.UDP
}

// describe tells how nodes are reached; nil: nothing is done by the kernel here.
func (k *kernelPaths) describe(nodes []mesh.Node) (known map[mesh.NodeID]api.KernelPath) {
	k.ask(func() {
		candidates := make(map[uint64]*fastpath.Candidate, len(k.candidates))
		for i := range k.candidates {
			candidates[k.candidates[i].ID] = &k.candidates[i]
		}
		known = make(map[mesh.NodeID]api.KernelPath, len(nodes))
		for _, m := range nodes {
			if c := candidates[uint64(m.ID)]; c != nil {
				known[m.ID] = describeKernel(c, k.machine.Status(c.ID))
			}
		}
	})
	return known
}

// describeKernel tells how a node is reached.
func describeKernel(c *fastpath.Candidate, s fastpath.Status) api.KernelPath {
	p := api.KernelPath{Want: wantName(c.Want), Path: s.Path.String(), Why: s.Why, Kinds: []api.PathKind{}}
	if !s.Since.IsZero() {
		p.Since = &s.Since
	}
	for _, kind := range []fastpath.Kind{fastpath.Direct, fastpath.VXLAN} {
		x := api.PathKind{Kind: kind.String(), State: "not possible", Why: c.Why[kind]}
		if w, possible := c.Way(kind); possible {
			x.To, x.MTU, x.Why = w.String(), w.MTU, s.Kinds[kind]
			switch {
			case s.Path == kind:
				x.State, x.Why = "in use", ""
			case x.Why == "":
				x.State = "proven"
			default:
				x.State = "not proven"
			}
		}
		p.Kinds = append(p.Kinds, x)
	}
	if p.Why == "" && s.Path == fastpath.UDP { // what is best that is not possible
		p.Why = cmp.Or(c.Why[fastpath.VXLAN], c.Why[fastpath.Direct])
	}
	return p
}

// kernelStatus tells what is possible, and how many nodes are reached by which path; nil: no network is trusted.
func (n *Node) kernelStatus(e *engines, nodes []mesh.Node, stats []router.PeerStats) *api.KernelPaths {
	k := e.kernel
	if !k.trusts() {
		return nil
	}
	s := &api.KernelPaths{
		Trusted: []string{}, Possible: []string{}, Lacking: k.lacks(), VNI: n.cfg.Kernel.VNI, Port: vxlanPort(n.cfg.Port), Nodes: map[string]int{},
	}
	for _, p := range k.trusted {
		s.Trusted = append(s.Trusted, p.String())
	}
	if k.plain {
		s.Trusted = []string{"0.0.0.0/0", "::/0"}
	}
	for _, kind := range k.offered() {
		s.Possible = append(s.Possible, kind.String())
	}
	s.Bypass = k.bypassState()
	known := k.describe(nodes)
	keys := nodesByKey(nodes)
	for _, x := range stats {
		m, ok := keys[x.Key]
		if !ok {
			continue
		}
		path := pathOf(x).path
		if p := known[m]; p.Path != "" && p.Path != fastpath.UDP.String() {
			path = p.Path
		}
		s.Nodes[path]++
	}
	return s
}

// unreachable warns that nothing leads anywhere.
func (k *kernelPaths) unreachable() (warnings []string) {
	if !k.n.cfg.Kernel.Paths.allows(fastpath.UDP) && !k.on() {
		warnings = append(warnings, "no packet reaches another node: --paths leaves out udp, and no kernel path is possible here; launch this node with --trusted-subnets, or with udp among --paths")
	}
	return append(warnings, k.lacks()...)
}

// Stop implements [api.Service].
func (n *Node) Stop(r api.StopRequest) (res api.StopResult) {
	if e := n.engines(); e != nil && r.KeepTraffic {
		nodes := e.members()
		for id, p := range e.kernel.describe(nodes) {
			if p.Path != fastpath.UDP.String() {
				res.Kept = append(res.Kept, fmt.Sprintf("%s (%s)", shownNames(nodes)[id], p.Path))
			}
		}
		slices.Sort(res.Kept)
		e.kernel.mu.Lock()
		e.kernel.keep = true
		e.kernel.mu.Unlock()
	}
	n.quit(errStopped)
	return res
}

// nodesByKey finds nodes by their keys of the data path.
func nodesByKey(nodes []mesh.Node) map[session.PublicKey]mesh.NodeID {
	ids := make(map[session.PublicKey]mesh.NodeID, len(nodes))
	for _, m := range nodes {
		ids[session.PublicKey(m.PublicKey)] = m.ID
	}
	return ids
}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/manifest"
	"github.com/weftnet/weft/policy/replica"
)

// policyWriter returns the policies that can be changed here.
func (n *Node) policyWriter(instead string) (*policyHosts, error) {
	if n.cfg.Guide != nil {
		return nil, fmt.Errorf("under Kubernetes network policies come from its API; %s", instead)
	}
	e, err := n.ready()
	if err != nil {
		return nil, err
	}
	return e.shared, nil
}

// PolicyApply implements [api.Service].
func (n *Node) PolicyApply(ctx context.Context, r api.PolicyApplyRequest) (api.PolicyChanges, error) {
	h, err := n.policyWriter("use kubectl apply -f FILE")
	if err != nil {
		return api.PolicyChanges{}, err
	}
	if r.Namespace == "" {
		r.Namespace = defaultNamespace
	} else if !replica.DNSLabel(r.Namespace) {
		return api.PolicyChanges{}, fmt.Errorf("%.80q is no namespace; use 1 to 63 lower-case letters, digits and hyphens, the first and the last no hyphen", r.Namespace)
	}
	objects, err := manifest.Read([]byte(r.Manifests), r.Namespace)
	if err != nil {
		return api.PolicyChanges{}, fmt.Errorf("the manifests are refused, and nothing was done: %w", err)
	}
	if len(objects.Sources) == 0 {
		return api.PolicyChanges{}, errors.New("there is no manifest in what was given; give NetworkPolicies, ClusterNetworkPolicies or Namespaces")
	}
	var wanted []wantedObject
	for _, s := range objects.Sources {
		wanted = append(wanted, wantedObject{api.PolicyObject{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name.Name}, s.JSON, s.Policy})
	}
	return h.applyAndWait(ctx, wanted, true, r.DryRun, r.Wait)
}

// PolicyDelete implements [api.Service].
func (n *Node) PolicyDelete(ctx context.Context, r api.PolicyDeleteRequest) (api.PolicyChanges, error) {
	h, err := n.policyWriter("use kubectl delete")
	if err != nil {
		return api.PolicyChanges{}, err
	}
	var wanted []wantedObject
	for _, o := range r.Objects {
		wanted = append(wanted, wantedObject{PolicyObject: o})
	}
	if r.Manifests != "" {
		if r.Namespace == "" {
			r.Namespace = defaultNamespace
		}
		objects, err := manifest.Read([]byte(r.Manifests), r.Namespace)
		if err != nil {
			return api.PolicyChanges{}, fmt.Errorf("the manifests are refused, and nothing was done: %w", err)
		}
		for _, s := range objects.Sources {
			wanted = append(wanted, wantedObject{PolicyObject: api.PolicyObject{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name.Name}})
		}
	}
	return h.applyAndWait(ctx, wanted, r.Absent, r.DryRun, r.Wait)
}

// wantedObject is an object and its manifest; nil: it is to go.
type wantedObject struct {
	api.PolicyObject
	manifest []byte
	policy   *policy.Policy // what is understood of it, if it is one
}

// applyAndWait does all that is wanted, or nothing, and waits until it is in force on this host.
func (h *policyHosts) applyAndWait(ctx context.Context, wanted []wantedObject, absent, dryRun bool, wait time.Duration) (api.PolicyChanges, error) {
	res, err := h.apply(wanted, absent, dryRun)
	if err != nil || dryRun || wait <= 0 {
		return res, err
	}
	ctx, cancel := context.WithTimeout(ctx, min(wait, maxWait))
	defer cancel()
	if err := h.n.policies.Settled(ctx); err != nil {
		res.Warnings = append(res.Warnings, fmt.Sprintf("it is done, and not in force on this host yet: %v; see: weft status", err))
	}
	return res, nil
}

// maxWait bounds for how long somebody may wait for policies to be in force.
const maxWait = 10 * time.Minute

// apply does all that is wanted, or nothing. absent tells that what is to go need not be there.
func (h *policyHosts) apply(wanted []wantedObject, absent, dryRun bool) (api.PolicyChanges, error) {
	res := api.PolicyChanges{Objects: []api.PolicyChange{}, DryRun: dryRun}
	var delta []byte
	known := make(map[string]understood, len(wanted))
	err := h.change(known, func(set *replica.Set) (_ []byte, changed []string, err error) {
		var changes []replica.Change
		var missing []string
		for _, w := range wanted {
			key := manifestKey(w.PolicyObject)
			before, there := set.Get(key)
			done := "created"
			switch {
			case w.manifest == nil && !there:
				done = "absent"
				missing = append(missing, w.String())
			case w.manifest == nil:
				done = "deleted"
			case there && string(before.Value) == string(w.manifest):
				done = "unchanged"
			case there:
				done = "changed"
			}
			res.Objects = append(res.Objects, api.PolicyChange{PolicyObject: w.PolicyObject, Done: done})
			changes = append(changes, replica.Change{Key: key, Value: w.manifest})
			known[key] = understood{w.manifest, w.policy}
		}
		if len(missing) > 0 && !absent {
			return nil, nil, fmt.Errorf("there is no %s; nothing was deleted: see weft policy list", strings.Join(missing, ", nor "))
		}
		if delta, changed, err = set.Write(changes); errors.Is(err, replica.ErrTooMuch) {
			err = fmt.Errorf("the mesh has no room for it, and nothing was done: %w; delete policies first", err)
		}
		if dryRun {
			return nil, nil, err
		}
		return delta, changed, err
	})
	if err != nil {
		return api.PolicyChanges{}, err
	}
	if !dryRun && delta != nil {
		h.e.mesh.Broadcast(stateManifests, delta)
		h.n.log.Info("network policies changed by a command", zap.Int("objects", len(res.Objects)))
		h.look()
	}
	return res, nil
}

// enforcer is who puts policies in force.
func (n *Node) enforcer() (*enforce.Enforcer, *engines, error) {
	e := n.engines()
	if e == nil {
		return nil, nil, n.errNotReady()
	}
	return n.policies, e, nil
}

// PolicyList implements [api.Service].
func (n *Node) PolicyList(context.Context) (api.PolicyList, error) {
	f, e, err := n.enforcer()
	if err != nil {
		return api.PolicyList{}, err
	}
	l := api.PolicyList{Policies: []api.Policy{}}
	counts, err := f.Counters()
	if err != nil {
		l.Warnings = append(l.Warnings, "what the policies have decided cannot be told: "+err.Error())
	}
	alike := groups(f, n.cfg.Name)
	for _, p := range policiesOf(f) {
		l.Policies = append(l.Policies, api.Policy{
			PolicyObject: objectOf(p.PolicyKey), Tier: p.Tier.String(), Priority: p.Priority, Problems: p.Problems,
			Allowed: counts[p.PolicyKey].Allowed, Denied: counts[p.PolicyKey].Denied,
		})
		row := &l.Policies[len(l.Policies)-1]
		// One policy at a time: as long as somebody looks nothing can be put in force.
		f.Look(func(w *policy.World) {
			for _, g := range alike {
				if w.Selects(p, g.like) {
					row.Mesh += g.mesh
					row.Selects += g.local
				}
			}
		})
	}
	status := f.Status() // after what is listed: it says how it is with that
	l.Awaits, l.Failure, l.Pending = status.Awaits, status.Failure, status.Pending
	if e.shared == nil {
		return l, nil
	}
	e.shared.view(func(set *replica.Set) {
		for i, p := range l.Policies {
			if m, ok := set.Get(manifestKey(p.PolicyObject)); ok {
				l.Policies[i].Manifest = m.Value
			}
		}
		for _, key := range set.Keys() {
			if name, ok := strings.CutPrefix(key, manifestKey(api.PolicyObject{Kind: kindNamespace})); ok {
				m, _ := set.Get(key)
				var ns manifest.Namespace
				_ = json.Unmarshal(m.Value, &ns) // what it cannot tell is empty
				l.Namespaces = append(l.Namespaces, api.PolicyNamespace{Name: name, Labels: ns.Metadata.Labels, Manifest: m.Value})
			}
		}
	})
	return l, nil
}

func policiesOf(f *enforce.Enforcer) (all []*policy.Policy) {
	f.Look(func(w *policy.World) { all = slices.Collect(w.Policies()) })
	return all
}

// A group is endpoints of one namespace with the same labels: a policy selects all of them or none.
type group struct {
	like        policy.Endpoint
	mesh, local int
}

func groups(f *enforce.Enforcer, node string) []*group {
	type kind struct {
		namespace string
		labels    uintptr // the world keeps equal labels once
	}
	byKind := map[kind]*group{}
	f.Look(func(w *policy.World) {
		for e := range w.Endpoints() {
			k := kind{e.Namespace, reflect.ValueOf(e.Labels).Pointer()}
			g := byKind[k]
			if g == nil {
				g = &group{like: e}
				byKind[k] = g
			}
			g.mesh++
			if e.Node == node {
				g.local++
			}
		}
	})
	return slices.Collect(maps.Values(byKind))
}

func objectOf(k policy.PolicyKey) api.PolicyObject {
	kind := kindNetwork
	if k.Kind != policy.Network {
		kind = kindCluster
	}
	return api.PolicyObject{Kind: kind, Namespace: k.Namespace, Name: k.Name.Name}
}

// PolicyShow implements [api.Service].
func (n *Node) PolicyShow(r api.PolicyShowRequest) (s api.PolicyShown, err error) {
	f, e, err := n.enforcer()
	if err != nil {
		return s, err
	}
	s.Workloads = []policy.Summary{}
	var names []policy.Name
	f.Look(func(w *policy.World) {
		if r.Workload == "" {
			names = localNames(w, n.cfg.Name)
			return
		}
		var name policy.Name
		if name, err = endpointCalled(w, e, r.Workload); err == nil {
			names = append(names, name)
		}
	})
	for _, name := range names {
		// One at a time: as long as somebody looks nothing can be put in force.
		f.Look(func(w *policy.World) {
			if one, ok := w.Summary(name); ok {
				s.Workloads = append(s.Workloads, one)
			}
		})
	}
	return s, err
}

// localNames are the endpoints of a node.
func localNames(w *policy.World, node string) (names []policy.Name) {
	for ep := range w.Endpoints() {
		if ep.Node == node {
			names = append(names, ep.Name)
		}
	}
	return names
}

// endpointCalled returns the endpoint that a text means: as policy.World has it, by its address, by the ID of a workload of this host, or, where its name is
// NAME@NODE, by the part before that if no other one has it.
func endpointCalled(w *policy.World, e *engines, who string) (policy.Name, error) {
	addrs, err := w.Find(who)
	if err == nil {
		for _, a := range addrs {
			if ep, ok := w.EndpointAt(a); ok {
				return ep.Name, nil
			}
		}
	}
	if name, ferr := w.FindEndpoint(who); ferr == nil {
		return name, nil
	}
	if found := e.workloads.called(who); len(found) == 1 {
		if lease, ok := e.workloads.alloc.Lookup(found[0].ID); ok {
			for _, a := range addresses(lease) {
				if ep, ok := w.EndpointAt(a); ok {
					return ep.Name, nil
				}
			}
		}
	}
	namespace, name, whole := strings.Cut(who, "/")
	if !whole {
		namespace, name = policy.DefaultNamespace, who
	}
	var there, elsewhere []policy.Name
	for ep := range w.Endpoints() {
		short, _, ok := strings.Cut(ep.Name.Name, "@")
		switch {
		case !ok || short != name:
		case ep.Namespace == namespace:
			there = append(there, ep.Name)
		case !whole:
			elsewhere = append(elsewhere, ep.Name)
		}
	}
	if len(there) == 0 {
		there = elsewhere
	}
	switch {
	case len(there) == 1:
		return there[0], nil
	case len(there) > 1:
		var names []string
		for _, n := range there {
			names = append(names, n.String())
		}
		return policy.Name{}, fmt.Errorf("%.300s may be each of %d workloads; give the whole name of one: %s", who, len(there), strings.Join(names, ", "))
	case err == nil:
		return policy.Name{}, fmt.Errorf("%.300s is no address of a workload, and policies are about workloads alone; see weft ps", who)
	}
	return policy.Name{}, err
}

// PolicyWhy implements [api.Service].
func (n *Node) PolicyWhy(r api.PolicyWhyRequest) (res api.PolicyWhy, err error) {
	f, e, err := n.enforcer()
	if err != nil {
		return res, err
	}
	f.Look(func(w *policy.World) {
		ends := []string{r.From, r.To}
		for i, who := range ends {
			if _, ferr := w.Find(who); ferr == nil {
				continue
			}
			name, nerr := endpointCalled(w, e, who)
			if nerr != nil {
				err = nerr
				return
			}
			ends[i] = name.String()
		}
		var all []policy.Connection
		if all, err = w.Connections(ends[0], ends[1], r.Port); err != nil {
			return
		}
		res.Allowed = true
		for _, c := range all {
			x := w.Why(c)
			res.Allowed = res.Allowed && x.Allowed
			res.Connections = append(res.Connections, x)
		}
	})
	return res, err
}

// PolicyLog implements [api.Service].
func (n *Node) PolicyLog(ctx context.Context, r api.PolicyLogRequest, tell func(api.PolicyLogProgress)) (api.PolicyLogResult, error) {
	f, _, err := n.enforcer()
	if err != nil {
		return api.PolicyLogResult{}, err
	}
	list, last := f.Denials(r.Last)
	for _, d := range list {
		told := deniedOf(d)
		tell(api.PolicyLogProgress{Denied: &told})
	}
	if !r.Follow {
		return api.PolicyLogResult{}, nil
	}
	f.Follow(ctx, last, func(d enforce.Denied, skipped uint64) {
		told := deniedOf(d)
		tell(api.PolicyLogProgress{Denied: &told, Skipped: skipped})
	})
	return api.PolicyLogResult{}, context.Cause(ctx)
}

// deniedOf is a denial in the words of users.
func deniedOf(d enforce.Denied) api.Denied {
	out := api.Denied{
		Seq: d.Seq, Time: d.Time, Src: d.Connection.Src, Dst: d.Connection.Dst, Protocol: strings.ToLower(d.Protocol.String()),
		End: strings.ToLower(d.Direction.String()), Untold: d.Suppressed,
	}
	if d.Protocol.HasPorts() {
		out.Port = d.Port
	}
	if d.Src != (policy.Name{}) {
		out.SrcName = d.Src.String()
	}
	if d.Dst != (policy.Name{}) {
		out.DstName = d.Dst.String()
	}
	v := d.Verdict
	keys := slices.Clone(v.Isolating)
	if v.Reason == policy.ByRule {
		keys = []policy.PolicyKey{v.Policy}
	}
	for _, k := range keys {
		out.Policies = append(out.Policies, k.String())
	}
	of := "the source's " + out.End
	if d.Direction == policy.Ingress {
		of = "the destination's " + out.End
	}
	switch {
	case v.Allowed:
		out.Why, out.Policies = of+" denied it, which policies have changed to allow since", nil
	case v.Reason == policy.ByRule:
		out.Why = fmt.Sprintf("%s is denied by %s, rule %d", of, out.Policies[0], v.Rule+1)
	default:
		out.Why = fmt.Sprintf("%s is isolated by %s, and nothing allows it", of, strings.Join(out.Policies, " and "))
	}
	return out
}

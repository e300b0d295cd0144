// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/internal/events"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
	"github.com/weftnet/weft/policy/filter"
)

// Network policies. Their source is the cluster, by the guide, or what plain hosts share; the Enforcer puts them in force. What it has to know of
// this node is told here: what is attached, and which addresses are those of hosts. It is there before anything is served, so that a source can begin
// at once, and holds back what is to be attached until its policies are in force.

const (
	// policyPatience is how long an attach waits for the policies that concern it.
	policyPatience = 10 * time.Second
	// shownProblems is how many things that are wrong with policies are told as warnings.
	shownProblems = 10
)

// startPolicies makes the Enforcer and runs it until the function that it returns is called.
func (n *Node) startPolicies(ctx context.Context) (end func(), err error) {
	boot, err := n.sys.bootID()
	if err != nil {
		return nil, err
	}
	log := n.log.Named("policy")
	kernel, compiler := n.sys.policies(n.cfg.Name, n.noteRepaired, n.flows.forget, log)
	n.policies = enforce.New(enforce.Config{
		Namespaces: n.cfg.Guide != nil && n.cfg.GuidePolicies,
		Node:       n.cfg.Name, Kernel: kernel, Compiler: compiler, File: filepath.Join(n.cfg.DataDir, enforce.FileName), Boot: boot, Log: log,
		Note:    func(text, cause string) { n.noteSelf(events.Policy, text, cause) },
		InForce: n.flows.policed,
		Changed: func() {
			if e := n.engines(); e != nil {
				e.workloads.mending.raise() // what was held back can be connected again
			}
		},
	})
	if n.cfg.Guide != nil && !n.cfg.GuidePolicies {
		n.policies.Synced()
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { n.policies.Run(ctx) })
	return sync.OnceFunc(func() {
		stop()
		running.Wait()
		if k, ok := kernel.(interface{ Close() }); ok {
			k.Close()
		}
	}), nil
}

// removePolicies removes what network policies have left on this host, and returns what that was. The daemon must have ended.
func removePolicies(dataDir string) (removed []string, err error) {
	for _, path := range enforce.Files(dataDir) {
		if err := os.Remove(path); err == nil {
			removed = append(removed, path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return removed, fmt.Errorf("removing %s: %w", path, err)
		}
	}
	f, err := filter.New(filter.Config{})
	if err != nil {
		return removed, err
	}
	defer f.Close()
	there, err := f.Left()
	if err != nil || !there {
		return removed, err
	}
	if err := f.Remove(); err != nil {
		return removed, err
	}
	return append(removed, "nftables table inet "+filter.Table), nil
}

// beginPolicies tells what this node has attached, connected as it still is also where the node is retired. What another boot has attached is not any more.
func (n *Node) beginPolicies(e *engines) {
	var locals []enforce.Local
	for _, w := range e.workloads.list() {
		lease, leased := e.alloc.Lookup(w.ID)
		if l, ok := e.workloads.local(w, lease); ok && leased && w.Boot == e.workloads.boot {
			locals = append(locals, l)
		}
	}
	n.syncing.Lock()
	n.tellOwners(e, e.mesh.Nodes(), e.alloc.Owned()) // before anything is in force
	n.syncing.Unlock()
	n.policies.Begin(locals)
}

// tellHosts tells which addresses the nodes of the mesh have. The caller has n.syncing.
func (n *Node) tellHosts(e *engines, nodes []mesh.Node) {
	hosts, count := map[string][]netip.Addr{}, map[string]int{}
	for _, m := range nodes {
		count[m.Name]++
	}
	for _, m := range nodes {
		if m.Status == mesh.Left {
			continue
		}
		name := m.Name
		if m.Status != mesh.Self && (name == "" || count[name] > 1) { // nobody else's addresses are this node's
			name += "." + m.ID.String()
		}
		var own []netip.Addr
		if m.Status == mesh.Self {
			// Not what others say of it: its workloads may always reach what is its own.
			own = append(own, e.where.exit().Addrs...)
			if l, ok := e.alloc.Lookup(hostOwner); ok {
				own = append(own, addresses(l)...)
			}
		} else {
			own = append(own, m.Hosts...)
			for _, at := range append([]netip.AddrPort{m.Addr}, m.Endpoints...) {
				if a := at.Addr().Unmap(); a.IsValid() && !a.IsUnspecified() {
					own = append(own, a)
				}
			}
		}
		hosts[name] = own
	}
	if !reflect.DeepEqual(hosts, n.hosts) {
		n.hosts = hosts
		n.policies.SetHosts(hosts)
	}
}

// Policies puts network policies in force. A guide that tells them has it there from the beginning of its Run.
func (n *Node) Policies() *enforce.Enforcer { return n.policies }

// policyStatus is how it is with network policies; nil where there are none.
func (n *Node) policyStatus() (*api.PolicyStatus, []string) {
	s := n.policies.Status()
	var warnings []string
	if s.Failure != "" {
		warnings = append(warnings, "network policies are not in force as they should be: "+s.Failure)
	}
	if s.Uncut != "" {
		warnings = append(warnings, "connections that network policies do not allow any more go on: "+s.Uncut)
	}
	if s.Awaits != "" && n.engines() != nil {
		warnings = append(warnings, "nothing new is attached until the network policies are known: waiting for "+s.Awaits)
	}
	problems := n.policies.Problems()
	warnings = append(warnings, head(problems, shownProblems)...)
	if s.Policies == 0 && s.Awaits == "" && s.Failure == "" {
		return nil, warnings
	}
	return &api.PolicyStatus{Policies: s.Policies, Workloads: s.Subjects, Problems: len(problems), WaitsFor: s.Awaits, Failure: s.Failure}, warnings
}

// local is what policies know a workload by; ok is false if they know nothing of it, as of what is no pod where there is Kubernetes.
func (ws *workloads) local(w workload, l ipam.Lease) (as enforce.Local, ok bool) {
	if ws.guided {
		if w.CNI == nil || w.CNI.Pod.Name == "" || !ws.podsTold {
			return as, false
		}
		p := w.CNI.Pod
		return enforce.Local{Key: w.ID, Endpoint: policy.Endpoint{
			Name: policy.Name{Namespace: p.Namespace, Name: p.Name}, ID: p.UID, Node: ws.node, Addrs: addresses(l),
		}}, true
	}
	e := w.endpoint(l)
	as = enforce.Local{Key: w.ID, Given: true, Endpoint: policy.Endpoint{
		Name: fullName(e.Namespace, e.Name, ws.node), ID: e.ID, Node: ws.node, Labels: e.Labels, Addrs: e.Addrs,
	}}
	for _, p := range e.Ports {
		as.Ports = append(as.Ports, policy.NamedPort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	return as, true
}

// permit waits until the policies that concern what is to be attached are in force. Until the attach is kept, or relabelAsKept is called, policies know it by
// what is wanted.
func (ws *workloads) permit(ctx context.Context, want workload, lease ipam.Lease) error {
	if w, ok := ws.get(want.ID); ok {
		want.Policy = w.Policy.updated(want.Policy)
	}
	l, ok := ws.local(want, lease)
	if !ok || ws.policies == nil {
		return nil
	}
	patient, cancel := context.WithTimeout(ctx, policyPatience)
	defer cancel()
	err := ws.policies.Admit(patient, l)
	if err != nil && errors.Is(context.Cause(ctx), errTakenBack) {
		return errTakenBack
	}
	return err
}

// permits says of workloads by their IDs why they may not be connected again now.
type permits map[string]permitted

// permitted is an answer about a workload with these addresses.
type permitted struct {
	lease ipam.Lease
	err   error // nil: it may
}

// repermit asks whether workloads may be connected again now: all of them at once, and while the gate is open, as the answer may take a while.
func (ws *workloads) repermit(missing []string) permits {
	var ids []string
	var locals []enforce.Local
	given := permits{}
	for _, id := range missing {
		w, known := ws.get(id)
		lease, leased := ws.alloc.Lookup(id)
		if !known || !leased {
			continue
		}
		given[id] = permitted{lease: lease}
		if l, ok := ws.local(w, lease); ok {
			ids, locals = append(ids, id), append(locals, l)
		}
	}
	if len(locals) == 0 {
		return given
	}
	ctx, cancel := context.WithTimeout(context.Background(), policyPatience)
	defer cancel()
	for i, err := range ws.policies.Readmit(ctx, locals) {
		given[ids[i]] = permitted{given[ids[i]].lease, err}
	}
	return given
}

// allow says why a workload may not be connected again; asked is false if that was not asked, of the workload as it is now.
func (ws *workloads) allow(given permits, id string, lease ipam.Lease) (asked bool, err error) {
	if ws.policies == nil {
		return true, nil
	}
	p, ok := given[id]
	return ok && p.lease == lease, p.err
}

// forPolicies tells whether an attach was refused as policies are not in force.
func forPolicies(err error) bool {
	var wait *enforce.WaitError
	var lack *enforce.LackError
	return errors.As(err, &wait) || errors.As(err, &lack)
}

// relabel tells what a workload that is attached is called now.
func (ws *workloads) relabel(w workload) {
	lease, leased := ws.alloc.Lookup(w.ID)
	if l, ok := ws.local(w, lease); ok && leased && ws.policies != nil {
		ws.policies.Relabel(l)
	}
}

// relabelAsKept has policies know a workload by its record again after an attach that failed, if there is one.
func (ws *workloads) relabelAsKept(id string) {
	if w, known := ws.get(id); known {
		ws.relabel(w)
	}
}

// unpermit says that workloads are not connected any more.
func (ws *workloads) unpermit(ids ...string) {
	for _, id := range ids {
		if ws.policies != nil {
			ws.policies.Dismiss(id)
		}
	}
}

// lackingKernel is one that cannot judge connections.
type lackingKernel struct{ why error }

func (k lackingKernel) Present() (bool, error) { return false, nil }
func (k lackingKernel) Support() error         { return k.why }
func (k lackingKernel) Remove() error          { return nil }

func (k lackingKernel) Replace(*compile.State) error { return k.why }
func (k lackingKernel) Update(compile.Delta) error   { return k.why }

func (k lackingKernel) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Health is never told: Support says all.
func (k lackingKernel) Health() <-chan filter.Health { return nil }

func (k lackingKernel) Counters() (map[policy.PolicyKey]enforce.Count, error) {
	return nil, fmt.Errorf("nothing is counted: %w", k.why)
}

func (k lackingKernel) Denials(ctx context.Context) <-chan enforce.Denial {
	none := make(chan enforce.Denial)
	context.AfterFunc(ctx, func() { close(none) })
	return none
}

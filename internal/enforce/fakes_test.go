// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// fakeKernel keeps what it is given, over restarts of the Enforcer, as the kernel does, and checks it: a table that nobody leads to, or a side that leads
// nowhere, is a failure of the test.
type fakeKernel struct {
	t *testing.T

	mu       sync.Mutex
	has      *compile.State // nil: nothing
	calls    []string       // of the methods that change it
	fail     error          // what Replace ends in
	failing  error          // what the next Update ends in, after a part of it
	stuck    error          // what Remove ends in
	lacks    error
	blind    error // what Present ends in
	slow     time.Duration
	runs     int
	unguard  error // what Run ends in
	denials  chan Denial
	counters map[policy.PolicyKey]Count
}

func newKernel(t *testing.T) *fakeKernel { return &fakeKernel{t: t, denials: make(chan Denial)} }

func (k *fakeKernel) Present() (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.has != nil, k.blind
}

func (k *fakeKernel) Replace(s *compile.State) error {
	time.Sleep(k.slow)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, "replace")
	if k.fail != nil {
		return k.fail
	}
	k.has = compile.NewState()
	k.has.Apply(compile.Delta{
		AddTables: slices.Collect(maps.Values(s.Tables)), SetSides: s.Sides, SetIdentities: s.Identities, SetBlocks: s.Blocks, SetSelves: s.Selves,
	})
	k.check()
	return nil
}

func (k *fakeKernel) Update(d compile.Delta) error {
	time.Sleep(k.slow)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, "update")
	if k.has == nil {
		k.t.Error("a change of what is not there")
		return errors.New("there is nothing")
	}
	if err := cmpErr(k.failing, k.fail); err != nil {
		k.failing = nil
		k.has.Apply(compile.Delta{DropIdentities: d.DropIdentities})
		return err
	}
	k.has.Apply(d)
	k.check()
	return nil
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// check looks over what it has. The caller has k.mu.
func (k *fakeKernel) check() {
	for s, id := range k.has.Sides {
		if k.has.Tables[id] == nil {
			k.t.Errorf("the side %v leads to table %d, which is not there", s, id)
		}
	}
	if len(k.has.Sides) == 0 {
		k.t.Error("there is a table in the kernel that nobody needs")
	}
}

func (k *fakeKernel) Remove() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, "remove")
	if k.stuck != nil {
		return k.stuck
	}
	k.has = nil
	return nil
}

func (k *fakeKernel) Support() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lacks
}

func (k *fakeKernel) Run(ctx context.Context) error {
	k.mu.Lock()
	k.runs++
	err := k.unguard
	k.mu.Unlock()
	if err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (k *fakeKernel) Counters() (map[policy.PolicyKey]Count, error) {
	return maps.Clone(k.counters), nil
}

func (k *fakeKernel) Denials(ctx context.Context) <-chan Denial {
	out := make(chan Denial)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case d := <-k.denials:
				select {
				case out <- d:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// take returns what has been called since, and forgets it.
func (k *fakeKernel) take() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	calls := k.calls
	k.calls = nil
	return calls
}

// judged tells whether the kernel has rules for what an address receives.
func (k *fakeKernel) judged(a string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.has == nil {
		return false
	}
	_, ok := k.has.Sides[compile.Side{Addr: netip.MustParseAddr(a), Direction: policy.Ingress}]
	return ok
}

func (k *fakeKernel) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

// fakeCompiler is slow and obvious: who is selected gets a table of its own, that denies all but what its own node sends.
type fakeCompiler struct {
	*policy.World
	node  string
	state *compile.State
	last  compile.TableID
	names map[compile.Side]policy.Name // whose table a side has
}

func newCompiler(node string) *fakeCompiler {
	return &fakeCompiler{World: policy.NewWorld(), node: node, state: compile.NewState(), names: map[compile.Side]policy.Name{}}
}

func (c *fakeCompiler) State() *compile.State { return c.state }

func (c *fakeCompiler) Commit() compile.Delta {
	d := compile.Delta{SetSides: map[compile.Side]compile.TableID{}, SetIdentities: map[netip.Addr]compile.Identity{}}
	want := map[compile.Side]policy.Name{}
	for e := range c.Endpoints() {
		for _, a := range e.Addrs {
			if at, ok := c.EndpointAt(a); !ok || at.Name != e.Name || e.Node != c.node {
				continue
			}
			for _, dir := range []policy.Direction{policy.Ingress, policy.Egress} {
				if len(c.Selecting(e, policy.Network, dir)) > 0 {
					want[compile.Side{Addr: a, Direction: dir}] = e.Name
				}
			}
		}
	}
	for s := range c.state.Sides {
		if want[s] != c.names[s] {
			d.DropSides = append(d.DropSides, s)
			d.DropTables = append(d.DropTables, c.state.Sides[s])
		}
	}
	for s, name := range want {
		if c.names[s] == name {
			continue
		}
		c.last++
		by := &policy.Verdict{Reason: policy.Isolated, Isolating: []policy.PolicyKey{{Kind: policy.Network, Name: policy.Name{Namespace: name.Namespace, Name: "p"}}}}
		d.AddTables = append(d.AddTables, &compile.Table{ID: c.last, Default: compile.Verdict{By: by}, Cells: map[compile.Cell]compile.Verdict{
			{Identity: 7, Protocol: policy.TCP, First: 80, Last: 90}: {Allow: true, By: &policy.Verdict{Allowed: true, Reason: policy.ByRule, Rule: 3}},
		}})
		d.SetSides[s] = c.last
	}
	if len(want) > 0 {
		for e := range c.Endpoints() {
			for _, a := range e.Addrs {
				if c.state.Identities[a] == 0 {
					d.SetIdentities[a] = 7
				}
			}
		}
	}
	for a := range c.state.Identities {
		if _, ok := c.EndpointAt(a); !ok || len(want) == 0 {
			d.DropIdentities = append(d.DropIdentities, a)
		}
	}
	c.names = want
	c.state.Apply(d)
	return d
}

// site is an Enforcer on a host that outlives it.
type site struct {
	t      *testing.T
	kernel *fakeKernel
	home   string
	boot   string

	*Enforcer
	stop  context.CancelFunc
	done  chan struct{}
	mu    sync.Mutex
	notes []string
	news  int
}

func newSite(t *testing.T) *site {
	s := &site{t: t, kernel: newKernel(t), home: t.TempDir(), boot: "boot-1"}
	t.Cleanup(s.end)
	return s
}

func (s *site) start() {
	s.Enforcer = New(Config{
		Node: "n1", Kernel: s.kernel, Compiler: newCompiler("n1"), File: s.home + "/" + FileName, Boot: s.boot, Log: zap.NewNop(),
		Note: func(text, cause string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.notes = append(s.notes, text+" ("+cause+")")
		},
		Changed: func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.news++
		},
	})
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		s.Run(ctx)
	}()
}

func (s *site) end() {
	if s.stop != nil {
		s.stop()
		<-s.done
		s.stop = nil
	}
}

func (s *site) takeNotes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	notes := s.notes
	s.notes = nil
	return notes
}

// within admits a workload with some patience.
func (s *site) within(d time.Duration, l Local) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return s.Admit(ctx, l)
}

// isolating isolates what has the label, in both directions; without a label all of its namespace.
func isolating(name, key, value string) *policy.Policy {
	pods := policy.Selector{}
	if key != "" {
		pods = policy.Selector{{Key: key, Operator: policy.In, Values: []string{value}}}
	}
	return &policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "default", Name: name}}, Tier: policy.Network,
		Pods: &pods, Isolates: [2]bool{true, true},
	}
}

func named(name string) policy.Name { return policy.Name{Namespace: "default", Name: name} }

// pod is one as the source tells it.
func pod(name, id, node, app string, addrs ...string) policy.Endpoint {
	e := policy.Endpoint{Name: named(name), ID: id, Node: node, Labels: map[string]string{"app": app}}
	for _, a := range addrs {
		e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
	}
	return e
}

// attached is a pod as this node attaches it.
func attached(key, name, id string, addrs ...string) Local {
	e := pod(name, id, "", "", addrs...)
	e.Labels = nil
	return Local{Key: key, Endpoint: e}
}

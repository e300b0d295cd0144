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
	"github.com/weftnet/weft/policy/filter"
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
	health   chan filter.Health
}

func newKernel(t *testing.T) *fakeKernel {
	return &fakeKernel{t: t, denials: make(chan Denial), health: make(chan filter.Health)}
}

func (k *fakeKernel) Health() <-chan filter.Health { return k.health }

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

// site is an Enforcer on a host that outlives it.
type site struct {
	whole  *counting
	t      *testing.T
	kernel *fakeKernel
	home   string
	boot   string
	spaced bool // its source tells namespaces

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
		Node: "n1", Kernel: s.kernel, Compiler: s.compiler(), File: s.home + "/" + FileName, Boot: s.boot, Log: zap.NewNop(), Namespaces: s.spaced,
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

// isolating isolates what has the label, in both directions, but for what others with app=web send it; without a label all of its namespace.
func isolating(name, key, value string) *policy.Policy {
	pods := policy.Selector{}
	if key != "" {
		pods = policy.Selector{{Key: key, Operator: policy.In, Values: []string{value}}}
	}
	return &policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "default", Name: name}}, Tier: policy.Network,
		Pods: &pods, Isolates: [2]bool{true, true}, Rules: [2][]policy.Rule{policy.Ingress: {{
			Peers: []policy.Peer{{Pods: &policy.Selector{{Key: "app", Operator: policy.In, Values: []string{"web"}}}}}, AnyPort: true,
		}}},
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

// compiler makes the one of a run, whose states are counted.
func (s *site) compiler() Compiler {
	s.whole = &counting{Compiler: compile.New("n1", compile.Limits{})}
	return s.whole
}

// counting counts how often the whole state is asked for.
type counting struct {
	*compile.Compiler
	states int
}

func (c *counting) State() *compile.State {
	c.states++
	return c.Compiler.State()
}

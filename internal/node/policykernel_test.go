// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
	"github.com/weftnet/weft/policy/filter"
)

// fakeFilter judges connections as the kernel does, over restarts of the node.
type fakeFilter struct {
	t *testing.T

	mu      sync.Mutex
	has     *compile.State // nil: nothing
	calls   []string       // of the methods that change it
	fail    error          // what they end in
	lacks   error
	slow    time.Duration // what they take
	denials chan enforce.Denial
	health  chan filter.Health
	changed func() // to be called after what packets are judged by has changed
}

func newFilter(t *testing.T) *fakeFilter {
	return &fakeFilter{t: t, denials: make(chan enforce.Denial), health: make(chan filter.Health)}
}

func (m *machine) policies(node string, _ func([]string), changed func(), _ *zap.Logger) (enforce.Kernel, enforce.Compiler) {
	m.filter.mu.Lock()
	defer m.filter.mu.Unlock()
	m.filter.changed = changed
	return m.filter, compile.New(node, compile.Limits{})
}

func (f *fakeFilter) Present() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.has != nil, nil
}

func (f *fakeFilter) linger() {
	f.mu.Lock()
	slow := f.slow
	f.mu.Unlock()
	time.Sleep(slow)
}

// call takes note of a call. The caller has f.mu.
func (f *fakeFilter) call(what string) error {
	f.calls = append(f.calls, what)
	return f.fail
}

func (f *fakeFilter) Replace(s *compile.State) error {
	f.linger()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("replace"); err != nil {
		return err
	}
	f.has = compile.NewState()
	f.has.Apply(compile.Delta{
		AddTables: slices.Collect(maps.Values(s.Tables)), SetSides: s.Sides, SetIdentities: s.Identities, SetBlocks: s.Blocks, SetSelves: s.Selves,
	})
	return nil
}

func (f *fakeFilter) Update(d compile.Delta) error {
	f.linger()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("update"); err != nil {
		return err
	}
	f.has.Apply(d)
	return nil
}

func (f *fakeFilter) Remove() error {
	f.linger()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("remove"); err != nil {
		return err
	}
	f.has = nil
	return nil
}

func (f *fakeFilter) Support() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lacks
}

func (f *fakeFilter) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (f *fakeFilter) Counters() (map[policy.PolicyKey]enforce.Count, error) {
	return map[policy.PolicyKey]enforce.Count{}, nil
}

func (f *fakeFilter) Health() <-chan filter.Health { return f.health }

func (f *fakeFilter) Denials(ctx context.Context) <-chan enforce.Denial {
	out := make(chan enforce.Denial)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case d := <-f.denials:
				out <- d
			}
		}
	}()
	return out
}

// allows tells what the kernel makes of a connection by TCP.
func (f *fakeFilter) allows(from, to netip.Addr, port uint16) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.has == nil {
		return true
	}
	egress, ingress := f.has.Verdict(policy.Connection{Src: from, Dst: to, Protocol: policy.TCP, Port: port})
	return egress.Allow && ingress.Allow
}

func (f *fakeFilter) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

func (f *fakeFilter) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

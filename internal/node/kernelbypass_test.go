// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/policy/filter"
	"github.com/weftnet/weft/router/fastpath"
)

// fakeBypass keeps what it is told.
type fakeBypass struct {
	mu      sync.Mutex
	lacks   error
	held    string // why it does nothing
	there   bool   // at the host's devices
	running bool
	pauses  int
	forgot  int
	devices []string
	tunnels []string // devices that they leave by
}

func (b *fakeBypass) forgets() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.forgot
}

// repeats says whether what was decided before counts.
func (b *fakeBypass) repeats() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.there && b.pauses == 0
}

// unrepeated checks that nothing that was decided before routes change is repeated afterwards.
func (k *fakeKernel) unrepeated() {
	if k.flow != nil && k.flow.repeats() {
		k.t.Error("routes change while packets go around the stack")
	}
}

func (m *machine) bypass([]netip.Prefix, *zap.Logger) (flowBypass, error) {
	b := &m.flows
	b.mu.Lock()
	defer b.mu.Unlock()
	m.ways.flow = b
	b.pauses, b.running, b.devices, b.tunnels = 0, false, nil, nil
	if b.lacks != nil {
		return nil, b.lacks
	}
	return b, nil
}

func (b *fakeBypass) Run(ctx context.Context) error {
	b.mu.Lock()
	b.there, b.running = true, true
	b.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (b *fakeBypass) Serve(devices, tunnels []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.devices, b.tunnels = slices.Clone(devices), slices.Clone(tunnels)
}

func (b *fakeBypass) Pause() func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pauses++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.pauses--
	}
}

func (b *fakeBypass) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forgot++
}

func (b *fakeBypass) State() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

func (b *fakeBypass) Remove() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.there = false
}

func (b *fakeBypass) Close() { b.Remove() }

// serves says by which devices packets go around the stack, but for those of groups, and by which tunnels leave.
func (b *fakeBypass) serves() (devices, tunnels []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.devices, b.tunnels
}

// links says whether the link between the hosts is served for packets, and for tunnels, and nothing else is.
func (b *fakeBypass) links(packets, tunnels bool) bool {
	is := func(list []string, wanted bool) bool {
		return len(list) == 0 && !wanted || slices.Equal(list, []string{"eth0"}) && wanted
	}
	d, t := b.serves()
	return is(d, packets) && is(t, tunnels)
}

// Where there are kernel paths packets go around the stack, not while routes change (which fakeKernel checks), and not after the daemon has ended in order.
func TestBypass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, _ := newDirect(t)
		if !n1.flows.repeats() || !n1.flows.running || !n1.flows.links(true, false) {
			t.Errorf("%+v", &n1.flows)
		}
		if st := n1.service().Status(); st.Kernel.Bypass != "" {
			t.Errorf("off: %s", st.Kernel.Bypass)
		}
		for _, path := range []string{"vxlan", "udp", "direct"} {
			if _, err := n1.service().Path(t.Context(), api.PathRequest{Node: "n2", Path: path}); err != nil {
				t.Error(err)
			}
			c.eventually(10*time.Second, "the link between the hosts is served for what uses it", func() bool {
				return n1.flows.links(path == "direct", path == "vxlan")
			})
			if !n1.flows.repeats() {
				t.Error("the pause does not end")
			}
		}
		n1.flows.held = "not yet"
		if st := n1.service().Status(); st.Kernel.Bypass != "not yet" {
			t.Errorf("off: %q", st.Kernel.Bypass)
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		if n1.flows.there {
			t.Error("it is left after the daemon has ended")
		}
	})
}

// What somebody else has changed and is put right is not repeated, and nothing that was decided before a change of policies.
func TestBypassForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, _ := newDirect(t)
		n1.ways.mu.Lock()
		n1.ways.repairs = []string{"route to 10.34.0.0/15 was deleted by somebody; set again"}
		changed := n1.ways.changed
		n1.ways.mu.Unlock()
		changed()
		c.eventually(time.Second, "it is forgotten", func() bool { return n1.flows.forgets() > 0 })

		before := n1.flows.forgets()
		n1.filter.changed()
		if n1.flows.forgets() == before {
			t.Error("connections that were cut go on")
		}
	})
}

// Without it everything else works, and the status says why.
func TestNoBypass(t *testing.T) {
	for want, change := range map[string]func(m *machine, cfg *Config){
		"launched with --no-bypass":    func(_ *machine, cfg *Config) { cfg.Kernel.NoBypass = true },
		"no such hooks: use a new one": func(m *machine, _ *Config) { m.flows.lacks = errors.New("no such hooks: use a new one") },
		"there are no kernel paths":    func(_ *machine, cfg *Config) { cfg.Kernel.Paths = Paths{fastpath.UDP} },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 2)
			n1, n2 := c.machines[0], c.machines[1]
			c.start(n1, func(cfg *Config) {
				trusting(cfg)
				change(n1, cfg)
			})
			c.start(n2, trusting, "n1")
			c.ready(n1)
			c.ready(n2)
			time.Sleep(5 * time.Second)
			if st := n1.service().Status(); st.Kernel.Bypass != want || len(st.Warnings) > 0 {
				t.Errorf("off: %q; %q", st.Kernel.Bypass, st.Warnings)
			}
			if n1.flows.there {
				t.Errorf("%s: it is there", want)
			}
		})
	}
}

// Nothing goes around the stack while it is not known that the network policies are in force.
func TestBypassNeedsPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, _ := newDirect(t)
		shown := func(want string) {
			t.Helper()
			c.eventually(10*time.Second, "it is shown", func() bool { return n1.service().Status().Kernel.Bypass == want })
		}
		shown("")
		if !n1.flows.repeats() {
			t.Error("a pause")
		}
		n1.filter.mu.Lock()
		n1.filter.fail = errors.New("no memory")
		n1.filter.mu.Unlock()
		n1.filter.health <- filter.Health{Judging: errors.New("nftables are not as they should be: no memory")}
		synctest.Wait()
		if n1.flows.repeats() {
			t.Error("packets go around the stack while nobody knows what it lets pass")
		}
		shown("the network policies are not known to be in force")
		n1.filter.mu.Lock()
		n1.filter.fail = nil
		n1.filter.mu.Unlock()
		shown("")
		if !n1.flows.repeats() {
			t.Error("the pause does not end")
		}
		n1.filter.health <- filter.Health{Cutting: errors.New("no connection can be deleted")}
		synctest.Wait()
		if n1.flows.repeats() {
			t.Error("packets go around the stack of connections that should have been cut")
		}
		n1.filter.health <- filter.Health{}
		synctest.Wait()
		if !n1.flows.repeats() {
			t.Error("the pause does not end when connections are cut again")
		}
	})
}

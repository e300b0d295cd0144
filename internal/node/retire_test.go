// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh/memnet"
	"github.com/weftnet/weft/router"
)

// forget has the node of m forget another, and returns what it told meanwhile.
func forget(t *testing.T, m *machine, r api.ForgetRequest, within time.Duration) (res api.ForgetResult, told []string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	res, err = m.service().Forget(ctx, r, func(p api.ForgetProgress) { told = append(told, p.Text) })
	return res, told, err
}

// connects tells whether the data path of m has a peer of that name.
func (m *machine) connects(name string) bool {
	m.mu.Lock()
	p := m.carrier
	m.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.peers, func(x router.Peer) bool { return x.Name == name })
}

func peer(m *machine, name string) api.Peer {
	for _, p := range m.service().Peers() {
		if p.Name == name {
			return p
		}
	}
	return api.Peer{}
}

func owns(m *machine, name string) (slots uint64) {
	for _, h := range m.service().IPAM().Holdings {
		if h.Node == name {
			slots += h.Slots
		}
	}
	return slots
}

// trio is a cluster of three nodes, any two of which own more than half of the range.
func trio(t *testing.T) (c *cluster, n1, n2, n3 *machine) {
	t.Helper()
	c = newCluster(t, 3)
	n1, n2, n3 = c.machines[0], c.machines[1], c.machines[2]
	for i, m := range c.machines {
		c.start(m, seeded, c.machines[(i+1)%3].name)
	}
	for _, m := range c.machines {
		c.ready(m)
	}
	c.settled()
	return c, n1, n2, n3
}

// settled waits until everybody knows that everybody has taken the share of its name.
func (c *cluster) settled() {
	c.t.Helper()
	c.eventually(10*time.Second, "every share taken", func() bool {
		for _, m := range c.machines {
			if m.service().Status().Nodes.Alive < len(c.machines) || len(m.service().IPAM().Holdings) != len(c.machines) ||
				slices.ContainsFunc(m.service().IPAM().Holdings, func(h api.Holding) bool { return h.NodeID[0] > '7' }) {
				return false
			}
		}
		return true
	})
	for _, h := range c.machines[0].service().IPAM().Holdings { // nobody asked for more before it had its own
		if want := map[string]float64{"n1": 31.25, "n2": 31.25, "n3": 37.5}[h.Node]; h.Percent != want {
			c.t.Fatalf("%s has %v%%, its share is %v%%", h.Node, h.Percent, want)
		}
	}
}

func seeded(cfg *Config) { cfg.Seed = []string{"n1", "n2", "n3"} }

var retiredText = regexp.MustCompile(`^this node was declared gone by n\d on 2000-01-01 00:\d\d:\d\d UTC, and its addresses are others' now \(heir named: n\d\), ` +
	`so it stays out of the mesh; detach its workloads, stop it and run weft reset to start again as a new node$`)

// isRetired fails unless the node of m runs nothing of its own, says why, and refuses what it cannot do any more.
func isRetired(t *testing.T, m *machine, workloads int) {
	t.Helper()
	st := m.service().Status()
	if st.Phase != api.Retired || st.Ready || len(st.Addresses) > 0 || !retiredText.MatchString(st.WaitsFor) {
		t.Errorf("%s is %s: %s", m.name, st.Phase, st.WaitsFor)
	}
	m.host.mu.Lock()
	if len(m.host.up) != 0 || len(m.host.desired.Addrs) != 0 || len(m.host.desired.Universe) == 0 {
		t.Errorf("%s has %d interfaces, wants %+v", m.name, len(m.host.up), m.host.desired)
	}
	m.host.mu.Unlock()
	m.carrier.mu.Lock()
	if l := m.carrier.local; len(m.carrier.peers) != 0 || len(l.Prefixes) != 0 || l.Gateway4.IsValid() || l.Gateway6.IsValid() {
		t.Errorf("the data path of %s has peers %+v, and %+v", m.name, m.carrier.peers, l)
	}
	m.carrier.mu.Unlock()
	list := m.service().Workloads()
	if len(list) != workloads {
		t.Errorf("%s names %d workloads, want %d", m.name, len(list), workloads)
	}
	for _, w := range list {
		if w.State != "off the network: this node is retired" || len(w.Addresses) == 0 {
			t.Errorf("%s: %+v", m.name, w)
		}
	}
	if notes := m.service().IPAM().Notes; !slices.Equal(notes, []string{"this node is retired: others may use what is allocated here"}) {
		t.Errorf("%s notes %q", m.name, notes)
	}
	ctx := t.Context()
	for what, f := range map[string]func() error{
		"attach": func() error {
			_, err := m.service().Attach(ctx, api.AttachRequest{Netns: "/proc/self/ns/net", IfName: "eth0"})
			return err
		},
		"wg add": func() error {
			_, err := m.service().WGAdd(ctx, api.WGAddRequest{Name: "x", PublicKey: clientKey(9).String()})
			return err
		},
		"leave": func() error { _, err := m.service().Leave(ctx, api.LeaveRequest{}, untold); return err },
		"gc":    func() error { _, err := m.service().GC(api.GCRequest{}); return err },
		"forget": func() error {
			_, _, err := forget(t, m, api.ForgetRequest{Node: "n1"}, time.Minute)
			return err
		},
	} {
		var why *ipam.RetiredError
		if err := f(); !errors.As(err, &why) || !retiredText.MatchString(err.Error()) {
			t.Errorf("%s on %s: %v", what, m.name, err)
		}
	}
}

func TestForgottenNodeReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, n2, n3 := trio(t)
		a, b := c.attach(n3, "a"), c.attach(n3, "b")
		addClient(t, n3, "phone", 1)
		c.connected(5 * time.Second)

		_, _, err := forget(t, n1, api.ForgetRequest{Node: "n3"}, time.Minute)
		want := "node n3 answers, so it is not gone; stop it or have it leave, or repeat with --yes-it-is-gone if another node answers in its place"
		if err == nil || err.Error() != want {
			t.Errorf("forgetting a node that is alive:\ngot  %v\nwant %s", err, want)
		}
		if err := n3.stop(); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, "n3 stopped", func() bool { return peer(n1, "n3").State == "stopped" && peer(n2, "n3").State == "stopped" })
		slots, id := owns(n1, "n3"), peer(n1, "n3").NodeID
		res, _, err := forget(t, n1, api.ForgetRequest{Node: "n3"}, time.Minute)
		if err != nil || len(res.Forgotten) != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		f := res.Forgotten[0]
		if f.Node != "n3" || f.NodeID != id || f.By != "n1" || f.Forced || f.Heir != "n1" && f.Heir != "n2" || f.Addresses != slots || slots == 0 {
			t.Errorf("n3 had %d addresses: %+v", slots, f)
		}
		for _, m := range []*machine{n1, n2} {
			c.eventually(10*time.Second, m.name+" knows", func() bool { return len(m.service().IPAM().Retirements) == 1 && owns(m, "n3") == 0 })
			i := m.service().IPAM()
			if r := i.Retirements[0]; r != f.Retirement {
				t.Errorf("%s says %+v", m.name, r)
			}
			if len(i.Takeovers) != 0 {
				t.Errorf("%s: takeovers %+v", m.name, i.Takeovers)
			}
			c.eventually(time.Second, "no way to n3", func() bool { return !m.connects("n3") })
			if p := peer(m, "n3"); p.State != "retired" || !p.Gone || len(p.Prefixes) != 0 {
				t.Errorf("%s lists %+v", m.name, p)
			}
			if st := m.service().Status(); st.Nodes != (api.NodeCount{Total: 2, Alive: 2}) {
				t.Errorf("%s counts %+v", m.name, st.Nodes)
			}
		}
		again, _, err := forget(t, n2, api.ForgetRequest{Node: "n3"}, time.Minute)
		if f.Addresses = 0; err != nil || !reflect.DeepEqual(again.Forgotten, []api.Forgotten{f}) {
			t.Errorf("forgotten again: %+v, %v; want %+v", again, err, f)
		}

		n3.states = nil
		core, logs := observer.New(zapcore.ErrorLevel)
		logged := func(cfg *Config) { seeded(cfg); cfg.Log = zap.New(core) }
		c.start(n3, logged, "n1")
		c.eventually(20*time.Second, "n3 retired", func() bool { svc := n3.service(); return svc != nil && svc.Status().Phase == api.Retired })
		time.Sleep(2 * repairInterval)
		isRetired(t, n3, 2)
		if n := logs.FilterMessageSnippet("retired: this node was declared gone by n1").Len(); n != 1 {
			t.Errorf("logged %d times: %+v", n, logs.All())
		}
		if p := peer(n1, "n3"); p.State != "retired" || p.Gone || n1.connects("n3") {
			t.Errorf("n1 lists %+v", p)
		}
		if !slices.Contains(n3.states, "READY=1") {
			t.Errorf("the supervisor was told %v", n3.states)
		}
		if _, err := n3.service().Detach(t.Context(), api.DetachRequest{Netns: a.Netns, IfName: "eth0"}); err != nil {
			t.Errorf("detaching on a retired node: %v", err)
		}

		// It stays so, also where nobody is there to tell it.
		if err := n3.stop(); err != nil {
			t.Fatal(err)
		}
		n3.host.mu.Lock()
		n3.host.up[b.ID] = onHost(workload{ID: b.ID}, ipam.Lease{}) // as if the last one had been killed in the middle
		n3.host.mu.Unlock()
		n1.net.Dark(true)
		n2.net.Dark(true)
		c.start(n3, seeded, "n1")
		time.Sleep(2 * time.Second)
		isRetired(t, n3, 1)
		n1.net.Dark(false)
		n2.net.Dark(false)
		c.distinctExcept(n3)
	})
}

// distinctExcept is distinct for all machines but the retired one.
func (c *cluster) distinctExcept(retired *machine) {
	c.t.Helper()
	d := *c
	d.machines = slices.DeleteFunc(slices.Clone(c.machines), func(m *machine) bool { return m == retired })
	d.distinct()
}

// A node that was forgotten while it ran, cut off, takes its workloads off the network when it hears of it, and others may
// use what it had.
func TestForgottenNodeHearsOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, n2, n3 := trio(t)
		w := c.attach(n3, "w")
		addClient(t, n3, "phone", 1)
		c.connected(5 * time.Second)
		c.net.Partition([]*memnet.Host{n3.net})
		c.eventually(time.Minute, "n3 failed", func() bool { return peer(n1, "n3").State == "failed" })
		if _, _, err := forget(t, n1, api.ForgetRequest{Node: "n3"}, time.Minute); err != nil {
			t.Fatal(err)
		}
		if _, ok := n3.host.up[w.ID]; !ok {
			t.Error("n3 cannot know of it, and withdrew its workload")
		}
		c.net.Heal()
		c.eventually(time.Minute, "n3 retired", func() bool { return n3.service().Status().Phase == api.Retired })
		time.Sleep(time.Second)
		isRetired(t, n3, 1)
		if l := n3.externals(); len(l) != 0 {
			t.Errorf("its WireGuard clients go on: %+v", l)
		}
		c.eventually(10*time.Second, "n2 knows", func() bool { return owns(n2, "n3") == 0 })
		c.distinctExcept(n3)
	})
}

// Where the owners of more than half of the range do not answer, forgetting waits, and says for whom.
func TestForgetWaitsForAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, n2, n3 := trio(t)
		if err := n3.stop(); err != nil {
			t.Fatal(err)
		}
		c.net.Partition([]*memnet.Host{n1.net}, []*memnet.Host{n2.net})
		c.eventually(time.Minute, "n1 alone", func() bool { return n1.service().Status().Nodes.Alive == 1 })
		_, told, err := forget(t, n1, api.ForgetRequest{Node: "n3"}, 10*time.Second)
		var incomplete *ipam.ForgetError
		if !errors.As(err, &incomplete) {
			t.Errorf("got %v", err)
		}
		if len(told) == 0 || !regexp.MustCompile(`^takeover of n3: 31% of the range has voted, 51% needed, waiting for n2$`).MatchString(told[len(told)-1]) {
			t.Errorf("told %q", told)
		}
		if r := n1.service().IPAM().Retirements; len(r) != 0 {
			t.Errorf("without a majority: %+v", r)
		}
		waiting := make(chan error, 1)
		go func() {
			_, _, err := forget(t, n1, api.ForgetRequest{Node: "n3"}, 5*time.Minute)
			waiting <- err
		}()
		time.Sleep(5 * time.Second)
		takeovers := n1.service().IPAM().Takeovers
		if len(takeovers) != 1 || takeovers[0].Node != "n3" || takeovers[0].Heir != "" || !slices.Equal(takeovers[0].Missing, []string{"n2"}) ||
			takeovers[0].Voted == nil || *takeovers[0].Voted != 31.25 || takeovers[0].Text != told[len(told)-1] {
			t.Errorf("weft ipam: %+v", takeovers)
		}
		c.net.Heal()
		if err := <-waiting; err != nil {
			t.Errorf("after the partition: %v", err)
		}
		c.eventually(10*time.Second, "n2 knows", func() bool { return owns(n2, "n3") == 0 && owns(n1, "n3") == 0 })
	})
}

func TestForgetByForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1, _, _ := trio(t)
		for _, m := range c.machines[1:] {
			if err := m.stop(); err != nil {
				t.Fatal(err)
			}
		}
		c.eventually(time.Minute, "n1 alone", func() bool { return n1.service().Status().Nodes.Alive == 1 })
		// With what it got from n2 it owns more than half, and needs no force for n3.
		for _, name := range []string{"n2", "n3"} {
			res, _, err := forget(t, n1, api.ForgetRequest{Node: name, Force: true}, time.Minute)
			if err != nil || len(res.Forgotten) != 1 || res.Forgotten[0].Forced != (name == "n2") || res.Forgotten[0].Heir != "n1" {
				t.Errorf("%s: %+v, %v", name, res, err)
			}
		}
		if h := n1.service().IPAM().Holdings; len(h) != 1 || h[0].Node != "n1" {
			t.Errorf("n1 does not own all: %+v", h)
		}
	})
}

// What --seed gave to a node that never started is had by its name, also from a node that was not told of the seed.
func TestForgetASeedName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4)
		late := c.machines[3]
		c.machines = c.machines[:3]
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		seed := func(cfg *Config) { cfg.Seed = []string{"n1", "n2", "never"} }
		c.start(n1, seed, "n2")
		c.start(n2, seed, "n1")
		c.start(n3, nil, "n1")
		for _, m := range c.machines {
			c.ready(m)
		}
		c.eventually(10*time.Second, "n3 has all of it", func() bool { return n3.service().Status().Nodes.Alive == 3 })
		res, _, err := forget(t, n3, api.ForgetRequest{Node: "never"}, time.Minute)
		if err != nil || len(res.Forgotten) != 1 || res.Forgotten[0].Addresses == 0 {
			t.Errorf("%+v, %v", res, err)
		}
		for _, m := range c.machines {
			c.eventually(10*time.Second, m.name+" knows", func() bool {
				return !slices.ContainsFunc(m.service().IPAM().Holdings, func(h api.Holding) bool { return h.NodeID[0] > '7' })
			})
		}
		late.name = "never"
		c.start(late, seed, "n1")
		err = <-late.done
		late.kill = nil
		if err == nil || !strings.HasPrefix(err.Error(), "the share of the range that was seeded under this node's name was declared nobody's by n3 on ") {
			t.Errorf("the node of that name, much later: %v", err)
		}
	})
}

// A node without addresses is retired all the same, while it waits for some.
func TestForgottenWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		seed := func(cfg *Config) { cfg.Seed = []string{"n1", "n2"} }
		c.start(n1, seed, "n2")
		c.ready(n1)
		c.start(n3, nil, "n1")
		c.eventually(10*time.Second, "n3 waits", func() bool { svc := n3.service(); return svc != nil && svc.Status().Phase == api.Waiting })
		c.eventually(10*time.Second, "n1 knows n3", func() bool { return peer(n1, "n3").State == "alive" })
		c.net.Partition([]*memnet.Host{n3.net})
		c.start(n2, seed, "n1")
		c.ready(n2)
		c.eventually(time.Minute, "n3 does not answer", func() bool { return peer(n1, "n3").State == "failed" })
		res, _, err := forget(t, n1, api.ForgetRequest{Node: "n3"}, time.Minute)
		if err != nil || len(res.Forgotten) != 1 || res.Forgotten[0].Node != "n3" || res.Forgotten[0].Addresses != 0 {
			t.Errorf("%+v, %v", res, err)
		}
		c.net.Heal()
		c.eventually(time.Minute, "n3 retired", func() bool { return n3.service().Status().Phase == api.Retired })
		time.Sleep(2 * fullRetry)
		isRetired(t, n3, 0)
	})
}

func TestReclaimAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		for i, m := range c.machines {
			c.start(m, func(cfg *Config) { seeded(cfg); cfg.ReclaimAfter = 2 * time.Minute }, c.machines[(i+1)%3].name)
		}
		for _, m := range c.machines {
			c.ready(m)
		}
		c.settled()
		n3.net.Dark(true)
		c.eventually(time.Minute, "n3 does not answer", func() bool { return peer(n1, "n3").State == "failed" })
		time.Sleep(100 * time.Second)
		if r := n1.service().IPAM().Retirements; len(r) != 0 {
			t.Errorf("too early: %+v", r)
		}
		c.eventually(2*time.Minute, "n3 forgotten", func() bool { return owns(n1, "n3") == 0 && owns(n2, "n3") == 0 })
		if r := n1.service().IPAM().Retirements; len(r) != 1 || r[0].Node != "n3" || r[0].Forced {
			t.Errorf("%+v", r)
		}
		n3.net.Dark(false)
		c.eventually(time.Minute, "n3 retired", func() bool { return n3.service().Status().Phase == api.Retired })
	})
}

func TestExplain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		w := c.attach(n1, "w")
		for _, a := range w.Addresses {
			x, err := n1.service().Explain(api.ExplainRequest{Address: a})
			if err != nil || x.Address != a || !strings.Contains(fmt.Sprint(x.Lines), w.ID) {
				t.Errorf("%v: %+v, %v", a, x, err)
			}
		}
		var outside *ipam.OutsideError
		if _, err := n1.service().Explain(api.ExplainRequest{Address: netip.MustParseAddr("192.0.2.1")}); !errors.As(err, &outside) {
			t.Errorf("outside: %v", err)
		}
	})
}

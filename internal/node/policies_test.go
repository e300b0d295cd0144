// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/filter"
)

// closed isolates what has the label app=db in a namespace, in both directions.
func closed(namespace string) *policy.Policy {
	return &policy.Policy{
		PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: namespace, Name: "closed"}}, Tier: policy.Network,
		Pods: &policy.Selector{{Key: "app", Operator: policy.In, Values: []string{"db"}}}, Isolates: [2]bool{true, true},
	}
}

// daemon returns the running node of m.
func (m *machine) daemon() *Node {
	switch svc := m.service().(type) {
	case *Node:
		return svc
	case attended:
		return svc.Node
	default:
		m.t.Fatalf("%s serves a %T", m.name, svc)
		return nil
	}
}

func elsewhere() netip.Addr { return netip.MustParseAddr("10.32.200.1") }

// TestPolicyOnHosts has a workload judged before it is connected, by the labels that it is attached with, and until it is not any more.
func TestPolicyOnHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := one(t)
		n := m.daemon()
		n.policies.Change(func(ch enforce.Changes) { ch.SetPolicy(closed("default")) })
		var open []string
		m.host.visited = func(w hostnet.Workload) {
			if strings.Contains(w.ID, "db") && m.filter.allows(elsewhere(), w.Addrs[0], 80) {
				open = append(open, w.ID)
			}
		}
		request(m, "db") // for its namespace
		db, err := m.service().Attach(t.Context(), api.AttachRequest{Netns: "/run/netns/db", IfName: "eth0", Policy: &api.Identity{Labels: map[string]string{"app": "db"}}})
		if err != nil {
			t.Fatal(err)
		}
		plain := c.attach(m, "plain")
		settled := func() {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if len(open) > 0 || m.filter.allows(elsewhere(), db.Addresses[0], 80) || !m.filter.allows(elsewhere(), plain.Addresses[0], 80) {
			t.Errorf("connected before it was judged: %q", open)
		}
		if !m.filter.allows(m.service().Status().Addresses[0], db.Addresses[0], 80) {
			t.Error("its own node does not reach it")
		}
		if s := m.service().Status().Policies; s == nil || *s != (api.PolicyStatus{Policies: 1, Workloads: 1}) {
			t.Errorf("status: %+v", s)
		}
		if _, err := m.service().Label(t.Context(), api.LabelRequest{Workload: plain.ID, Set: map[string]string{"app": "db"}}); err != nil {
			t.Fatal(err)
		}
		settled()
		if m.filter.allows(elsewhere(), plain.Addresses[0], 80) {
			t.Error("a label that came later is not heeded")
		}
		for _, name := range []string{"plain", "db"} {
			if _, err := m.service().Detach(t.Context(), api.DetachRequest{Netns: "/run/netns/" + name, IfName: "eth0"}); err != nil {
				t.Error(err)
			}
		}
		settled()
		if m.filter.has != nil {
			t.Errorf("after the last one: %+v", m.filter.has.Sides)
		}
	})
}

// TestPolicyFails attaches nothing that cannot be judged, and leaves nothing of it.
func TestPolicyFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := one(t)
		m.daemon().policies.Change(func(ch enforce.Changes) { ch.SetPolicy(closed("default")) })
		request(m, "db") // for its namespace
		attach := func() error {
			_, err := m.service().Attach(t.Context(), api.AttachRequest{Netns: "/run/netns/db", IfName: "eth0", Policy: &api.Identity{Labels: map[string]string{"app": "db"}}})
			return err
		}
		m.filter.set(func() { m.filter.fail = errors.New("no memory") })
		want := "the network policies of default/db@n1 are not in force yet: waiting for the packet filter, which fails: no memory; try again"
		if err := attach(); err == nil || err.Error() != want {
			t.Error(err)
		}
		m.filter.set(func() { m.filter.lacks = errors.New("the kernel has no nf_tables") })
		if err := attach(); err == nil || err.Error() != "network policies select default/db@n1 and cannot be enforced on this host: the kernel has no nf_tables" {
			t.Error(err)
		}
		if len(m.host.up) != 0 || len(m.service().Workloads()) != 0 || len(m.service().IPAM().Allocations) != 1 {
			t.Errorf("something is left: %v %v", m.host.up, m.service().IPAM().Allocations)
		}
		c.attach(m, "plain") // which nothing selects
		if w := m.service().Status().Warnings; !slices.Contains(w, "network policies are not in force as they should be: no memory") {
			t.Errorf("%q", w)
		}
		m.filter.set(func() { m.filter.lacks, m.filter.fail = nil, nil })
		time.Sleep(time.Minute)
		if err := attach(); err != nil {
			t.Error(err)
		}
		m.filter.health <- filter.Health{Cutting: errors.New("reading connections: busy")}
		synctest.Wait()
		if w := m.service().Status().Warnings; !slices.Contains(w, "connections that network policies do not allow any more go on: reading connections: busy") {
			t.Errorf("%q", w)
		}
		var told bool
		for _, e := range m.daemon().history.log.Recent(-1) {
			told = told || e.Kind == "policy" && e.Text == "network policies are in force again"
		}
		if !told {
			t.Error("no event tells that they are in force again")
		}
	})
}

// TestApplyWaits has a command return when what it has applied is in force, or say that it is not.
func TestApplyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := one(t)
		db := c.labelled(m, "db", "db")
		m.filter.set(func() { m.filter.slow = 3 * time.Second })
		res, err := m.service().PolicyApply(t.Context(), api.PolicyApplyRequest{Manifests: denyAll, Wait: 10 * time.Second})
		if err != nil || len(res.Warnings) > 0 || m.filter.allows(elsewhere(), db.Addresses[0], 80) {
			t.Errorf("%+v, %v", res, err)
		}
		res, err = m.service().PolicyDelete(t.Context(), api.PolicyDeleteRequest{Manifests: denyAll, Wait: time.Second})
		want := []string{"it is done, and not in force on this host yet: the packet filter takes its time; see: weft status"}
		if err != nil || !slices.Equal(res.Warnings, want) {
			t.Errorf("%q, %v", res.Warnings, err)
		}
		time.Sleep(time.Minute)
	})
}

// TestRelabelFails has a workload judged by the labels that it is known by after it could not be attached with others.
func TestRelabelFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m := one(t)
		m.daemon().policies.Change(func(ch enforce.Changes) { ch.SetPolicy(closed("default")) })
		request(m, "db") // for its namespace
		attach := func(ctx context.Context, app string) (api.Workload, error) {
			return m.service().Attach(ctx, api.AttachRequest{Netns: "/run/netns/db", IfName: "eth0", Policy: &api.Identity{Labels: map[string]string{"app": app}}})
		}
		db, err := attach(t.Context(), "db")
		if err != nil {
			t.Fatal(err)
		}
		judged := func(when string) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			if m.filter.allows(elsewhere(), db.Addresses[0], 80) {
				t.Errorf("open %s", when)
			}
		}
		fails := errors.New("no device")
		fail := func(err error) {
			m.host.mu.Lock()
			defer m.host.mu.Unlock()
			m.host.fail = err
		}
		fail(fails)
		if _, err := attach(t.Context(), "web"); !errors.Is(err, fails) {
			t.Fatal(err)
		}
		judged("since it could not be attached with another label")
		fail(nil)
		m.filter.set(func() { m.filter.slow = time.Second })
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := attach(ctx, "web"); err == nil {
			t.Fatal("attached without patience")
		}
		m.filter.set(func() { m.filter.slow = 0 })
		time.Sleep(time.Minute)
		judged("since nobody waited for another label to be in force")
		if _, err := attach(t.Context(), "web"); err != nil || !m.filter.allows(elsewhere(), db.Addresses[0], 80) {
			t.Errorf("in the end: %v", err)
		}
	})
}

// TestPolicyOverRestart opens nothing when the daemon starts again, and connects nothing before it knows what it may.
func TestPolicyOverRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 1)
		m := k.machines[0]
		k.fed = true
		launch := func() {
			k.launch(m, nil)
			k.ready(m)
		}
		launch()
		feed := func() {
			m.daemon().Policies().Change(func(ch enforce.Changes) {
				ch.SetPolicy(closed("ns"))
				ch.SetNamespace(policy.Namespace{Name: "ns"})
				ch.SetEndpoint(policy.Endpoint{Name: policy.Name{Namespace: "ns", Name: "web-0"}, ID: "u-1", Node: "n1", Labels: map[string]string{"app": "db"}})
			})
			m.daemon().Policies().Synced()
		}
		r := request(m, "c1")
		r.Pod = cni.Pod{Namespace: "ns", Name: "web-0", UID: "u-1"}
		add := func() (cni.Attachment, error) { return m.service().CNIAttach(context.Background(), r) }
		var ce *cni.Error
		if _, err := add(); !errors.As(err, &ce) || ce.Code != cni.CodeTryLater || ce.Msg != "the network policies of ns/web-0 are not in force yet: waiting for the network policies" {
			t.Errorf("before anything is known: %v", err)
		}
		feed()
		begun := time.Now()
		a, err := add()
		if err != nil || time.Since(begun) > 0 || m.filter.allows(elsewhere(), a.Addresses[0], 80) {
			t.Fatalf("%v after %v", err, time.Since(begun))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, err := os.Stat(filepath.Join(m.dir, enforce.FileName)); err != nil {
			t.Error(err)
		}
		k.crash(m)
		m.filter.take()
		m.host.mu.Lock()
		clear(m.host.up) // somebody took the interface away
		m.host.mu.Unlock()
		m.host.visited = func(w hostnet.Workload) {
			if m.filter.allows(elsewhere(), w.Addrs[0], 80) {
				t.Error("connected again, and open")
			}
		}
		m.filter.set(func() { m.filter.has = nil }) // and the rules
		launch()
		synctest.Wait()
		if calls := m.filter.take(); !slices.Equal(calls, []string{"replace"}) || m.filter.allows(elsewhere(), a.Addresses[0], 80) {
			t.Errorf("while the cluster is away: %q", calls)
		}
		if len(m.host.up) != 1 {
			t.Error("what was judged before is not connected again")
		}
		if w := m.service().Status().Warnings; !slices.ContainsFunc(w, func(s string) bool {
			return strings.HasPrefix(s, "nothing new is attached until the network policies are known: waiting for")
		}) {
			t.Errorf("%q", w)
		}
		feed()
		time.Sleep(time.Second)
		synctest.Wait()
		if m.filter.allows(elsewhere(), a.Addresses[0], 80) {
			t.Error("open since all is known")
		}
		if err := m.service().CNIDetach(context.Background(), release(r)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if m.filter.has != nil {
			t.Error("detached, and judged still")
		}
	})
}

// TestTornAttach does not connect by itself what was about to be attached when the daemon was killed, before it is known what may be.
func TestTornAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 1)
		k.fed = true
		m := k.machines[0]
		k.launch(m, nil)
		k.ready(m)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			r := request(m, "c1")
			r.Pod = cni.Pod{Namespace: "ns", Name: "web-0", UID: "u-1"}
			_, err := m.service().CNIAttach(ctx, r)
			done <- err
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		state := filepath.Join(m.dir, store.FileName)
		before, err := os.ReadFile(state) // as it is while the attach waits
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-done; err == nil {
			t.Fatal("attached without a word about its policies")
		}
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(state, before, 0o600); err != nil {
			t.Fatal(err)
		}
		k.launch(m, nil)
		k.ready(m)
		if len(m.host.up) != 0 {
			t.Error("connected before anything is known")
		}
		if w := m.service().Workloads(); len(w) != 1 || !strings.Contains(w[0].State, "are not in force yet") {
			t.Errorf("%+v", w)
		}
		m.daemon().Policies().Change(func(ch enforce.Changes) {
			ch.SetPolicy(closed("ns"))
			ch.SetNamespace(policy.Namespace{Name: "ns"})
			ch.SetEndpoint(policy.Endpoint{Name: policy.Name{Namespace: "ns", Name: "web-0"}, ID: "u-1", Node: "n1", Labels: map[string]string{"app": "db"}})
		})
		m.daemon().Policies().Synced()
		time.Sleep(time.Second)
		synctest.Wait()
		if len(m.host.up) != 1 {
			t.Error("not connected when all is known")
		}
		for _, w := range m.host.up {
			if m.filter.allows(elsewhere(), w.Addrs[0], 80) {
				t.Error("connected and open")
			}
		}
	})
}

// TestHostsOfOneName takes nothing of another node for this one's, though it bears the same name.
func TestHostsOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		a, b := c.machines[0], c.machines[1]
		c.start(a, nil)
		c.ready(a)
		c.start(b, func(cfg *Config) { cfg.Name = a.name }, a.name)
		c.ready(b)
		time.Sleep(10 * time.Second)
		b.daemon().Policies().Look(func(w *policy.World) {
			for n := range w.Nodes() {
				if other := slices.Contains(n.Addrs, a.addr); other == (n.Name == a.name) || other == slices.Contains(n.Addrs, b.addr) {
					t.Errorf("%s has %v", n.Name, n.Addrs)
				}
			}
			if len(slices.Collect(w.Nodes())) != 2 {
				t.Error("not both are known")
			}
		})
	})
}

// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// How long things are away, how often things happen: less than the requirements ask for unless they are told.
var (
	foundings = flag.Int("foundings", 10, "how often all nodes start at once")
	away      = flag.Duration("away", time.Minute, "how long the API server is away")
	cut       = flag.Duration("cut", time.Minute, "how long a node has no network")
	scalings  = flag.Int("scalings", 2, "how often the pods are scaled up and down")
	scaled    = flag.Int("scaled", 60, "how many pods")
)

// members returns the names of the nodes of one node's mesh that answer, itself included, and the mesh's name.
func members(t *testing.T, n *Node) []string {
	t.Helper()
	var peers []struct{ Name, State string }
	var wrapped struct {
		Peers []struct{ Name, State string } `json:"peers"`
	}
	out := n.Weft("peers", "--json")
	if json.Unmarshal([]byte(out), &peers) != nil {
		if err := json.Unmarshal([]byte(out), &wrapped); err != nil {
			t.Fatalf("weft peers --json: %v in %s", err, out)
		}
		peers = wrapped.Peers
	}
	names := []string{n.Name()}
	for _, p := range peers {
		if p.Name != n.Name() {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names
}

// TestFoundings has all nodes start Weft at the same instant, again and again: each time they find one mesh.
func TestFoundings(t *testing.T) {
	c := New(t, 5)
	want := []string{}
	for _, n := range c.Nodes {
		want = append(want, n.Name())
	}
	for i := range *foundings {
		start := c.Install()
		c.WaitReady(time.Minute)
		took := time.Since(start)
		c.WaitRollout(time.Minute)
		for _, n := range c.Nodes {
			c.Wait(20*time.Second, n.Name()+" knows all nodes", func() error {
				if got := members(t, n); !slices.Equal(got, want) {
					return fmt.Errorf("%s is in a mesh of %q", n.Name(), got)
				}
				return nil
			})
		}
		t.Logf("founding %d: Ready after %v", i+1, took.Round(100*time.Millisecond))
		c.Uninstall()
		c.Kubectl("-n", "kube-system", "delete", "secret", "weft")
		for _, n := range c.Nodes {
			n.Exec("rm", "-rf", "/var/lib/weft")
		}
	}
}

// pingable tells which pods do not reach each other.
func pingable(pods []*Pod) (failed []string) {
	for _, a := range pods {
		urls := []string{}
		for _, b := range pods {
			for _, addr := range b.Addresses {
				urls = append(urls, "http://"+netip.AddrPortFrom(addr, 8080).String()+"/hostname")
			}
		}
		for _, u := range urls {
			if err := a.Do(func() error { return get(u) }); err != nil {
				failed = append(failed, fmt.Sprintf("%s on %s -> %s: %v", a.Name, a.Node.Name(), u, err))
			}
		}
	}
	return failed
}

// daemons returns the pids of a node's daemon: there are two of them while one stands by.
func daemons(n *Node) []int { return n.Processes("weft kube launch") }

// TestAPIServerAway kills the API server. Connections between pods go on; the daemons are killed, come back without it, and so does the traffic.
func TestAPIServerAway(t *testing.T) {
	c := New(t, 3)
	c.Install()
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	c.RunWeb()
	pods := c.Pods("app=web")
	flows, err := Flows(pods)
	if err != nil {
		t.Fatal(err)
	}
	c.StopAPI()
	start := time.Now()
	time.Sleep(*away / 3)
	for _, n := range c.Nodes {
		pids := daemons(n)
		if len(pids) != 1 {
			t.Fatalf("%s has the daemons %v", n.Name(), pids)
		}
		if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	c.Wait(time.Minute, "all daemons run again", func() error {
		for _, n := range c.Nodes {
			if len(daemons(n)) != 1 {
				return fmt.Errorf("%s has none", n.Name())
			}
		}
		return nil
	})
	back := c.Wait(30*time.Second, "pods reach each other without the API server", func() error {
		if failed := pingable(pods); failed != nil {
			return fmt.Errorf("%s", failed)
		}
		return nil
	})
	t.Logf("pods reach each other %v after the daemons were started again without the API server", back.Round(100*time.Millisecond))
	time.Sleep(max(0, *away-time.Since(start)))
	if failed := pingable(pods); failed != nil {
		t.Error(failed)
	}
	for _, f := range flows {
		gap, lost, err := f.Stop()
		t.Logf("%s -> %s: longest gap %v, %d datagrams lost", f.From.Node.Name(), f.To.Node.Name(), gap.Round(time.Millisecond), lost)
		if err != nil {
			t.Errorf("%s -> %s broke: %v", f.From.Node.Name(), f.To.Node.Name(), err)
		}
	}
	c.StartAPI()
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	for _, f := range c.Smoke() {
		t.Error(f)
	}
}

// owners returns how many addresses each node has, by weft ipam on the node.
func owners(t *testing.T, n *Node) string {
	t.Helper()
	return n.Weft("ipam")
}

// TestNodeDeleted powers a node off and deletes its object, while one of the other daemons dies as well: its addresses are taken over.
func TestNodeDeleted(t *testing.T) {
	c := New(t, 5)
	c.Install()
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	c.RunWeb()
	gone := c.Nodes[4]
	gone.PowerOff()
	time.Sleep(5 * time.Second) // a node that is off answers nobody; its object is deleted by whoever switched it off
	c.Kubectl("delete", "node", gone.Name())
	start := time.Now()
	go func() {
		for _, n := range c.Nodes[1:3] {
			for _, pid := range daemons(n) {
				_ = unix.Kill(pid, unix.SIGKILL) // the test is that it does not matter which one dies
			}
			time.Sleep(8 * time.Second)
		}
	}()
	took := c.Wait(2*time.Minute, "the addresses of "+gone.Name()+" are taken over", func() error {
		out, err := c.Nodes[0].TryWeft("ipam")
		if err == nil && !strings.Contains(out, "took over") && strings.Contains(out, gone.Name()) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	t.Logf("%s was reclaimed %v after its object was deleted:\n%s", gone.Name(), took.Round(100*time.Millisecond), owners(t, c.Nodes[0]))
	if took := time.Since(start); took > time.Minute {
		t.Errorf("%s was reclaimed after %v, want 1m", gone.Name(), took)
	}
}

// TestNodeCutOff takes a node's network away: nothing is reclaimed, and the traffic is back soon after the network is.
func TestNodeCutOff(t *testing.T) {
	c := New(t, 3)
	c.Install()
	c.WaitReady(time.Minute)
	c.WaitRollout(time.Minute)
	c.RunWeb()
	pods := c.Pods("app=web")
	before := owners(t, c.Nodes[0])
	lonely := c.Nodes[2]
	lonely.Link().Down()
	time.Sleep(*cut)
	lonely.Link().Up()
	start := time.Now()
	for {
		failed := pingable(pods)
		if failed == nil {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal(failed)
		}
	}
	took := time.Since(start)
	t.Logf("traffic is back %v after %v without a network", took.Round(100*time.Millisecond), *cut)
	if took > 5*time.Second {
		t.Errorf("traffic is back after %v, want 5s", took)
	}
	if after := owners(t, c.Nodes[0]); strings.Contains(after, "took over") {
		t.Errorf("something was reclaimed: before\n%s\nafter\n%s", before, after)
	}
}

// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"slices"
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

// addresses is what a node tells of the addresses of its mesh.
type addresses struct {
	MeshID      string `json:"mesh_id"`
	Holdings    []struct{ Node string }
	Retirements []json.RawMessage
}

func ipam(n *Node) (a addresses, err error) {
	out, err := n.TryWeft("ipam", "--json")
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal([]byte(out), &a)
}

// owners returns the names of the nodes that own addresses.
func (a addresses) owners() []string {
	names := []string{}
	for _, h := range a.Holdings {
		names = append(names, h.Node)
	}
	slices.Sort(names)
	return names
}

// peers returns the names of the nodes of a node's mesh that are well, without its own.
func peers(n *Node) ([]string, error) {
	out, err := n.TryWeft("peers", "--json")
	if err != nil {
		return nil, err
	}
	var list []struct{ Name, State string }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("%w in %s", err, out)
	}
	names := []string{}
	for _, p := range list {
		names = append(names, p.Name+" "+p.State)
	}
	slices.Sort(names)
	return names, nil
}

// TestFoundings has all nodes start Weft at the same instant, again and again: each time they find one mesh.
func TestFoundings(t *testing.T) {
	c := New(t, 5)
	meshes := map[string]bool{}
	for i := range *foundings {
		start := c.Install()
		c.WaitReady(time.Minute)
		took := time.Since(start)
		c.WaitRollout(time.Minute)
		first, err := ipam(c.Nodes[0])
		if err != nil || meshes[first.MeshID] {
			t.Fatalf("mesh %q, %v; there were %v", first.MeshID, err, meshes)
		}
		meshes[first.MeshID] = true
		for _, n := range c.Nodes {
			want := []string{}
			for _, o := range c.Nodes {
				if o != n {
					want = append(want, o.Name()+" alive")
				}
			}
			c.Wait(20*time.Second, n.Name()+" is in one mesh with all", func() error {
				a, err := ipam(n)
				if err != nil {
					return err
				}
				got, err := peers(n)
				if err == nil && (a.MeshID != first.MeshID || !slices.Equal(got, want)) {
					err = fmt.Errorf("%s is in mesh %s with %q, %s in %s", n.Name(), a.MeshID, got, c.Nodes[0].Name(), first.MeshID)
				}
				return err
			})
		}
		t.Logf("founding %d: Ready after %v", i+1, took.Round(100*time.Millisecond))
		c.Uninstall()
		// The next time they are new machines: with neither a Secret nor data, nor what their objects bear.
		c.Kubectl("-n", "kube-system", "delete", "secret", "weft")
		c.Kubectl("annotate", "node", "--all", "weftnet.dev/node-id-")
		for _, n := range c.Nodes {
			n.Exec("rm", "-rf", "/var/lib/weft")
		}
		c.WaitNotReady(time.Minute)
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

// waitAnew waits until each node has a daemon that is none of those that were killed, which may take a moment to die.
func (c *Cluster) waitAnew(killed []int) {
	c.tb.Helper()
	c.Wait(time.Minute, "all daemons run again", func() error {
		for _, n := range c.Nodes {
			if !slices.ContainsFunc(daemons(n), func(pid int) bool { return !slices.Contains(killed, pid) }) {
				return fmt.Errorf("%s has none", n.Name())
			}
		}
		return nil
	})
}

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
	killed := []int{}
	for _, n := range c.Nodes {
		pids := daemons(n)
		if len(pids) != 1 {
			t.Fatalf("%s has the daemons %v", n.Name(), pids)
		}
		if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed = append(killed, pids[0])
	}
	c.waitAnew(killed)
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
	c.WaitReady(3 * time.Minute) // kubelets ask the API server again after a while only
	c.WaitRollout(time.Minute)
	for _, f := range c.Smoke() {
		t.Error(f)
	}
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
	c.Wait(2*time.Minute, "the addresses of "+gone.Name()+" are taken over", func() error {
		a, err := ipam(c.Nodes[0])
		if err == nil && (slices.Contains(a.owners(), gone.Name()) || len(a.Retirements) != 1) {
			err = fmt.Errorf("%q own addresses, %d were declared gone", a.owners(), len(a.Retirements))
		}
		return err
	})
	t.Logf("the addresses of %s are taken over %v after its object was deleted", gone.Name(), time.Since(start).Round(100*time.Millisecond))
	if took := time.Since(start); took > time.Minute {
		t.Errorf("the addresses of %s are taken over after %v, want 1m", gone.Name(), took)
	}
	c.WaitRollout(time.Minute)
	left := slices.DeleteFunc(c.Pods("app=web"), func(p *Pod) bool { return p.Node == gone }) // its pods' objects go later
	if failed := pingable(left); failed != nil {
		t.Error(failed)
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
	before, err := ipam(c.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
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
	after, err := ipam(c.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Retirements) != 0 || !slices.Equal(before.owners(), after.owners()) {
		t.Errorf("something was reclaimed: before %+v, after %+v", before, after)
	}
}

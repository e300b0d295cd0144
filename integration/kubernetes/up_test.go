// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The patience of the requirements: how long after the file was applied all nodes are Ready, and a node that is added later.
const (
	readyWithin  = 15 * time.Second
	joinedWithin = 10 * time.Second
)

// TestUp applies the one file to clusters of three and five nodes, tries everything, adds a node, and takes Weft away again.
func TestUp(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := New(t, n)
			before := snapshots(t, c)
			start := c.Install()
			c.WaitReady(time.Minute)
			took := time.Since(start)
			t.Logf("%d nodes are Ready %v after the file was applied", n, took.Round(100*time.Millisecond))
			if took > readyWithin {
				t.Errorf("%d nodes are Ready after %v, want %v", n, took, readyWithin)
			}
			c.WaitRollout(time.Minute)
			for _, f := range c.Smoke() {
				t.Error(f)
			}
			if n == 3 {
				added := c.AddNode()
				took := c.WaitReady(time.Minute, added)
				t.Logf("a node that was added is Ready %v after it was registered", took.Round(100*time.Millisecond))
				if took > joinedWithin {
					t.Errorf("a node that was added is Ready after %v, want %v", took, joinedWithin)
				}
				for _, f := range c.Smoke() {
					t.Error(f)
				}
			}
			mesh, err := ipam(c.Nodes[0])
			if err != nil {
				t.Fatal(err)
			}
			c.Uninstall()
			for i, node := range c.Nodes[:n] {
				if diff := difference(before[i], snapshot(t, node)); diff != "" {
					t.Errorf("%s is not as before Weft was there:\n%s", node.Name(), diff)
				}
			}
			if n != 3 {
				return
			}
			c.WaitNotReady(time.Minute)
			start = c.Install()
			c.WaitReady(time.Minute)
			t.Logf("%d nodes are Ready %v after the file was applied again", len(c.Nodes), time.Since(start).Round(100*time.Millisecond))
			c.WaitRollout(time.Minute)
			if again, err := ipam(c.Nodes[0]); err != nil || again.MeshID != mesh.MeshID || !slices.Equal(again.owners(), mesh.owners()) {
				t.Errorf("applied again: %+v (%v), was %+v", again, err, mesh)
			}
			for _, f := range c.Smoke() {
				t.Error(f)
			}
		})
	}
}

// snapshots describes all nodes.
func snapshots(t *testing.T, c *Cluster) [][]string {
	t.Helper()
	all := [][]string{}
	for _, n := range c.Nodes {
		all = append(all, snapshot(t, n))
	}
	return all
}

// snapshot describes what Weft could have left on a node: network configuration without what is kube-proxy's or the portmap plugin's (it never
// takes its chains away, whose rules come and go), and without link-local addresses, which the kernel gives and takes; plugins, configurations, and
// files below /run.
func snapshot(t *testing.T, n *Node) []string {
	t.Helper()
	lines, err := n.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, l := range lines {
		if !strings.Contains(l, "kube-") && !strings.Contains(l, "KUBE-") && !strings.Contains(l, " nat ") && !strings.Contains(l, "fe80:") {
			out = append(out, l)
		}
	}
	files := n.Exec("sh", "-c", "find /opt/cni/bin /etc/cni/net.d /run/weft /run/netns ! -type d 2>/dev/null; true")
	return append(out, strings.Split(strings.TrimSpace(files), "\n")...)
}

// difference tells which lines one has and the other has not.
func difference(before, after []string) string {
	count := map[string]int{}
	for _, l := range before {
		count[l]--
	}
	for _, l := range after {
		count[l]++
	}
	var b strings.Builder
	for _, l := range append(before, after...) {
		switch n := count[l]; {
		case n > 0:
			fmt.Fprintf(&b, "+ %s\n", l)
		case n < 0:
			fmt.Fprintf(&b, "- %s\n", l)
		}
		count[l] = 0
	}
	return b.String()
}

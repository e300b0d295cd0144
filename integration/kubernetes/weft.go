// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// manifest returns the one file that users apply. Tests run in this package's directory.
func (c *Cluster) manifest() string {
	c.tb.Helper()
	file, err := filepath.Abs(filepath.Join("..", "..", "deploy", "kubernetes", "weft.yaml"))
	c.must(err)
	return file
}

// Install applies the manifest, with further arguments for the daemons, and returns when that was.
func (c *Cluster) Install(flags ...string) time.Time {
	c.tb.Helper()
	text, err := os.ReadFile(c.manifest())
	c.must(err)
	const args = `args: ["kube","launch"]`
	if strings.Count(string(text), args) != 1 {
		c.tb.Fatalf("%s has not the line %s", c.manifest(), args)
	}
	list, err := json.Marshal(append([]string{"kube", "launch"}, flags...))
	c.must(err)
	start := time.Now()
	c.Apply(strings.Replace(string(text), args, "args: "+string(list), 1))
	return start
}

// Uninstall deletes what the manifest made, and waits until the pods are gone.
func (c *Cluster) Uninstall() {
	c.tb.Helper()
	c.Kubectl("delete", "-f", c.manifest())
	c.Wait(time.Minute, "the pods of Weft are gone", func() error {
		out, err := c.TryKubectl("-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=weft", "-o", "name")
		if err == nil && out != "" {
			err = errors.New(strings.TrimSpace(out))
		}
		return err
	})
}

// WaitReady waits until all nodes are Ready, and returns how long it took.
func (c *Cluster) WaitReady(patience time.Duration, nodes ...*Node) time.Duration {
	c.tb.Helper()
	return c.waitNodes(patience, "True", "all nodes are Ready", nodes)
}

// WaitNotReady waits until the kubelets of all nodes have noticed that they have no plugin.
func (c *Cluster) WaitNotReady(patience time.Duration) {
	c.tb.Helper()
	c.waitNodes(patience, "False", "no node is Ready", nil)
}

func (c *Cluster) waitNodes(patience time.Duration, ready, what string, nodes []*Node) time.Duration {
	c.tb.Helper()
	if len(nodes) == 0 {
		nodes = c.Nodes
	}
	return c.Wait(patience, what, func() error {
		out, err := c.TryKubectl("get", "nodes", "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if !strings.Contains("\n"+out, "\n"+n.name+" "+ready+"\n") {
				err = errors.Join(err, fmt.Errorf("%s: it is not so", n.name))
			}
		}
		return err
	})
}

// WaitRollout waits until the DaemonSet runs as it is specified on all nodes.
func (c *Cluster) WaitRollout(patience time.Duration) time.Duration {
	c.tb.Helper()
	start := time.Now()
	c.Kubectl("-n", "kube-system", "rollout", "status", "ds/weft", fmt.Sprintf("--timeout=%v", patience))
	return time.Since(start)
}

// TryWeft runs a weft command in the daemon's container on a node.
func (n *Node) TryWeft(args ...string) (string, error) {
	pod, err := n.cluster.TryKubectl("-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=weft",
		"--field-selector=spec.nodeName="+n.name+",status.phase=Running", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return "", err
	}
	return n.cluster.TryKubectl(append([]string{"-n", "kube-system", "exec", pod, "-c", "weft", "--", "weft"}, args...)...)
}

// Weft is TryWeft that ends the test when it fails.
func (n *Node) Weft(args ...string) string {
	n.cluster.tb.Helper()
	out, err := n.TryWeft(args...)
	n.cluster.must(err)
	return out
}

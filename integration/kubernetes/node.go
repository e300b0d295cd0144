// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// A Node is one machine of the cluster. What runs on it has its own network, processes, mounts, host name and System V objects.
type Node struct {
	*lab.Host

	cluster *Cluster
	name    string
	dir     string
	keeper  *lab.Process // holds the node's first process, which dies with it
	first   int          // pid of that as the machine sees it
}

// Name returns the node's name.
func (n *Node) Name() string { return n.name }

// Address returns the node's IPv4 address.
func (n *Node) Address() string { return n.Link().V4().String() }

func (c *Cluster) newNode() *Node {
	c.tb.Helper()
	name := fmt.Sprintf("node%d", len(c.Nodes)+1)
	n := &Node{Host: c.Lab.Host(name, c.LAN), cluster: c, name: name, dir: filepath.Join(c.dir, name)}
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		c.must(n.Sysctl(s, "1"))
	}
	c.must(os.MkdirAll(n.dir, 0o755))
	c.must(os.MkdirAll(filepath.Join(c.logs, name), 0o755))
	c.must(makeCgroups(c.group, name))
	c.Nodes = append(c.Nodes, n)
	return n
}

// boot starts the node's programs and imports the images.
func (n *Node) boot() error {
	c := n.cluster
	if _, err := os.Stat(c.pki.file(n.name + ".kubeconfig")); err != nil {
		if err := c.pki.user(c.api(), n.name, "system:node:"+n.name, "system:nodes"); err != nil {
			return err
		}
	}
	hosts := map[string]string{}
	for _, o := range c.Nodes {
		hosts[o.name] = o.Address()
	}
	addresses := n.Address()
	if c.dual {
		addresses += "," + n.Link().V6().String()
	}
	plan := filepath.Join(n.dir, "plan.json")
	text, err := json.Marshal(nodePlan{
		Name: n.name, Addresses: addresses, Dir: n.dir, Bin: filepath.Join(c.built, "bin"), PKI: c.pki.dir, Logs: filepath.Join(c.logs, n.name),
		Cgroup: filepath.Join("/", c.group, n.name), Proxy: c.proxy, Pods: c.both(podsV4, podsV6), DNS: dnsService, Hosts: hosts,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(plan, text, 0o600); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(c.logs, n.name, "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	_ = os.Remove(filepath.Join(n.dir, pidFile))
	n.keeper, err = n.Start(lab.Command{Path: exe, Env: []string{envNode + "=" + plan, envStage + "=keeper"}, Stdout: log, Stderr: log})
	if err != nil {
		return err
	}
	if err := n.waitBoot(); err != nil {
		return err
	}
	if err := n.importImages(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.dir, goFile), nil, 0o600)
}

// waitBoot waits until containerd answers.
func (n *Node) waitBoot() error {
	for start := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		err := func() error {
			text, err := os.ReadFile(filepath.Join(n.dir, pidFile))
			if err != nil {
				return err
			}
			if n.first, err = strconv.Atoi(string(text)); err != nil {
				return err
			}
			_, err = n.TryRun("ctr", "version")
			return err
		}()
		if err == nil {
			return nil
		}
		if time.Since(start) > 30*time.Second || closed(n.keeper.Done()) {
			return fmt.Errorf("%s does not start: %w; see %s", n.name, err, n.cluster.logs)
		}
	}
}

// importImages gives the node the images, unless it has them.
func (n *Node) importImages() error {
	tarballs, err := filepath.Glob(filepath.Join(n.cluster.built, "images", "*.tar"))
	if err != nil {
		return err
	}
	for _, t := range append(tarballs, os.Getenv(envImage)) {
		if _, err := n.TryRun("nice", "ctr", "-n", "k8s.io", "images", "import", t); err != nil {
			return err
		}
	}
	return nil
}

// TryRun runs a program inside all of the node's namespaces and returns what it printed. An exit code other than 0 is an error.
func (n *Node) TryRun(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	enter := []string{"-t", strconv.Itoa(n.first), "-m", "-u", "-i", "-n", "-p", "--"}
	r, err := n.Host.Run(ctx, lab.Command{
		Path: "nsenter", Args: append(enter, args...), Dir: "/",
		Env: []string{"PATH=" + filepath.Join(n.cluster.built, "bin") + ":" + os.Getenv("PATH")},
	})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s on %s: exit code %d: %s%s", strings.Join(args, " "), n.name, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout, err
}

// Exec is TryRun that ends the test when it fails.
func (n *Node) Exec(args ...string) string {
	n.cluster.tb.Helper()
	out, err := n.TryRun(args...)
	n.cluster.must(err)
	return out
}

// PowerOff ends everything on the node at once, as a power failure does; its disk stays.
func (n *Node) PowerOff() {
	if n.keeper == nil {
		return
	}
	if n.first != 0 {
		_ = unix.Kill(n.first, unix.SIGKILL) // it may be gone
	}
	n.keeper.Kill()
	for range 100 {
		if n.first == 0 || !alive(n.first) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	n.keeper, n.first = nil, 0
}

// Boot starts the node again after PowerOff.
func (n *Node) Boot() {
	n.cluster.tb.Helper()
	if n.keeper != nil {
		n.cluster.must(errors.New(n.name + " runs already"))
	}
	// What a network namespace holds does not survive a power failure; the link to the switch does.
	links, err := n.Netlink().LinkList()
	n.cluster.must(err)
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && name != n.Link().Device() {
			_ = n.Netlink().LinkDel(l) // its peer may have taken it along
		}
	}
	n.cluster.must(n.ClearRules())
	n.cluster.start([]*Node{n})
}

// Processes returns the pids, as the machine sees them, of the processes on the node whose command line contains the text.
func (n *Node) Processes(text string) []int {
	n.cluster.tb.Helper()
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.first))
	n.cluster.must(err)
	found := []int{}
	entries, err := os.ReadDir("/proc")
	n.cluster.must(err)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Containers have pid namespaces of their own, below the node's: their parents tell.
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || !strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), text) {
			continue
		}
		if n.owns(pid, own) {
			found = append(found, pid)
		}
	}
	return found
}

// owns tells whether one of the ancestors of a process is in the pid namespace.
func (n *Node) owns(pid int, namespace string) bool {
	for range 16 {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && ns == namespace {
			return true
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(after)
		if len(fields) < 2 {
			return false
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil || pid <= 1 {
			return false
		}
	}
	return false
}

// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// Environment variables that say where things are; `make e2e` sets them.
const (
	envBuilt = "WEFT_E2E"       // what the command in build/ has made
	envImage = "WEFT_E2E_IMAGE" // the tarball of Weft's image
	envLogs  = "WEFT_E2E_LOGS"  // directory of logs; default: below the built
)

// Addresses of the clusters. Nodes and clients have those of the lab's switches.
const (
	podsV4     = "10.244.0.0/16"
	podsV6     = "fd00:10:244::/56"
	servicesV4 = "10.96.0.0/16"
	servicesV6 = "fd00:10:96::/112"
	apiService = "10.96.0.1" // the first address of the Services
	dnsService = "10.96.0.10"
)

// An Option changes how a cluster is made.
type Option func(*Cluster)

// DualStack gives pods, Services and nodes addresses of both families.
func DualStack(c *Cluster) { c.dual = true }

// Proxy chooses kube-proxy's mode, nftables unless told otherwise, or iptables.
func Proxy(mode string) Option { return func(c *Cluster) { c.proxy = mode } }

// A Cluster is an API server, a scheduler, a controller manager, and nodes on one switch. Methods without an error end the test when they
// fail, so they belong in its goroutine.
type Cluster struct {
	Lab    *lab.Lab
	LAN    *lab.Segment
	Client *lab.Host // a machine beside the nodes; kubectl and the upstream tests run there
	Nodes  []*Node

	tb    testing.TB
	built string // programs and images
	dir   string // of this cluster's files, gone with it
	logs  string
	group string // cgroup of all nodes
	proxy string
	dual  bool
	pki   *pki

	control map[string]*lab.Process // the control plane's programs, on the first node
}

// New starts a cluster of n nodes, which have the images of the tests and Weft's, and no pod network.
func New(tb testing.TB, n int, options ...Option) *Cluster {
	tb.Helper()
	c := &Cluster{
		tb: tb, built: os.Getenv(envBuilt), logs: os.Getenv(envLogs), proxy: "nftables", control: map[string]*lab.Process{},
		group: fmt.Sprintf("weft-e2e-%d", os.Getpid()),
	}
	if c.built == "" || os.Getenv(envImage) == "" {
		tb.Fatalf("%s and %s say where programs and images are, and are not set: run make e2e", envBuilt, envImage)
	}
	for _, o := range options {
		o(c)
	}
	if c.logs == "" {
		c.logs = filepath.Join(c.built, "logs")
	}
	for _, program := range []string{"runc", "nsenter", "iptables"} { // for containerd, this harness, and kube-proxy with portmap
		if _, err := exec.LookPath(program); err != nil {
			tb.Fatalf("%s is not installed, and nodes do not work without it; on Debian: apt-get install runc util-linux iptables", program)
		}
	}
	c.logs = filepath.Join(c.logs, strings.ReplaceAll(tb.Name(), "/", "-"))
	c.must(os.RemoveAll(c.logs))
	c.must(os.MkdirAll(c.logs, 0o755))
	c.Lab = lab.New(tb)
	c.dir = filepath.Join(c.Lab.Root(), "cluster")
	tb.Cleanup(c.end)
	c.LAN = c.Lab.Switch("lan")
	c.Client = c.Lab.Host("client", c.LAN)
	for range n {
		c.newNode()
	}
	c.startControl()
	c.start(c.Nodes)
	return c
}

// must ends the test if there is an error.
func (c *Cluster) must(err error) {
	c.tb.Helper()
	if err != nil {
		c.tb.Fatal(err)
	}
}

func (c *Cluster) program(name string) string { return filepath.Join(c.built, "bin", name) }

func (c *Cluster) api() string { return fmt.Sprintf("https://%s:6443", c.Nodes[0].Address()) }

// both joins what there is of each family.
func (c *Cluster) both(v4, v6 string) string {
	if c.dual {
		return v4 + "," + v6
	}
	return v4
}

// startControl makes the certificates and starts the control plane on the first node.
func (c *Cluster) startControl() {
	c.tb.Helper()
	var err error
	c.pki, err = newPKI(filepath.Join(c.dir, "pki"))
	c.must(err)
	c.must(c.pki.issue("apiserver", "ca", "kube-apiserver", nil, c.Nodes[0].Address(), "127.0.0.1", apiService, "localhost",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"))
	c.must(c.pki.issue("kubelet-client", "ca", "kube-apiserver-kubelet-client", []string{"system:masters"}))
	c.must(c.pki.issue("front-proxy-client", "front-proxy-ca", "front-proxy-client", nil))
	c.must(c.pki.user(c.api(), "admin", "admin", "system:masters"))
	c.must(c.pki.user(c.api(), "controller-manager", "system:kube-controller-manager"))
	c.must(c.pki.user(c.api(), "scheduler", "system:kube-scheduler"))
	c.must(c.pki.user(c.api(), "proxy", "system:kube-proxy"))
	c.run("etcd", "--data-dir="+filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380")
	c.StartAPI()
	kubeconfig := func(name string) []string {
		f := c.pki.file(name + ".kubeconfig")
		return []string{"--kubeconfig=" + f, "--authentication-kubeconfig=" + f, "--authorization-kubeconfig=" + f, "--leader-elect=false"}
	}
	c.run("kube-controller-manager", append(kubeconfig("controller-manager"),
		"--allocate-node-cidrs", "--cluster-cidr="+c.both(podsV4, podsV6), "--service-cluster-ip-range="+c.both(servicesV4, servicesV6),
		"--root-ca-file="+c.pki.file("ca.crt"), "--service-account-private-key-file="+c.pki.file("sa.key"), "--use-service-account-credentials",
		"--cluster-signing-cert-file="+c.pki.file("ca.crt"), "--cluster-signing-key-file="+c.pki.file("ca.key"))...)
	c.run("kube-scheduler", kubeconfig("scheduler")...)
}

// run starts a program of the control plane.
func (c *Cluster) run(name string, args ...string) {
	c.tb.Helper()
	f, err := os.OpenFile(filepath.Join(c.logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	c.must(err)
	defer func() { _ = f.Close() }()
	p, err := c.Nodes[0].Start(lab.Command{Path: c.program(name), Args: args, Stdout: f, Stderr: f})
	c.must(err)
	c.control[name] = p
}

// StartAPI starts the API server and waits until it is ready.
func (c *Cluster) StartAPI() {
	c.tb.Helper()
	crt := func(flag, name string) []string {
		return []string{"--" + flag + "-cert-file=" + c.pki.file(name+".crt"), "--" + flag + "-key-file=" + c.pki.file(name+".key")}
	}
	args := append(crt("tls", "apiserver"), crt("proxy-client", "front-proxy-client")...)
	args[1] = "--tls-private-key-file=" + c.pki.file("apiserver.key")
	c.run("kube-apiserver", append(args,
		"--advertise-address="+c.Nodes[0].Address(), "--secure-port=6443", "--etcd-servers=http://127.0.0.1:2379",
		"--service-cluster-ip-range="+c.both(servicesV4, servicesV6), "--allow-privileged",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--client-ca-file="+c.pki.file("ca.crt"),
		"--kubelet-client-certificate="+c.pki.file("kubelet-client.crt"), "--kubelet-client-key="+c.pki.file("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP", "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.pki.file("sa.pub"), "--service-account-signing-key-file="+c.pki.file("sa.key"),
		"--requestheader-client-ca-file="+c.pki.file("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User")...)
	c.Wait(90*time.Second, "the API server is ready", func() error {
		if p := c.control["kube-apiserver"]; closed(p.Done()) {
			c.tb.Fatalf("kube-apiserver ended: see %s", c.logs)
		}
		_, err := c.TryKubectl("get", "--raw", "/readyz")
		return err
	})
}

// StopAPI kills the API server.
func (c *Cluster) StopAPI() { c.control["kube-apiserver"].Kill() }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Wait tries until there is no error, for at most so long.
func (c *Cluster) Wait(patience time.Duration, what string, try func() error) time.Duration {
	c.tb.Helper()
	start := time.Now()
	for {
		err := try()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took > patience {
			c.tb.Fatalf("after %v it is not so that %s: %v", took.Round(time.Millisecond), what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// TryKubectl runs kubectl as the cluster's administrator and returns what it printed.
func (c *Cluster) TryKubectl(args ...string) (string, error) { return c.kubectl("", args...) }

func (c *Cluster) kubectl(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, err := c.Client.Run(ctx, lab.Command{
		Path: c.program("kubectl"), Args: append([]string{"--kubeconfig=" + c.pki.file("admin.kubeconfig")}, args...),
		Stdin: bytes.NewReader([]byte(stdin)),
	})
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return r.Stdout, fmt.Errorf("kubectl %s: exit code %d: %s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout, nil
}

// Kubectl is TryKubectl that ends the test when it fails.
func (c *Cluster) Kubectl(args ...string) string {
	c.tb.Helper()
	out, err := c.TryKubectl(args...)
	c.must(err)
	return out
}

// Apply applies objects.
func (c *Cluster) Apply(yaml string) {
	c.tb.Helper()
	_, err := c.kubectl(yaml, "apply", "-f", "-")
	c.must(err)
}

// start starts nodes at the same time and waits until they have their images and the API server knows them.
func (c *Cluster) start(nodes []*Node) {
	c.tb.Helper()
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.boot() })
	}
	wg.Wait()
	for _, err := range errs {
		c.must(err)
	}
	for _, n := range nodes {
		c.Wait(3*time.Minute, n.Name()+" is registered", func() error {
			out, err := c.TryKubectl("get", "node", n.Name(), "-o", "jsonpath={.spec.podCIDR}")
			if err == nil && out == "" {
				err = fmt.Errorf("%s has no podCIDR", n.Name())
			}
			return err
		})
	}
}

// AddNode starts one node more.
func (c *Cluster) AddNode() *Node {
	c.tb.Helper()
	n := c.newNode()
	c.start([]*Node{n})
	return n
}

// end kills the nodes, whose processes would hold the files of the lab.
func (c *Cluster) end() {
	for _, n := range c.Nodes {
		n.PowerOff()
	}
	for _, p := range c.control {
		p.Kill()
	}
	// What the nodes ran dies with their first processes; only then nothing writes any more.
	if err := removeCgroups(c.group); err != nil {
		c.tb.Errorf("%v", err)
	}
}

// alive tells whether a process exists that is no zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z") && unix.Kill(pid, 0) == nil
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weftnet/weft/integration/lab"
)

const (
	// envReference names the directory with the reference plugins, and cnitool.
	envReference = "WEFT_CNI_REFERENCE"
	// envPlugin names the built plugin.
	envPlugin = "WEFT_CNI_BIN"
	// weftType is the plugin's type in a configuration.
	weftType = "weft"
	// newest is the version of the specification that tests use that are not about versions.
	newest = "1.1.0"
	// verbTimeout is how long one verb may take in any test.
	verbTimeout = time.Minute
)

// call is one execution of a plugin.
type call struct {
	plugin, command, container, netns, ifname string
	stdin, stdout, stderr                     []byte
	code                                      int
	took                                      time.Duration
}

func (c *call) String() string {
	return fmt.Sprintf("%s %s of %s/%s: exit code %d, stdin %s, stdout %s, stderr %s", c.plugin, c.command, c.container, c.ifname, c.code, c.stdin, c.stdout, c.stderr)
}

// cniHost calls plugins as a container runtime on a host does: by libcni, inside of the host's namespace.
type cniHost struct {
	*lab.Host
	t    *testing.T
	path []string // where plugins are
	lib  *libcni.CNIConfig

	mu    sync.Mutex
	calls []*call
}

// withCNI gives a host the plugins. Whatever Weft's prints from then on is held against the specification.
func withCNI(t *testing.T, h *lab.Host) *cniHost {
	t.Helper()
	bin := filepath.Join(h.Dir(), "cni-bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	c := &cniHost{Host: h, t: t, path: []string{os.Getenv(envReference), bin}}
	c.use(os.Getenv(envPlugin))
	c.lib = libcni.NewCNIConfigWithCacheDir(c.path, filepath.Join(h.Dir(), "cni-cache"), c)
	return c
}

// use makes a program the host's plugin of Weft, which knows itself by its name.
func (c *cniHost) use(program string) {
	c.t.Helper()
	name := filepath.Join(c.path[1], weftType)
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		c.t.Fatal(err)
	}
	if err := os.Symlink(program, name); err != nil {
		c.t.Fatal(err)
	}
}

// FindInPath is part of [invoke.Exec].
func (c *cniHost) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// Decode is part of [invoke.Exec].
func (c *cniHost) Decode(b []byte) (version.PluginInfo, error) {
	return new(version.PluginDecoder).Decode(b)
}

// ExecPlugin is part of [invoke.Exec]: it runs the plugin on the host.
func (c *cniHost) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	k, err := c.exec(ctx, path, stdin, env)
	if err != nil {
		return nil, err
	}
	if k.code == 0 {
		return k.stdout, nil
	}
	var e types.Error
	if err := json.Unmarshal(k.stdout, &e); err != nil {
		return nil, fmt.Errorf("%v: %w", k, err)
	}
	return nil, &e
}

// exec runs a plugin on the host, and keeps what it said.
func (c *cniHost) exec(ctx context.Context, path string, stdin []byte, env []string) (*call, error) {
	value := func(name string) (v string) {
		for _, e := range env {
			if after, ok := strings.CutPrefix(e, name+"="); ok {
				v = after
			}
		}
		return v
	}
	start := time.Now()
	r, err := c.Run(ctx, lab.Command{Path: path, Stdin: strings.NewReader(string(stdin)), Env: env})
	k := &call{
		plugin: filepath.Base(path), command: value("CNI_COMMAND"), container: value("CNI_CONTAINERID"), netns: value("CNI_NETNS"), ifname: value("CNI_IFNAME"),
		stdin: stdin, stdout: []byte(r.Stdout), stderr: []byte(r.Stderr), code: r.Code, took: time.Since(start),
	}
	if err != nil {
		return k, err
	}
	c.mu.Lock()
	c.calls = append(c.calls, k)
	c.mu.Unlock()
	if k.plugin == weftType {
		if err := k.fits(); err != nil {
			c.t.Errorf("against the specification: %v: %v", err, k)
		}
	}
	return k, nil
}

// last returns the last execution of a plugin with a verb.
func (c *cniHost) last(plugin, command string) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range slices.Backward(c.calls) {
		if k.plugin == plugin && k.command == command {
			return k
		}
	}
	c.t.Fatalf("%s was not called for %s", plugin, command)
	return nil
}

// keys are keys of a configuration.
type keys map[string]any

// network is a network configuration of a version with plugins.
func network(t *testing.T, version, name string, plugins ...keys) *libcni.NetworkConfigList {
	t.Helper()
	text, err := json.Marshal(keys{"cniVersion": version, "name": name, "plugins": plugins})
	if err != nil {
		t.Fatal(err)
	}
	n, err := libcni.ConfListFromBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// pod is a container as its runtime knows it.
type pod struct {
	*lab.Workload
	libcni.RuntimeConf
}

// newPod makes an empty container.
func (c *cniHost) newPod(id string) *pod {
	c.t.Helper()
	w, err := c.TryWorkload(id)
	if err != nil {
		c.t.Fatal(err)
	}
	return &pod{Workload: w, RuntimeConf: libcni.RuntimeConf{ContainerID: id, NetNS: w.Path(), IfName: "eth0"}}
}

func within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), verbTimeout)
}

// tryAdd adds the container to the network, and notes the addresses that it has got.
func (c *cniHost) tryAdd(n *libcni.NetworkConfigList, p *pod) (*types100.Result, error) {
	ctx, cancel := within()
	defer cancel()
	result, err := c.lib.AddNetworkList(ctx, n, &p.RuntimeConf)
	if err != nil {
		return nil, err
	}
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, err
	}
	p.V4, p.V6 = netip.Addr{}, netip.Addr{}
	for _, ip := range r.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		switch a = a.Unmap(); {
		case !ok:
			return nil, fmt.Errorf("no address: %v", ip)
		case a.Is4():
			p.V4 = a
		default:
			p.V6 = a
		}
	}
	return r, nil
}

// add is tryAdd that must succeed.
func (c *cniHost) add(n *libcni.NetworkConfigList, p *pod) *types100.Result {
	c.t.Helper()
	r, err := c.tryAdd(n, p)
	if err != nil {
		c.t.Fatalf("ADD of %s on %s: %v", p.ContainerID, c.Name(), err)
	}
	return r
}

// added makes a container and adds it to the network.
func (c *cniHost) added(n *libcni.NetworkConfigList, id string) *pod {
	c.t.Helper()
	p := c.newPod(id)
	c.add(n, p)
	return p
}

// tryDel takes the container from the network.
func (c *cniHost) tryDel(n *libcni.NetworkConfigList, p *pod) error {
	ctx, cancel := within()
	defer cancel()
	return c.lib.DelNetworkList(ctx, n, &p.RuntimeConf)
}

// del is tryDel that must succeed.
func (c *cniHost) del(n *libcni.NetworkConfigList, p *pod) {
	c.t.Helper()
	if err := c.tryDel(n, p); err != nil {
		c.t.Fatalf("DEL of %s on %s: %v", p.ContainerID, c.Name(), err)
	}
}

// check asks whether the container is as it was made.
func (c *cniHost) check(n *libcni.NetworkConfigList, p *pod) error {
	ctx, cancel := within()
	defer cancel()
	return c.lib.CheckNetworkList(ctx, n, &p.RuntimeConf)
}

// status asks whether containers can be added.
func (c *cniHost) status(n *libcni.NetworkConfigList) error {
	ctx, cancel := within()
	defer cancel()
	return c.lib.GetStatusNetworkList(ctx, n)
}

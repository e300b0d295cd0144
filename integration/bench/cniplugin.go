// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// verb is what a plugin is asked to do.
type verb string

const (
	verbAdd verb = "ADD"
	verbDel verb = "DEL"
)

const (
	cniVersion  = "1.0.0"
	podIf       = "eth0"
	verbTimeout = time.Minute
)

// cniTimes is how long verbs took, in the order in which they were begun.
type cniTimes struct{ add, del []time.Duration }

func (t *cniTimes) of(v verb) *[]time.Duration {
	if v == verbAdd {
		return &t.add
	}
	return &t.del
}

// cniContender is a plugin on a node.
type cniContender struct {
	name      string
	host      *lab.Host
	dir       string         // of plugins
	conf      map[string]any // of the network
	pods      []*benchPod
	spares    []*benchPod
	made      int // containers so far
	one, many cniTimes
}

// benchPod is a container as its runtime knows it.
type benchPod struct {
	ns     *lab.Namespace
	id     string
	result json.RawMessage // of ADD
	addrs  []netip.Addr
}

func weftPlugin(h *lab.Host, dir string) *cniContender {
	return &cniContender{
		name: weftName, host: h, dir: dir,
		conf: map[string]any{"cniVersion": cniVersion, "name": "bench", "type": weftName, "runDir": h.RunDir()},
	}
}

// referencePlugins are ptp and host-local, which give a pod the same: a veth pair of its own to the host, addresses of both families, and a
// default route.
func referencePlugins(h *lab.Host, dir string) *cniContender {
	type subnet map[string]string
	return &cniContender{
		name: "ptp + host-local", host: h, dir: dir,
		conf: map[string]any{
			"cniVersion": cniVersion, "name": "bench", "type": "ptp",
			"ipam": map[string]any{
				"type": "host-local", "dataDir": filepath.Join(h.Dir(), "leases"),
				"ranges": [][]subnet{{{"subnet": "10.99.0.0/16"}}, {{"subnet": "fd99::/64"}}},
				"routes": []subnet{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
			},
		},
	}
}

func (c *cniContender) makePods(n int) (err error) {
	c.pods, err = c.containers(n)
	return err
}

func (c *cniContender) makeSpares(n int) (err error) {
	c.spares, err = c.containers(n)
	return err
}

// containers makes namespaces. What else a container consists of is none of a plugin's business.
func (c *cniContender) containers(n int) ([]*benchPod, error) {
	out := make([]*benchPod, n)
	for i := range out {
		w, err := c.host.TryWorkload(fmt.Sprintf("pod%d", i))
		if err != nil {
			return nil, err
		}
		out[i] = &benchPod{ns: w.Namespace}
	}
	return out, nil
}

// verbs carries out a verb for pods, several at a time, and notes how long each took.
func (c *cniContender) verbs(ctx context.Context, v verb, pods []*benchPod, atOnce int) error {
	took := make([]time.Duration, len(pods))
	err := c.calls(ctx, v, pods, took, atOnce)
	list := c.one.of(v)
	if atOnce > 1 {
		list = c.many.of(v)
	}
	*list = append(*list, took...)
	return err
}

// calls carries out a verb for pods, as many at a time as there are threads on the host for it.
func (c *cniContender) calls(ctx context.Context, v verb, pods []*benchPod, took []time.Duration, atOnce int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if v == verbAdd {
		for _, p := range pods {
			c.made++
			p.id = fmt.Sprintf("bench-%s-%06d", c.host.Name(), c.made)
		}
	}
	var mu sync.Mutex
	next := 0
	var threads sync.WaitGroup
	for range min(atOnce, len(pods)) {
		threads.Go(func() {
			err := c.host.Do(func() error {
				for ctx.Err() == nil {
					mu.Lock()
					i := next
					next++
					mu.Unlock()
					if i >= len(pods) {
						return nil
					}
					var err error
					if took[i], err = c.call(ctx, v, pods[i]); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				cancel(err)
			}
		})
	}
	threads.Wait()
	return context.Cause(ctx)
}

// comeAndGo adds a pod and deletes it.
func (c *cniContender) comeAndGo(ctx context.Context, p *benchPod) (add, del time.Duration, err error) {
	var took [1]time.Duration
	if err := c.calls(ctx, verbAdd, []*benchPod{p}, took[:], 1); err != nil {
		return 0, 0, err
	}
	add = took[0]
	err = c.calls(ctx, verbDel, []*benchPod{p}, took[:], 1)
	return add, took[0], err
}

// call runs the plugin, on the calling thread, which is on the host, and returns how long that took from the start of the process to its
// result.
func (c *cniContender) call(ctx context.Context, v verb, p *benchPod) (time.Duration, error) {
	conf := maps.Clone(c.conf)
	if v == verbDel { // as runtimes do
		conf["prevResult"] = p.result
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, verbTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.dir, fmt.Sprint(c.conf["type"])))
	cmd.Dir = c.host.Dir()
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=" + string(v), "CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.ns.Path(),
		"CNI_IFNAME=" + podIf, "CNI_PATH=" + c.dir,
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	start := time.Now()
	err = cmd.Run()
	took := time.Since(start)
	if err != nil {
		return took, fmt.Errorf("%s: %s of %s: %w: %s%s", c.name, v, p.id, err, &stdout, &stderr)
	}
	if v == verbAdd {
		err = p.take(stdout.Bytes())
	}
	return took, err
}

// take notes the result of ADD, which must have an address of both families.
func (p *benchPod) take(result []byte) error {
	var r struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(result, &r); err != nil {
		return fmt.Errorf("the result of ADD of %s: %w: %s", p.id, err, result)
	}
	p.result, p.addrs = bytes.Clone(result), nil
	families := map[bool]bool{}
	for _, ip := range r.IPs {
		p.addrs = append(p.addrs, ip.Address.Addr())
		families[ip.Address.Addr().Is6()] = true
	}
	if len(families) != 2 {
		return fmt.Errorf("the result of ADD of %s has not an address of both families: %s", p.id, result)
	}
	return nil
}

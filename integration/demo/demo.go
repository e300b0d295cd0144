// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/integration/show"
)

const (
	hosts    = 3
	perHost  = 2
	pings    = 5 // for each pair and address; the median counts
	within   = 15 * time.Second
	moveTime = 250 * time.Millisecond // how long one transfer should take
	minMove  = 8 << 20
	maxMove  = 256 << 20
	proof    = 16 << 20 // bytes of payload sent while the underlay is captured
)

// demo is one run.
type demo struct {
	*show.Show
	ctx       context.Context
	lab       *lab.Lab
	lan       *lab.Segment
	token     string
	workloads []*lab.Workload
	rows      []row
	gossip    []*lab.Capture // of everything on the underlay until the measurements begin
}

// peer is what `weft peers --json` says about another node.
type peer struct {
	Name     string `json:"name"`
	Path     string `json:"path"`
	Suite    string `json:"suite"`
	Endpoint string `json:"endpoint"`
}

func (d *demo) run(binary string) {
	d.Title("Three hosts, each a network namespace of this machine, on one switch")
	d.build(binary)
	d.Title("One encrypted network")
	d.mesh()
	d.Title("Measurements")
	d.pingAll()
	d.moveAll()
	d.Title("Proof: what the network below sees")
	d.proveGossip()
	d.provePayload()
	d.Title("%s", table(d.rows))
	d.Step("remove everything", func() (string, error) {
		d.lab.Close()
		return fmt.Sprintf("%d namespaces, their daemons and files are gone", 1+hosts+hosts*perHost), nil
	})
	d.Title("All of it took %.1f s.", d.Elapsed().Seconds())
}

func (d *demo) build(binary string) {
	d.Step("build the hosts", func() (string, error) {
		d.lab = lab.New(d.Show, lab.Binary(binary))
		d.lan = d.lab.Switch("switch")
		var names []string
		for i := range hosts {
			h := d.lab.Host(fmt.Sprintf("host%d", i+1), d.lan)
			names = append(names, fmt.Sprintf("%s %v", h.Name(), h.Link().V4()))
			d.gossip = append(d.gossip, d.lab.Capture(h.Namespace, h.Link().Device(), 0))
		}
		return strings.Join(names, ", "), nil
	})
}

func (d *demo) mesh() {
	hosts := d.lab.Hosts()
	founder := hosts[0]
	d.Step("host1: weft launch", func() (string, error) {
		founder.Launch("--range", lab.DefaultRange)
		if err := founder.WaitReady(within); err != nil {
			return "", err
		}
		d.token = founder.Token()
		return "founded a mesh, range " + lab.DefaultRange, nil
	})
	for _, h := range hosts[1:] {
		d.Step(fmt.Sprintf("%s: weft launch --peer %v --token-file token", h.Name(), founder.Link().V4()), func() (string, error) {
			h.Join(d.token, []*lab.Host{founder}, "--range", lab.DefaultRange)
			return "joined", h.WaitReady(within)
		})
	}
	for _, h := range hosts {
		d.Step(h.Name()+": weft attach, twice", func() (string, error) {
			var got []string
			for i := range perHost {
				w := h.Workload(string(rune('a' + i)))
				w.Attach()
				d.workloads = append(d.workloads, w)
				got = append(got, fmt.Sprint(w.Addrs()))
			}
			return strings.Join(got, " "), nil
		})
	}
	d.Step("every workload reaches every other one", func() (string, error) {
		_, err := lab.AllReach(within, d.workloads...)
		for _, c := range d.gossip { // they would slow the measurements down
			c.Stop()
		}
		return "all pairs, by v4 and by v6", err
	})
}

// pingAll measures the latency of every pair and notes how the pair is connected.
func (d *demo) pingAll() {
	d.Step(fmt.Sprintf("ping all pairs over v4 and v6, %d times each", pings), func() (string, error) {
		for i, from := range d.workloads {
			for _, to := range d.workloads[i+1:] {
				r := row{from: from, to: to, path: "local", suite: "-"}
				if from.Host() != to.Host() {
					p, err := findPeer(from.Host(), to.Host().Name())
					if err != nil {
						return "", err
					}
					r.path, r.suite = p.Path, p.Suite
				}
				var err error
				if r.latency4, err = from.Latency(to.V4, pings); err != nil {
					return "", err
				}
				if r.latency6, err = from.Latency(to.V6, pings); err != nil {
					return "", err
				}
				d.rows = append(d.rows, r)
			}
		}
		return fmt.Sprintf("%d pairs", len(d.rows)), nil
	})
}

func findPeer(h *lab.Host, name string) (peer, error) {
	var peers []peer
	if err := h.Query(&peers, "peers"); err != nil {
		return peer{}, err
	}
	for _, p := range peers {
		if p.Name == name {
			return p, nil
		}
	}
	return peer{}, fmt.Errorf("weft peers on %s does not list %s", h.Name(), name)
}

// moveAll measures the throughput of every pair.
func (d *demo) moveAll() {
	d.Step("move a file over TCP between all pairs, over v4 and v6", func() (string, error) {
		var total int64
		size := int64(minMove)
		for i := range d.rows {
			r := &d.rows[i]
			for _, m := range []struct {
				to   netip.Addr
				rate *float64
			}{{r.to.V4, &r.rate4}, {r.to.V6, &r.rate6}} {
				t, err := d.lab.Transfer(d.ctx, r.from.Namespace, r.to.Namespace, m.to, size)
				if err != nil {
					return "", err
				}
				*m.rate = t.BitsPerSecond()
				total += t.Bytes
				// The next one takes about as long as it should.
				size = min(max(int64(float64(t.Bytes)*moveTime.Seconds()/t.Duration.Seconds()), minMove), maxMove)
			}
		}
		return fmt.Sprintf("%.1f GiB in all, every byte compared", float64(total)/(1<<30)), nil
	})
}

// proveGossip looks for what only members should know in everything that went over the underlay before the measurements.
func (d *demo) proveGossip() {
	d.Step("search what went over the underlay while the mesh came up", func() (string, error) {
		frames := 0
		for _, c := range d.gossip {
			frames += len(c.Frames())
			for _, secret := range d.secrets() {
				if n := c.Count([]byte(secret)); n != 0 {
					return "", fmt.Errorf("%d frames hold %q in clear", n, secret)
				}
			}
		}
		if frames == 0 {
			return "", errors.New("nothing was captured")
		}
		return fmt.Sprintf("%d frames: no name of a host, no token", frames), nil
	})
}

// secrets returns what must not be seen on the underlay: the token and the names of the hosts, which gossip carries.
func (d *demo) secrets() []string {
	s := []string{d.token}
	for _, h := range d.lab.Hosts() {
		s = append(s, h.Name())
	}
	return s
}

// provePayload sends known bytes and looks for them, below the encryption and, to show that it would find them, above.
func (d *demo) provePayload() {
	from, to := d.workloads[0], d.workloads[len(d.workloads)-1]
	what := fmt.Sprintf("send %d MiB of known bytes from %s to %s", proof>>20, from.Name(), to.Name())
	d.Step(what, func() (string, error) {
		marker := []byte(d.lab.Marker())
		host := from.Host()
		below := d.lab.Capture(host.Namespace, host.Link().Device(), 2*proof)
		above := d.lab.Capture(host.Namespace, "weft0", 2*proof)
		if _, err := d.lab.Transfer(d.ctx, from.Namespace, to.Namespace, to.V4, proof); err != nil {
			return "", err
		}
		below.Stop()
		above.Stop()
		var bytes int
		for _, f := range below.Frames() {
			bytes += len(f.Data)
		}
		inClear := below.Count(marker)
		switch {
		case inClear != 0:
			return "", fmt.Errorf("%d frames on the underlay hold the payload in clear", inClear)
		case bytes < proof/2:
			return "", fmt.Errorf("only %d bytes of the underlay were captured", bytes)
		case above.Count(marker) == 0:
			return "", errors.New("the known bytes were not found on weft0 either: the search proves nothing")
		}
		return fmt.Sprintf("found in %d frames on weft0 (before encryption), in 0 of %d frames (%.1f MiB) on the underlay",
			above.Count(marker), len(below.Frames()), float64(bytes)/(1<<20)), nil
	})
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

const (
	enactWithin = 2 * time.Minute
	quietFor    = 300 * time.Millisecond // without a transaction: all of it is in the kernel
	pollEvery   = 2 * time.Millisecond   // for the number of the last transaction
	labelQuiet  = 100 * time.Millisecond
	labelWithin = time.Second // else it changes nothing for a host
)

// enactTimes is what it took to put all policies in force, once for each time: seconds from the start of the command.
type enactTimes struct {
	returned  []float64        // the command
	inForce   [hosts][]float64 // the last transaction of nftables
	cpu       [hosts][]float64 // of the daemons
	withdrawn []float64        // on both hosts, from the start of the command that deletes all
}

// apply applies all policies and waits until they are in force on both hosts.
func (b *policyBench) apply() (string, error) {
	var before [hosts]float64
	for i, h := range b.with.hosts {
		var err error
		if before[i], err = cpuSeconds([]int{h.Daemon().Pid()}); err != nil {
			return "", err
		}
	}
	returned, inForce, err := b.enact(b.policies, "apply", "-f", b.manifests)
	if err != nil {
		return "", err
	}
	t := &b.times
	t.returned = append(t.returned, returned.Seconds())
	for i, h := range b.with.hosts {
		after, err := cpuSeconds([]int{h.Daemon().Pid()})
		if err != nil {
			return "", err
		}
		t.inForce[i] = append(t.inForce[i], inForce[i].Seconds())
		t.cpu[i] = append(t.cpu[i], after-before[i])
	}
	return fmt.Sprintf("the command %.2f s; in force after %.2f s and %.2f s", returned.Seconds(), inForce[0].Seconds(), inForce[1].Seconds()), nil
}

// withdraw deletes all policies.
func (b *policyBench) withdraw() (string, error) {
	_, gone, err := b.enact(0, "delete", "-f", b.manifests)
	b.times.withdrawn = append(b.times.withdrawn, max(gone[0], gone[1]).Seconds())
	return fmt.Sprintf("gone after %.2f s and %.2f s", gone[0].Seconds(), gone[1].Seconds()), err
}

// enact runs weft policy on the first host, and waits until so many policies are in force on both. It returns how long after its start the
// command had returned, and each host's kernel had all of it.
func (b *policyBench) enact(policies int, args ...string) (returned time.Duration, done [hosts]time.Duration, err error) {
	ctx, cancel := context.WithTimeout(b.ctx, enactWithin)
	defer cancel()
	p, err := b.with.poll(ctx)
	if err != nil {
		return 0, done, err
	}
	defer p.stop()
	r, err := b.with.hosts[0].TryWeft(ctx, append([]string{"policy"}, args...)...)
	returned = time.Since(p.start)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("weft policy %s: exit code %d: %s", args[0], r.Code, strings.TrimSpace(r.Stderr))
	}
	for err == nil {
		if done, err = p.quiet(ctx, quietFor, enactWithin); err == nil && b.inForce(policies) == nil {
			return returned, done, nil
		}
	}
	return returned, done, errors.Join(err, b.inForce(policies))
}

// poller looks for transactions of nftables on both hosts of a town, until it is stopped. Unlike a watch it costs them nothing.
type poller struct {
	start  time.Time
	cancel context.CancelFunc
	polls  sync.WaitGroup

	mu     sync.Mutex
	last   [hosts]time.Time
	broken error
}

// poll begins to poll.
func (t *town) poll(ctx context.Context) (*poller, error) {
	p := &poller{start: time.Now()}
	var seen [hosts]uint32
	for i, view := range t.views {
		var err error
		if seen[i], err = view.Generation(); err != nil {
			return nil, err
		}
	}
	ctx, p.cancel = context.WithCancel(ctx)
	for i, view := range t.views {
		p.polls.Go(func() {
			for sleep(ctx, pollEvery) == nil {
				g, err := view.Generation()
				p.mu.Lock()
				p.broken = errors.Join(p.broken, err)
				if g != seen[i] {
					seen[i], p.last[i] = g, time.Now()
				}
				p.mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	return p, nil
}

func (p *poller) stop() {
	p.cancel()
	p.polls.Wait()
}

// quiet waits until each host has had a transaction, at most for patience, and then none for some time. It returns how long after the start the last ones were;
// zero of a host that had none.
func (p *poller) quiet(ctx context.Context, during, patience time.Duration) (done [hosts]time.Duration, err error) {
	for {
		if err := sleep(ctx, during/10); err != nil {
			return done, fmt.Errorf("no end of transactions on both hosts within %v: %w", time.Since(p.start).Round(time.Millisecond), err)
		}
		p.mu.Lock()
		at, err := p.last, p.broken
		p.mu.Unlock()
		if err != nil {
			return done, err
		}
		late := time.Since(p.start) > patience
		if slices.ContainsFunc(at[:], func(t time.Time) bool { return t.IsZero() && !late || time.Since(t) < during }) {
			continue
		}
		for i, t := range at {
			if !t.IsZero() {
				done[i] = t.Sub(p.start)
			}
		}
		return done, nil
	}
}

// inForce returns an error unless both hosts say that so many policies are in force as they should be.
func (b *policyBench) inForce(policies int) error {
	for _, h := range b.with.hosts {
		var s struct {
			Policies *struct {
				Policies int
				WaitsFor string `json:"waits_for"`
				Failure  string
			}
			Warnings []string
		}
		if err := h.Query(&s, "status"); err != nil {
			return err
		}
		n := 0
		if s.Policies != nil {
			n = s.Policies.Policies
			if s.Policies.WaitsFor != "" || s.Policies.Failure != "" {
				return fmt.Errorf("%s: policies wait for %q, and fail by %q", h.Name(), s.Policies.WaitsFor, s.Policies.Failure)
			}
		}
		if n != policies {
			return fmt.Errorf("%s has %d policies in force, not %d", h.Name(), n, policies)
		}
		for _, w := range s.Warnings {
			if strings.Contains(w, "polic") {
				return fmt.Errorf("%s warns: %s", h.Name(), w)
			}
		}
	}
	return nil
}

// count counts what is in the kernel.
func (b *policyBench) count() error {
	for i, h := range b.with.hosts {
		all, err := h.SetElements()
		if err != nil {
			return err
		}
		b.elements[i] = len(all)
	}
	return nil
}

// relabelFrom is the first of a host's workloads whose labels are changed: those before it are measured.
const relabelFrom = serverAt + 1

// labelChange is what the change of one label of a workload of the first host took, and touched; only one of both is known.
type labelChange struct {
	fresh    bool          // to labels that no other workload has
	watched  bool          // touched is known
	returned time.Duration // the command
	inForce  [hosts]time.Duration
	touched  [hosts]touched
}

// touched is how many elements of nftables' sets a change added or deleted.
type touched struct {
	own      int // whose key is the workload's address
	foreign  int // whose key is an address of another one
	verdicts int // of what is allowed to whom, by kinds of peers and blocks
	phases   int // that say which copy of the rules judges
	others   int // what is no element, as chains
}

// relabelAll changes one label of workloads, of each three times: to what another workload has, to what none has, and back.
func (b *policyBench) relabelAll(n int, change func(at spot, value string) (labelChange, error)) error {
	for n := range n {
		at := spot(relabelFrom + n%(b.workloads-relabelFrom))
		for i, value := range []string{at.other(), fmt.Sprint("fresh", n), at.app()} {
			c, err := change(at, value)
			if err != nil {
				return fmt.Errorf("label app=%s of %s: %w", value, at.name(), err)
			}
			c.fresh = i == 1
			b.changes = append(b.changes, c)
		}
	}
	return nil
}

// label changes a workload's application.
func (b *policyBench) label(at spot, value string) error {
	r := b.with.hosts[0].Weft("label", at.space()+"/"+at.name(), "app="+value)
	if r.Code != 0 {
		return fmt.Errorf("exit code %d: %s", r.Code, strings.TrimSpace(r.Stderr))
	}
	return nil
}

// relabelled changes a workload's label and then has f look at what comes of it.
func (b *policyBench) relabelled(at spot, value string, f func(ctx context.Context, p *poller) error) error {
	ctx, cancel := context.WithTimeout(b.ctx, within)
	defer cancel()
	p, err := b.with.poll(ctx)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := b.label(at, value); err != nil {
		return err
	}
	return f(ctx, p)
}

// timed says how long a change takes.
func (b *policyBench) timed(at spot, value string) (c labelChange, err error) {
	err = b.relabelled(at, value, func(ctx context.Context, p *poller) (err error) {
		c.returned = time.Since(p.start)
		c.inForce, err = p.quiet(ctx, labelQuiet, labelWithin)
		return err
	})
	return c, err
}

// watched says what changes touch on both hosts, by watches, which cost time.
func (b *policyBench) watched(watches [hosts]*lab.RuleWatch) func(at spot, value string) (labelChange, error) {
	return func(at spot, value string) (c labelChange, err error) {
		err = b.relabelled(at, value, func(ctx context.Context, p *poller) error {
			_, err := p.quiet(ctx, 2*labelQuiet, labelWithin) // and all is heard
			return err
		})
		if err != nil {
			return c, err
		}
		c.watched = true
		for i, w := range watches {
			changes, err := w.Take()
			if err != nil {
				return c, err
			}
			for _, x := range changes {
				c.touched[i].add(x, b.with.workloads[0][at].Addrs())
			}
		}
		return c, nil
	}
}

// relabelBoth changes labels, first as quickly as that goes, then watched.
func (b *policyBench) relabelBoth() error {
	if err := b.relabelAll(b.relabel, b.timed); err != nil {
		return err
	}
	var watches [hosts]*lab.RuleWatch
	for i, h := range b.with.hosts {
		var err error
		if watches[i], err = h.WatchRules(); err != nil {
			return err
		}
		defer watches[i].Stop()
	}
	return b.relabelAll((b.relabel+1)/2, b.watched(watches))
}

// addressSets are what the names of sets whose keys begin with a workload's address begin with.
func addressSets() []string { return []string{"self", "egress", "ingress", "own", "ids"} }

// add adds what a transaction has touched.
func (t *touched) add(c lab.RuleChange, own []netip.Addr) {
	t.others += c.Others
	for _, e := range c.Elements {
		switch {
		case strings.HasPrefix(e.Set, "current"):
			t.phases++
		case !slices.ContainsFunc(addressSets(), func(s string) bool { return strings.HasPrefix(e.Set, s) }):
			t.verdicts++
		case slices.ContainsFunc(own, func(a netip.Addr) bool { return strings.HasPrefix(string(e.Key), string(a.AsSlice())) }):
			t.own++
		default:
			t.foreign++
		}
	}
}

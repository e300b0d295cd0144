// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/integration/show"
)

// policyCommand makes the program measure network policies.
const policyCommand = "policy"

// policyOptions is what the flags say.
type policyOptions struct {
	weftBinary       string
	policies         int
	workloads        int // of each host
	rounds           int
	applies, relabel int // how often
	length           time.Duration
	file             string // for the document, none if empty
}

// policyBench is one run.
type policyBench struct {
	*show.Show
	policyOptions
	ctx        context.Context
	with, open *town // with policies, and without
	variants   []*variant
	looks      []float64
	times      enactTimes
	changes    []labelChange
	elements   [hosts]int // of all sets, with the policies in force
	manifests  string     // the policies' file
}

// town is a mesh of two hosts with workloads.
type town struct {
	name      string
	hosts     [hosts]*lab.Host
	workloads [hosts][]*lab.Workload
	views     [hosts]*lab.Rules
}

// policyMain measures network policies as the flags say, and returns the exit code.
func policyMain(args []string, stdout, stderr io.Writer) int {
	var o policyOptions
	flags := flag.NewFlagSet("bench "+policyCommand, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.weftBinary, "weft", "bin/weft", "the weft binary")
	flags.IntVar(&o.policies, "policies", 10_000, "how many policies there are")
	flags.IntVar(&o.workloads, "workloads", 100, "how many workloads each host has")
	flags.IntVar(&o.rounds, "rounds", 7, "how often each variant has its turn")
	flags.IntVar(&o.applies, "applies", 3, "how often all policies are applied")
	flags.IntVar(&o.relabel, "labels", 10, "of how many workloads a label is changed, three times")
	seconds := flags.Float64("seconds", 2, "how long one measurement takes")
	flags.StringVar(&o.file, "o", "", "write the results to this `file`, as a document in Markdown")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	o.length = time.Duration(*seconds * float64(time.Second))
	if o.policies < leastPolicies || o.workloads <= relabelFrom || o.rounds <= 0 || o.applies <= 0 || o.relabel <= 0 || o.length <= 0 {
		fmt.Fprintf(stderr, "bench: -policies must be %d or more, -workloads %d or more, -rounds, -applies, -labels and -seconds positive\n", leastPolicies, relabelFrom+1)
		return 2
	}
	var err error
	if o.weftBinary, err = filepath.Abs(o.weftBinary); err == nil {
		_, err = os.Stat(o.weftBinary)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v; build it with: make benchpolicy\n", err)
		return 1
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "bench: network namespaces need root; run it with: sudo make benchpolicy")
		return 1
	}
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	b := policyBench{Show: show.New("bench", stdout, stderr, interrupted), policyOptions: o, ctx: interrupted}
	failed := b.Run(b.run)
	switch {
	case interrupted.Err() != nil:
		fmt.Fprintln(stderr, "bench: interrupted; all that it made is removed")
		return exitInterrupted
	case failed:
		return 1
	}
	return 0
}

func (b *policyBench) run() {
	b.Step("build two meshes of two hosts", func() (string, error) { return "", b.build() })
	b.Step(fmt.Sprintf("attach %d workloads on each host", b.workloads), func() (string, error) {
		return "", errors.Join(b.with.attach(b.workloads), b.open.attach(b.workloads))
	})
	b.manifests = b.with.hosts[0].File("policies.yaml", policyText(b.policies), 0o600)
	for i := range b.applies {
		b.Step(fmt.Sprintf("%d of %d: apply %d policies", i+1, b.applies, b.policies), b.apply)
		if i+1 < b.applies {
			b.Step("delete them", b.withdraw)
		}
	}
	b.Step("count the elements of sets", func() (string, error) { return "", b.count() })
	b.Step(fmt.Sprintf("change the labels of %d workloads", b.relabel), func() (string, error) { return "", b.relabelBoth() })
	b.variants = b.with.variants(b.open)
	b.Step("is what policies allow allowed, and the rest denied", func() (string, error) { return "", b.judged() })
	for round := range b.rounds {
		b.Step(fmt.Sprintf("round %d of %d: is the machine idle", round+1, b.rounds), func() (string, error) {
			used, err := look(b.ctx, lookTime)
			b.looks = append(b.looks, used)
			return fmt.Sprintf("others use %.0f%% of the processors", used*100), err
		})
		for i := range b.variants {
			v := b.variants[(round+i)%len(b.variants)] // nobody is always the first
			b.Step(fmt.Sprintf("round %d of %d: %s", round+1, b.rounds, v.name), func() (string, error) {
				err := v.turn(b.ctx, b.length)
				return v.summary(), err
			})
		}
	}
	b.Step("have policies decided of what was measured", func() (string, error) { return "", b.decided() })
	r := b.report()
	if b.file != "" {
		if err := os.WriteFile(b.file, []byte(r.markdown()), 0o644); err != nil {
			b.Fatalf("%v", err)
		}
	}
	b.Title("%s", r.terminal())
}

// build makes the two meshes, which share nothing but the machine.
func (b *policyBench) build() error {
	l := lab.New(b.Show, lab.Binary(b.weftBinary))
	for _, t := range []struct {
		at   **town
		name string
	}{{&b.with, "with"}, {&b.open, "open"}} {
		lan := l.Switch(t.name)
		made := &town{name: t.name}
		*t.at = made
		for i := range made.hosts {
			made.hosts[i] = l.Host(fmt.Sprint(t.name, i+1), lan)
		}
		one, two := made.hosts[0], made.hosts[1]
		one.Launch("--range", lab.DefaultRange)
		if err := one.WaitReady(within); err != nil {
			return err
		}
		two.Join(one.Token(), []*lab.Host{one}, "--range", lab.DefaultRange)
		if err := two.WaitReady(within); err != nil {
			return err
		}
		for i, h := range made.hosts {
			var err error
			if made.views[i], err = h.Rules(); err != nil {
				return err
			}
			b.Cleanup(func() { _ = made.views[i].Close() })
		}
	}
	return nil
}

// attach attaches n workloads on each host, several at a time.
func (t *town) attach(n int) error {
	var running sync.WaitGroup
	var failed [hosts]error
	for i, h := range t.hosts {
		running.Go(func() {
			for at := range spot(n) {
				w, err := h.TryWorkload(at.name())
				if err == nil {
					err = w.TryAttach(at.flags()...)
				}
				if err != nil {
					failed[i] = err
					return
				}
				t.workloads[i] = append(t.workloads[i], w)
			}
		})
	}
	running.Wait()
	return errors.Join(failed[:]...)
}

// judged makes sure that policies judge what is measured: what they allow connects, and what they do not does not.
func (b *policyBench) judged() error {
	for _, v := range b.variants {
		for _, p := range v.pairs {
			if !b.connects(p, firstPort, within) {
				return fmt.Errorf("%s, %s: no connection comes to be", v.name, p.name)
			}
			if got := b.connects(p, closedPort, deniedWithin); got == v.policies {
				return fmt.Errorf("%s, %s: a connection to a port that no policy allows comes to be: %v", v.name, p.name, got)
			}
		}
	}
	return nil
}

// connects tells whether a connection is answered, be it with a reset: nobody listens.
func (b *policyBench) connects(p pair, port uint16, within time.Duration) bool {
	err := p.from.Do(func() error {
		d := net.Dialer{Timeout: within}
		c, err := d.DialContext(b.ctx, "tcp", netip.AddrPortFrom(p.to.V4, port).String())
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return err == nil || errors.Is(err, syscall.ECONNREFUSED)
}

// deniedWithin is how long a connection that policies deny is waited for.
const deniedWithin = 500 * time.Millisecond

// decided makes sure that the measured connections were counted by the policies that allow them.
func (b *policyBench) decided() error {
	for i, h := range b.with.hosts {
		var list struct {
			Policies []struct {
				Name, Namespace string
				Allowed         float64
				Problems        []string
			}
		}
		if err := h.Query(&list, "policy", "list"); err != nil {
			return err
		}
		var least float64
		for _, v := range b.variants {
			if v.policies {
				least += v.made[i]
			}
		}
		var got float64
		for _, p := range list.Policies {
			if p.Name == "measured" {
				got += p.Allowed
			}
			if len(p.Problems) > 0 {
				return fmt.Errorf("%s: policy %s/%s has a problem: %s", h.Name(), p.Namespace, p.Name, strings.Join(p.Problems, "; "))
			}
		}
		if got < least || least == 0 {
			return fmt.Errorf("%s has counted %.0f connections that the measured policies allow, of %.0f that were made", h.Name(), got, least)
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/integration/show"
)

// cniCommand makes the program compare CNI plugins.
const cniCommand = "cni"

const (
	few    = 10  // how many pods the first and the last are
	spares = 200 // how many pods come and go on a full node and on an empty one, at most
)

// cniOptions is what the flags say.
type cniOptions struct {
	weftBinary, pluginBinary string
	reference                string // directory
	pods, atOnce, rounds     int
	file                     string // for the document, none if empty
}

// cniBench is one run.
type cniBench struct {
	*show.Show
	cniOptions
	ctx         context.Context
	node        *lab.Host       // of the contender weft
	contenders  []*cniContender // weft, and the reference plugins
	empty       *cniContender   // weft, on a node without other pods
	bare        [2]*kernelNode  // without a plugin: one that gets as many pods, and one that gets none but the spares
	looks       []float64
	full, alone cniTimes // of the spares, on the full node and on the empty one
}

// cniMain compares CNI plugins as the flags say, and returns the exit code.
func cniMain(args []string, stdout, stderr io.Writer) int {
	var o cniOptions
	flags := flag.NewFlagSet("bench "+cniCommand, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.weftBinary, "weft", "bin/weft", "the weft binary")
	flags.StringVar(&o.pluginBinary, "weft-cni", "bin/weft-cni", "Weft's plugin")
	flags.StringVar(&o.reference, "reference", "bin/cni", "the `directory` of the reference plugins")
	flags.IntVar(&o.pods, "pods", 1000, "how many pods each plugin gets, at least 10")
	flags.IntVar(&o.atOnce, "at-once", 32, "how many come and go at a time, in the measurement with several")
	flags.IntVar(&o.rounds, "rounds", 1, "how often all of them come and go")
	flags.StringVar(&o.file, "o", "", "write the results to this `file`, as a document in Markdown")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if o.pods < few || o.atOnce <= 0 || o.rounds <= 0 {
		fmt.Fprintf(stderr, "bench: -pods must be %d or more, -at-once and -rounds positive\n", few)
		return 2
	}
	for _, path := range []*string{&o.weftBinary, &o.pluginBinary, &o.reference} {
		var err error
		if *path, err = filepath.Abs(*path); err == nil {
			_, err = os.Stat(*path)
		}
		if err != nil {
			fmt.Fprintf(stderr, "bench: %v; build it with: make benchcni\n", err)
			return 1
		}
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "bench: network namespaces need root; run it with: sudo make benchcni")
		return 1
	}
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	b := cniBench{Show: show.New("bench", stdout, stderr, interrupted), cniOptions: o, ctx: interrupted}
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

func (b *cniBench) run() {
	b.Step("build the nodes", func() (string, error) { return "", b.build() })
	b.Step(fmt.Sprintf("make %d namespaces for pods", len(b.contenders)*b.pods+2*b.spares()), func() (string, error) {
		for _, c := range b.contenders {
			if err := c.makePods(b.pods); err != nil {
				return "", err
			}
		}
		if err := b.contenders[0].makeSpares(b.spares()); err != nil {
			return "", err
		}
		return "", b.empty.makeSpares(b.spares())
	})
	for round := range b.rounds {
		step := func(what string, f func(first int) error) {
			b.Step(fmt.Sprintf("round %d of %d: %s", round+1, b.rounds, what), func() (string, error) { return "", f(round) })
		}
		step("is the machine idle", func(int) error {
			used, err := look(b.ctx, lookTime)
			b.looks = append(b.looks, used)
			return err
		})
		step("ADD, one after the other", b.each(1, 1, verbAdd))
		step("do they reach each other", func(int) error { return b.reach() })
		step("ADD and DEL on a full node and on an empty one", func(int) error { return b.fullAndEmpty() })
		step("DEL, one after the other", b.each(1, 1, verbDel))
		several := fmt.Sprintf(", %d at a time", b.atOnce)
		step("ADD"+several, b.each(b.atOnce, chunk*b.atOnce, verbAdd))
		step("DEL"+several, b.each(b.atOnce, chunk*b.atOnce, verbDel))
		step("is anything left", func(int) error { return b.clean() })
		step("the kernel alone, on a full node and on an empty one", func(int) error { return b.kernelAlone() })
	}
	r := b.report()
	if b.file != "" {
		if err := os.WriteFile(b.file, []byte(r.markdown()), 0o644); err != nil {
			b.Fatalf("%v", err)
		}
	}
	b.Title("%s", r.terminal())
}

// spares is how many pods come and go on a full node and on an empty one.
func (o cniOptions) spares() int { return min(spares, o.pods) }

// chunk is how many pods, by those that come at a time, a contender gets in one turn.
const chunk = 4

// build makes the nodes: one for each contender, one that gets no pods but the spares, and two without a plugin.
func (b *cniBench) build() error {
	l := lab.New(b.Show, lab.Binary(b.weftBinary))
	lan := l.Switch("switch")
	b.node = l.Host("weft", lan)
	empty, other := l.Host("empty", lan), l.Host("other", lan)
	for _, h := range []*lab.Host{b.node, empty} {
		h.Launch("--range", lab.DefaultRange)
		if err := h.WaitReady(within); err != nil {
			return err
		}
	}
	bin := filepath.Join(l.Root(), "cni-bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		return err
	}
	if err := os.Symlink(b.pluginBinary, filepath.Join(bin, weftName)); err != nil { // the plugin's type is its name
		return err
	}
	b.contenders = []*cniContender{
		weftPlugin(b.node, bin),
		referencePlugins(other, b.reference),
	}
	b.empty = weftPlugin(empty, bin)
	b.bare = [2]*kernelNode{{host: l.Host("bare", lan)}, {host: l.Host("bare-empty", lan)}}
	for _, c := range append(slices.Clone(b.contenders), b.empty) { // none is the first to be read from the disk
		if err := c.makeSpares(1); err != nil {
			return err
		}
		for range 3 {
			if _, _, err := c.comeAndGo(b.ctx, c.spares[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

// each has all contenders add or delete all of their pods, several at a time, in turns of so many pods.
func (b *cniBench) each(atOnce, turn int, v verb) func(first int) error {
	return func(first int) error {
		for from := 0; from < b.pods; from += turn {
			to := min(from+turn, b.pods)
			for i := range b.contenders {
				c := b.contenders[(first+from/turn+i)%len(b.contenders)] // nobody is always the first
				if err := c.verbs(b.ctx, v, c.pods[from:to], atOnce); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// reach has the first and the last pod of each contender reach each other: what was added quickly has to work.
func (b *cniBench) reach() error {
	for _, c := range b.contenders {
		first, last := c.pods[0], c.pods[len(c.pods)-1]
		for _, a := range last.addrs {
			if _, err := first.ns.Reach(a, within); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return nil
}

// fullAndEmpty adds and deletes pods on the node that has all of the others, and on one that has none, in turns.
func (b *cniBench) fullAndEmpty() error {
	for i := range b.spares() {
		for j := range 2 {
			c, times := b.contenders[0], &b.full
			if (i+j)%2 == 1 {
				c, times = b.empty, &b.alone
			}
			add, del, err := c.comeAndGo(b.ctx, c.spares[i])
			if err != nil {
				return err
			}
			times.add = append(times.add, add)
			times.del = append(times.del, del)
		}
	}
	return nil
}

// clean makes sure that Weft has kept nothing.
func (b *cniBench) clean() error {
	var left []struct{ ID string }
	if err := b.node.Query(&left, "ps"); err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("%d workloads are left, as %s", len(left), left[0].ID)
	}
	links, err := b.node.Netlink().LinkList()
	if err != nil {
		return err
	}
	if len(links) != 3 {
		return errors.New("interfaces are left besides lo, eth0 and weft0")
	}
	return nil
}

func (b *cniBench) report() cniReport {
	r := cniReport{
		date: time.Now(), machine: machine(), notes: busy(b.looks, "Times are too long"), options: b.cniOptions, took: b.Elapsed(),
		contenders: b.contenders, full: b.full, alone: b.alone, kernel: [2]cniTimes{b.bare[0].times, b.bare[1].times},
	}
	if v := b.node.Weft("version"); v.Code == 0 {
		r.versions = append(r.versions, firstLine(v.Stdout))
	}
	return r
}

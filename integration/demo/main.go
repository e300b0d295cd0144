// SPDX-License-Identifier: Apache-2.0

// Command demo shows Weft at work on one machine: three hosts in network namespaces, two workloads on each, one encrypted
// network between them. It measures, proves that the underlay sees no payload, and removes all that it made, also when it is
// interrupted. It needs root and the built weft binary; `make demo` runs it.
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
	"runtime"
	"syscall"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// timeout is how long the demo may take in all.
const timeout = 2 * time.Minute

// exitInterrupted is what shells make of SIGINT.
const exitInterrupted = 130

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run runs the demo and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	binary := flags.String("weft", "bin/weft", "the weft binary")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	path, err := filepath.Abs(*binary)
	if err == nil {
		_, err = os.Stat(path)
	}
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "demo: no weft binary: %v; build it with: make build\n", err)
		return 1
	case os.Geteuid() != 0:
		fmt.Fprintln(stderr, "demo: network namespaces need root; run it with: sudo make demo")
		return 1
	}
	// The lab cleans up when it is interrupted; this context tells the demo to be quiet about what then fails.
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeout(interrupted, timeout)
	defer cancel()

	p := &progress{out: stdout, err: stderr, interrupted: interrupted, began: time.Now()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.cleanUp()
		d := demo{progress: p, ctx: ctx}
		d.run(path)
	}()
	<-done
	switch {
	case interrupted.Err() != nil:
		fmt.Fprintln(stderr, "demo: interrupted; all that it made is removed")
		return exitInterrupted
	case p.failed:
		return 1
	}
	return 0
}

// errStopped says that the demo ended before it was through.
var errStopped = errors.New("stopped")

// progress tells what happens, line by line. It is the lab's [lab.TB]. One goroutine uses it, but for Logf.
type progress struct {
	out, err    io.Writer
	interrupted context.Context
	began       time.Time
	failed      bool
	cleanups    []func()
}

var _ lab.TB = (*progress)(nil)

// Helper does nothing.
func (*progress) Helper() {}

// Name returns the program's name.
func (*progress) Name() string { return "demo" }

// Failed reports whether something went wrong that nobody asked for.
func (p *progress) Failed() bool { return p.failed && p.interrupted.Err() == nil }

// Cleanup registers a function that runs at the end, last one first.
func (p *progress) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }

// Logf writes a message that is not part of the show.
func (p *progress) Logf(format string, args ...any) { fmt.Fprintf(p.err, "\n"+format+"\n", args...) }

// Fatalf tells what went wrong and ends the demo's goroutine.
func (p *progress) Fatalf(format string, args ...any) {
	if p.interrupted.Err() == nil {
		fmt.Fprintf(p.err, "\ndemo: "+format+"\n", args...)
	}
	p.failed = true
	runtime.Goexit()
}

func (p *progress) cleanUp() {
	for len(p.cleanups) > 0 {
		last := len(p.cleanups) - 1
		f := p.cleanups[last]
		p.cleanups = p.cleanups[:last]
		f()
	}
}

// stepWidth is how wide the description of a step is.
const stepWidth = 62

// step does one step and prints what it is, then what came of it and how long it took. An error ends the demo.
func (p *progress) step(what string, do func() (result string, err error)) {
	start := time.Now()
	if p.interrupted.Err() != nil {
		p.Fatalf("%v", errStopped)
	}
	fmt.Fprintf(p.out, "  %-*s ", stepWidth, what)
	result, err := do()
	if err != nil {
		p.Fatalf("%s: %v", what, err)
	}
	fmt.Fprintf(p.out, "%6.2f s  %s\n", time.Since(start).Seconds(), result)
}

func (p *progress) title(format string, args ...any) { fmt.Fprintf(p.out, "\n"+format+"\n", args...) }

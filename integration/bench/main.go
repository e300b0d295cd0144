// SPDX-License-Identifier: Apache-2.0

// Command bench compares Weft with what else connects two hosts: the bare network, kernel VXLAN and wireguard-go. All of them
// run between the same two hosts, network namespaces of this machine, and take turns, so that what else the machine does
// disturbs all alike. It removes all that it made, also when it is interrupted. It needs root and the built binaries of weft
// and wireguard-go; `make bench` runs it.
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

// exitInterrupted is what shells make of SIGINT.
const exitInterrupted = 130

// options is what the flags say.
type options struct {
	weftBinary, wgBinary string
	rounds               int
	length               time.Duration // of one stream measurement
	json                 bool
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run runs the benchmark and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.weftBinary, "weft", "bin/weft", "the weft binary")
	flags.StringVar(&o.wgBinary, "wireguard-go", "bin/wireguard-go", "the wireguard-go binary")
	flags.IntVar(&o.rounds, "rounds", 5, "how often each contender has its turn")
	seconds := flags.Float64("seconds", 2, "how long one stream measurement takes")
	flags.BoolVar(&o.json, "json", false, "print the results as JSON, and the progress to stderr")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	o.length = time.Duration(*seconds * float64(time.Second))
	if o.rounds <= 0 || o.length <= 0 {
		fmt.Fprintln(stderr, "bench: -rounds and -seconds must be positive")
		return 2
	}
	for _, path := range []*string{&o.weftBinary, &o.wgBinary} {
		var err error
		if *path, err = filepath.Abs(*path); err == nil {
			_, err = os.Stat(*path)
		}
		if err != nil {
			fmt.Fprintf(stderr, "bench: %v; build it with: make bench\n", err)
			return 1
		}
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "bench: network namespaces need root; run it with: sudo make bench")
		return 1
	}
	// The lab cleans up when it is interrupted, and then ends the process; what it does not know of is removed here.
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	defer context.AfterFunc(interrupted, removeSockets)()

	p := &progress{out: stdout, answer: stdout, err: stderr, interrupted: interrupted, began: time.Now()}
	if o.json {
		p.out = stderr
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.cleanUp()
		b := bench{progress: p, options: o, ctx: interrupted}
		b.run()
	}()
	<-done
	switch {
	case interrupted.Err() != nil:
		fmt.Fprintln(stderr, "bench: interrupted; all that it made is removed")
		return exitInterrupted
	case p.failed:
		return 1
	}
	return 0
}

// errStopped says that the bench ended before it was through.
var errStopped = errors.New("stopped")

// progress tells what happens, line by line. It is the lab's [lab.TB]. One goroutine uses it, but for Logf.
type progress struct {
	out, err    io.Writer
	answer      io.Writer // of -json
	interrupted context.Context
	began       time.Time
	failed      bool
	cleanups    []func()
}

var _ lab.TB = (*progress)(nil)

// Helper does nothing.
func (*progress) Helper() {}

// Name returns the program's name.
func (*progress) Name() string { return "bench" }

// Failed reports whether something went wrong that nobody asked for.
func (p *progress) Failed() bool { return p.failed && p.interrupted.Err() == nil }

// Cleanup registers a function that runs at the end, last one first.
func (p *progress) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }

// Logf writes a message that is not part of the show.
func (p *progress) Logf(format string, args ...any) { fmt.Fprintf(p.err, "\n"+format+"\n", args...) }

// Fatalf tells what went wrong and ends the bench's goroutine.
func (p *progress) Fatalf(format string, args ...any) {
	if p.interrupted.Err() == nil {
		fmt.Fprintf(p.err, "\nbench: "+format+"\n", args...)
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

// step does one step and prints what it is, then what came of it and how long it took. An error ends the bench.
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

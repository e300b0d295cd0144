// SPDX-License-Identifier: Apache-2.0

// Command bench compares Weft with what else connects two hosts: the bare network, kernel VXLAN, wireguard-go and Nebula. All
// of them run between the same two hosts, network namespaces of this machine, and take turns, so that what else the machine
// does disturbs all alike. It removes all that it made, also when it is interrupted. It needs root and the built binaries of
// weft and wireguard-go, and goes without Nebula where there is no binary; `make bench` runs it. Called as `bench flood` it is
// the sender of its own UDP measurements. Called as `bench cni` it compares Weft's CNI plugin with the reference plugins, which
// `make benchcni` runs; as `bench policy` it compares meshes with and without network policies, which `make benchpolicy` runs.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/weftnet/weft/integration/show"
)

// exitInterrupted is what shells make of SIGINT.
const exitInterrupted = 130

// options is what the flags say.
type options struct {
	weftBinary, wgBinary string
	nebulaBinary         string // may be missing
	rounds               int
	length               time.Duration // of one stream measurement
	json                 bool
	file                 string // for the document, none if empty
	measure              []kind
	only                 []string // contenders; all if empty
}

func main() {
	if len(os.Args) > 1 {
		if run := part(os.Args[1]); run != nil {
			os.Exit(run(os.Args[2:], os.Stdout, os.Stderr))
		}
		switch os.Args[1] {
		case cniCommand:
			os.Exit(cniMain(os.Args[2:], os.Stdout, os.Stderr))
		case policyCommand:
			os.Exit(policyMain(os.Args[2:], os.Stdout, os.Stderr))
		}
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// part returns the program that a measurement starts with this first argument, in a process of its own; nil: none.
func part(name string) func(args []string, stdout, stderr io.Writer) int {
	switch name {
	case floodCommand:
		return flood
	case pingCommand:
		return ping
	case pongCommand:
		return pong
	case sourceCommand:
		return source
	case drainCommand:
		return drain
	}
	return nil
}

// report ends such a program: with the answer as JSON, or what went wrong. It returns the exit code.
func report(name string, answer any, err error, stdout, stderr io.Writer) int {
	if err == nil {
		err = json.NewEncoder(stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench %s: %v\n", name, err)
		return 1
	}
	return 0
}

// run runs the benchmark and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.weftBinary, "weft", "bin/weft", "the weft binary")
	flags.StringVar(&o.wgBinary, "wireguard-go", "bin/wireguard-go", "the wireguard-go binary")
	flags.StringVar(&o.nebulaBinary, "nebula", "bin/nebula", "the nebula binary, with nebula-cert beside it; it may be missing")
	flags.IntVar(&o.rounds, "rounds", 3, "how often each contender has its turn")
	seconds := flags.Float64("seconds", 2, "how long one stream measurement takes")
	flags.BoolVar(&o.json, "json", false, "print the results as JSON, and the progress to stderr")
	flags.StringVar(&o.file, "o", "", "write the results to this `file`, as a document in Markdown")
	measure := flags.String("measure", join(kinds()), "what to measure, separated by commas")
	only := flags.String("contenders", "", "who takes part, separated by commas (default: all)")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	o.length = time.Duration(*seconds * float64(time.Second))
	if o.rounds <= 0 || o.length <= 0 {
		fmt.Fprintln(stderr, "bench: -rounds and -seconds must be positive")
		return 2
	}
	if err := o.choose(*measure, *only); err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 2
	}
	for _, path := range []*string{&o.weftBinary, &o.wgBinary, &o.nebulaBinary} {
		var err error
		if *path, err = filepath.Abs(*path); err == nil && path != &o.nebulaBinary {
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

	out := stdout
	if o.json {
		out = stderr
	}
	b := bench{Show: show.New("bench", out, stderr, interrupted), options: o, ctx: interrupted, answer: stdout}
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

// choose notes what is to be measured, and of whom.
func (o *options) choose(measure, only string) error {
	for s := range strings.SplitSeq(measure, ",") {
		if !slices.Contains(kinds(), kind(s)) {
			return fmt.Errorf("-measure: there is no %q, but %s", s, join(kinds()))
		}
		o.measure = append(o.measure, kind(s))
	}
	if only == "" {
		return nil
	}
	for s := range strings.SplitSeq(only, ",") {
		if !slices.Contains(names(), s) {
			return fmt.Errorf("-contenders: there is no %q, but %s", s, join(names()))
		}
		o.only = append(o.only, s)
	}
	return nil
}

func join[T ~string](list []T) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return strings.Join(out, ",")
}

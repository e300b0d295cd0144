// SPDX-License-Identifier: Apache-2.0

// Command demo shows Weft at work on one machine: three hosts in network namespaces, two workloads on each, one encrypted
// network between them. It measures, proves that the underlay sees no payload, and removes all that it made, also when it is
// interrupted. It needs root and the built weft binary; `make demo` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/weftnet/weft/integration/show"
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

	d := demo{Show: show.New("demo", stdout, stderr, interrupted), ctx: ctx}
	failed := d.Run(func() { d.run(path) })
	switch {
	case interrupted.Err() != nil:
		fmt.Fprintln(stderr, "demo: interrupted; all that it made is removed")
		return exitInterrupted
	case failed:
		return 1
	}
	return 0
}

// SPDX-License-Identifier: Apache-2.0

// Command weft is Weft's one binary: `weft launch` is the daemon of a host, the
// other commands talk to it over its control socket.
//
// Every command lies in a file of its own, which only reads flags, calls
// internal/node or internal/api, and prints. Exit codes: 0 done, 1 refused or
// failed with one line on standard error, 2 wrong usage.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker (see the Makefile).
var version = "dev"

func main() {
	ctx, stop := untilSignal(context.Background())
	code := execute(ctx, os.Args[1:], env{
		in:     os.Stdin,
		out:    os.Stdout,
		err:    os.Stderr,
		getenv: os.Getenv,
	})
	stop()
	os.Exit(code)
}

// untilSignal returns a context that ends when this process shall end: by Ctrl-C, by kill, or as its terminal goes, unless it
// was started to outlive that (nohup). What a command has begun it undoes then.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signal.NotifyContext(ctx, signals...)
}

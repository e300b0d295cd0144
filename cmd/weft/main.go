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
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], env{
		out:    os.Stdout,
		err:    os.Stderr,
		getenv: os.Getenv,
	})
	stop()
	os.Exit(code)
}

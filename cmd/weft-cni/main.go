// SPDX-License-Identifier: Apache-2.0

// Command weft-cni is Weft's CNI plugin, which container runtimes run: installed in their plugin directory under the name weft. What it does is in
// the package cni; here are the process and the way to the daemon.
//
// It is one round trip to the daemon's socket, so it is made to start quickly. Exit codes: 0 done, 1 with an error of the CNI specification on
// standard output.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/weftnet/weft/cni"
)

func main() {
	// A runtime that has closed the plugin's output is an error to act upon, not the end.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cni.Run(ctx, cni.Env{
		Getenv:  os.Getenv,
		Stdin:   newInput(os.Stdin, os.Getenv("CNI_COMMAND") == "VERSION"),
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Name:    filepath.Base(os.Args[0]),
		Connect: connect,
	})
	stop()
	os.Exit(code)
}

// SPDX-License-Identifier: Apache-2.0

// Command weft-cni is Weft's CNI plugin, which container runtimes run: installed in their plugin directory under the name weft. What it does is in
// the package cni; here are the process and the way to the daemon.
//
// A runtime starts it for every container, and waits: so it does without what takes its time at the start, as net/http (1.2 ms) and os/signal
// (0.4 ms). Whatever ends it half way, a signal too, leaves what the runtime's DEL takes away. Exit codes: 0 done, 1 with an error of the CNI
// specification on standard output.
package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/fault"
)

func main() {
	os.Exit(cni.Run(context.Background(), cni.Env{
		Getenv:  os.Getenv,
		Stdin:   newInput(0, os.Getenv("CNI_COMMAND") == "VERSION"),
		Stdout:  output(1),
		Stderr:  output(2),
		Name:    filepath.Base(os.Args[0]),
		Connect: connect,
		Uptime:  cni.Uptime,
		Step:    fault.Point,
	}))
}

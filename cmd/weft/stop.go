// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

const stopTimeout = 15 * time.Second

func (c *cli) stop() *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "End the daemon; the workloads keep what they have",
		Long: `Stop ends the daemon as SIGTERM does: the peers are told at once, and the
workloads keep their interfaces, addresses and routes, so that the next launch
goes on where this one ended. Stopping what does not run is no error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := c.stopDaemon(cmd.Context())
			if errors.Is(err, api.ErrNotRunning) {
				return nil
			}
			return err
		},
	}
}

// stopDaemon ends the daemon and returns once its socket is gone.
func (c *cli) stopDaemon(ctx context.Context) error {
	cl := c.client()
	st, err := cl.Status(ctx)
	if err != nil {
		return err
	}
	if err := cl.Stop(ctx); err != nil {
		return err
	}
	return awaitEnd(ctx, cl, st.PID)
}

// awaitEnd waits until the daemon's process does not answer any more.
func awaitEnd(ctx context.Context, cl *api.Client, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for {
		st, err := cl.Status(ctx)
		if errors.Is(err, api.ErrNotRunning) || (err == nil && st.PID != pid) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon (pid %d) did not end within %v; see its log, or kill it", pid, stopTimeout)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/api"
)

const stopTimeout = 15 * time.Second

func (c *cli) stop() *cobra.Command {
	var r api.StopRequest
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "End the daemon; the workloads keep what they have",
		Long: `Stop ends the daemon as SIGTERM does: the peers are told at once, and the
workloads keep their interfaces, addresses and routes, so that the next launch
goes on where this one ended. Stopping what does not run is no error.

Paths to other nodes by the kernel (direct, vxlan) end with the daemon, unless
--keep-traffic leaves them as they are: packets go on by them in plaintext, with
nobody to notice when one leads nowhere any more.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := c.stopDaemon(cmd.Context(), r)
			switch {
			case errors.Is(err, api.ErrNotRunning):
				return nil
			case err != nil || !r.KeepTraffic:
				return err
			case len(res.Kept) == 0:
				return c.println("no kernel path was in use: nothing goes on but between the workloads of this host")
			}
			return c.println("packets go on by kernel paths, in plaintext, to " + some(res.Kept))
		},
	}
	cmd.Flags().BoolVar(&r.KeepTraffic, "keep-traffic", false, "leave the kernel paths that are in use as they are")
	return cmd
}

// stopDaemon ends the daemon and returns when its process has ended.
func (c *cli) stopDaemon(ctx context.Context, r api.StopRequest) (res api.StopResult, err error) {
	cl := c.client()
	p, err := watch(ctx, cl)
	if err != nil {
		return res, err
	}
	defer p.close()
	if res, err = cl.Stop(ctx, r); err != nil {
		return res, err
	}
	return res, p.awaitEnd(ctx, cl)
}

// process is a daemon's process.
type process struct {
	pid int // as the daemon knows itself
	fd  int // pidfd_open(2); -1 where it cannot be had, as in another PID namespace
}

// watch finds the daemon's process while it is there.
func watch(ctx context.Context, cl *api.Client) (process, error) {
	st, err := cl.Status(ctx)
	if err != nil {
		return process{}, err
	}
	p := process{pid: st.PID, fd: -1}
	if pid, err := cl.PID(ctx); err == nil && pid > 0 && pid != os.Getpid() {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			p.fd = fd
		}
	}
	return p, nil
}

func (p process) close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
	}
}

// awaitEnd waits until the daemon does not answer any more and has ended, with all that it held.
func (p process) awaitEnd(ctx context.Context, cl *api.Client) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for {
		st, err := cl.Status(ctx)
		if (errors.Is(err, api.ErrNotRunning) || err == nil && st.PID != p.pid) && p.ended() {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon (pid %d) did not end within %v; see its log, or kill it", p.pid, stopTimeout)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ended tells whether the process has; where that cannot be seen, it is believed.
func (p process) ended() bool {
	if p.fd < 0 {
		return true
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) ps() *cobra.Command {
	cmd := &cobra.Command{Use: "ps", Short: "List the workloads attached on this host"}
	return reading(c, cmd, func(ctx context.Context, cl *api.Client) ([]api.Workload, error) { return cl.Workloads(ctx) }, showWorkloads)
}

func showWorkloads(w io.Writer, list []api.Workload) error {
	now := time.Now()
	rows := [][]string{{"WORKLOAD", "ADDRESSES", "NAMESPACE", "HOST INTERFACE", "STATE", "ATTACHED"}}
	for _, l := range list {
		rows = append(rows, []string{l.ID, addrs(l.Addresses), l.Netns, l.HostIf, l.State, since(now, l.Attached)})
	}
	return table(w, rows)
}

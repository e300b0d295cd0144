// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) ps() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ps", Short: "List the workloads attached on this host",
		Long: `Ps lists the workloads attached on this host: those of weft attach by their
namespace and interface, containers of the CNI plugin by their pod, or the
beginning of their ID, and their interface. --json has the whole of it.`,
	}
	return reading(c, cmd, func(ctx context.Context, cl *api.Client) ([]api.Workload, error) { return cl.Workloads(ctx) }, showWorkloads)
}

func showWorkloads(w io.Writer, list []api.Workload) error {
	now := time.Now()
	rows := [][]string{{"WORKLOAD", "ADDRESSES", "NAMESPACE", "HOST INTERFACE", "STATE", "ATTACHED"}}
	for _, l := range list {
		host := l.HostIf
		if l.AddressesOnly {
			host = "- (addresses only)"
		}
		rows = append(rows, []string{called(l), addrs(l.Addresses), l.Netns, host, l.State, since(now, l.Attached)})
	}
	return table(w, rows)
}

// called is what people call a workload: of a container its pod, if it has one, or as much of its ID as runtimes show.
func called(w api.Workload) string {
	const shown = 12
	c := w.CNI
	switch {
	case c == nil:
		return w.ID
	case c.PodName != "" && c.PodNamespace != "":
		return fmt.Sprintf("pod %s/%s %s", c.PodNamespace, c.PodName, w.IfName)
	case c.PodName != "":
		return fmt.Sprintf("pod %s %s", c.PodName, w.IfName)
	case len(c.ContainerID) > shown:
		return fmt.Sprintf("container %s %s", c.ContainerID[:shown], w.IfName)
	}
	return fmt.Sprintf("container %s %s", c.ContainerID, w.IfName)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) leave() *cobra.Command {
	var r api.LeaveRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this node out of the mesh for good, and give its addresses to the others",
		Long: `Leave grants the node's free addresses to its peers, names what could not be
given away, and ends the daemon. The node does not come back: weft reset makes
the host ready to join again as a new one.

While workloads are attached it refuses; with --drain it waits until the last one
is detached, and takes no new ones meanwhile. Ctrl-C ends that waiting, and the
node goes on as before.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.Drain && r.Force {
				return usagef("--drain and --force exclude each other; give one of them")
			}
			cl := c.client()
			p, err := watch(cmd.Context(), cl)
			if err != nil {
				return err
			}
			defer p.close()
			leaving := false
			l, err := cl.Leave(cmd.Context(), r, func(p api.LeaveProgress) {
				if r.Drain {
					c.note(p.Text)
				}
				leaving = p.Leaving
			})
			if r.Drain && !leaving && cmd.Context().Err() != nil {
				return errors.New("interrupted: the drain has ended, and this node goes on as before")
			}
			if err != nil {
				return err
			}
			if err := p.awaitEnd(cmd.Context(), cl); err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(l)
			}
			for _, g := range l.Granted {
				if err := c.println(fmt.Sprintf("%d addresses went to %s", g.Addresses, g.To)); err != nil {
					return err
				}
			}
			for _, k := range l.Kept {
				if err := c.println("not given away: " + k); err != nil {
					return err
				}
			}
			if l.Note != "" {
				return c.println(l.Note)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&r.Force, "force", false, "leave although workloads are attached or WireGuard clients are joined; they are cut off, and another node gets their addresses")
	cmd.Flags().BoolVar(&r.Drain, "drain", false, "wait until no workload is attached and no WireGuard client is joined, and take no new ones meanwhile")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

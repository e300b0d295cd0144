// SPDX-License-Identifier: Apache-2.0

package main

import (
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
the host ready to join again as a new one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl := c.client()
			p, err := watch(cmd.Context(), cl)
			if err != nil {
				return err
			}
			defer p.close()
			l, err := cl.Leave(cmd.Context(), r)
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
	cmd.Flags().BoolVar(&r.Force, "force", false, "leave although workloads are attached or WireGuard clients are joined; their addresses stay with this node")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

const forceWarning = "--force asks for no majority: if the other side of a partition does the same, both sides give the same addresses out twice; " +
	"use it only if the nodes that do not answer are gone for good"

func (c *cli) forget() *cobra.Command {
	var r api.ForgetRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "forget NODE",
		Short: "Declare a node gone, and have its addresses taken over",
		Long: `Forget declares a node gone for good: one of the others gets its addresses, and
the node, should it come back, stays out of the mesh until weft reset makes it a
new one. NODE is a name as weft peers shows it, a NodeID, or a name of --seed
whose node never started.

The owners of more than half of the range have to agree, so that two sides of a
partition cannot both do it; forget waits for them, and says who is missing. A
node that answers is not gone: stop it, or have it leave.

Ctrl-C ends the waiting and this node's part in it. What has been voted so far
stands: other nodes may complete it, and so does forgetting the node again.`,
		Example: `  weft forget node-3
  weft forget 5fb02ed5104a4cf9 --json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeGone,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Node = args[0]
			if r.Force {
				c.warn(forceWarning)
			}
			res, err := c.client().Forget(cmd.Context(), r, func(p api.ForgetProgress) { c.note(p.Text) })
			if cmd.Context().Err() != nil {
				return fmt.Errorf("interrupted: this node does no more to have %s forgotten; what has been voted so far stands, so other nodes may complete it, and weft forget %s goes on with it", r.Node, r.Node)
			}
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(res)
			}
			for _, f := range res.Forgotten {
				if err := c.println(forgotten(f)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&r.Sure, "yes-it-is-gone", false, "although it answers: what answers is another node in its place")
	cmd.Flags().BoolVar(&r.Force, "force", false, "although the owners of more than half of the range cannot be reached; dangerous, see above")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// forgotten says who took over how many addresses.
func forgotten(f api.Forgotten) string {
	text := fmt.Sprintf("%s is retired; it had no addresses left", f.Node)
	switch {
	case f.Addresses > 0 && f.Heir == f.Node: // a host that was set up anew
		text = fmt.Sprintf("%s (%s) took over %d addresses of %s (%s)", f.Heir, f.HeirID, f.Addresses, f.Node, f.NodeID)
	case f.Addresses > 0:
		text = fmt.Sprintf("%s took over %d addresses of %s", f.Heir, f.Addresses, f.Node)
	}
	if f.Forced {
		text += " (decided without a majority)"
	}
	return text
}

// completeGone completes the names of nodes that do not answer.
func (c *cli) completeGone(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return c.completePeers(cmd, args, begun, func(p api.Peer) bool {
		return p.State != "alive" && p.State != string(api.Retired) && !p.Gone
	})
}

// note writes a line about the progress, warn one about a danger. Whether somebody reads them is not known.
func (c *cli) note(text string) { _, _ = fmt.Fprintln(c.err, text) }
func (c *cli) warn(text string) { _, _ = fmt.Fprintf(c.err, "weft: warning: %s\n", text) }

// moment writes a time for people, the same wherever they are.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

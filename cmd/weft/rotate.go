// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) rotate() *cobra.Command {
	var r api.RotateRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Give the mesh a new token while it runs",
		Long: `Rotate makes a new token and gives it to all nodes of the mesh, each sealed to that
node's own key; once all that answer have it, they go over to it. No packet is
lost and no connection breaks. The old token is accepted, too, until weft token
revoke-old ends that.

Nodes that do not answer are named. They get the new token by themselves when they
come back, until revoke-old; after that they are launched with the new token, which
weft token --raw prints on any node.

--without leaves a node out: it is not given the new token, and is cut off by
revoke-old. Nodes that join with the old token after the rotation began are not
given the new one either, unless --with names them.

If the command is interrupted, or the node that it runs on dies, run it again on
any node: it goes on where it was.`,
		Example: `  weft token rotate
  weft token rotate --without node-3`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := c.client().Rotate(cmd.Context(), r, func(p api.RotationProgress) { c.note(p.Text) })
			if cmd.Context().Err() != nil {
				return fmt.Errorf("interrupted: what was begun stands, and weft token rotate, on any node, goes on with it")
			}
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(res)
			}
			return c.println(strings.Join(rotated(res.Rotation), "\n"))
		},
	}
	cmd.Flags().StringArrayVar(&r.Without, "without", nil, "`NODE` that is not to get the new token, by name or NodeID; may be given several times")
	cmd.Flags().StringArrayVar(&r.With, "with", nil, "`NODE` that joined after the rotation began and is to get it all the same; may be given several times")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) revokeOld() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke-old",
		Short: "End the time in which the token of before a rotation is accepted, too",
		Long: `Revoke-old makes all nodes forget the token of before weft token rotate. From then on
it joins nothing, and sessions that were made with it have been renewed. Nodes that do not
have the new token are cut off, and named: launch each of them with the new token,
which weft token --raw prints on any node.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := c.client().RevokeOld(cmd.Context(), func(p api.RotationProgress) { c.note(p.Text) })
			if cmd.Context().Err() != nil {
				return fmt.Errorf("interrupted: weft token revoke-old, on any node, goes on with it")
			}
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(res)
			}
			return c.println(strings.Join(revoked(res.Rotation), "\n"))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// rotated says how the mesh stands after a rotation, line by line.
func rotated(r api.Rotation) []string {
	lines := []string{fmt.Sprintf("the mesh has a new token: %d of %d nodes have it, and all that answer send under it", r.Confirmed, r.Total)}
	if len(r.Away) > 0 {
		lines = append(lines, "away: "+strings.Join(r.Away, ", ")+"; they get it by themselves when they come back before weft token revoke-old")
	}
	if len(r.Newcomers) > 0 {
		lines = append(lines, "came later with the old token: "+strings.Join(r.Newcomers, ", ")+"; launch them with the new one, or run weft token rotate --with NODE")
	}
	if len(r.LeftOut) > 0 {
		lines = append(lines, "left out: "+strings.Join(r.LeftOut, ", "))
	}
	return append(lines, "the old token is accepted, too, until: weft token revoke-old")
}

// revoked says the same after a revocation.
func revoked(r api.Rotation) []string {
	lines := []string{fmt.Sprintf("the old token is revoked: %d of %d nodes have the new one", r.Confirmed, r.Total)}
	var cut []string
	for _, names := range [][]string{r.Away, r.Newcomers, r.LeftOut} {
		cut = append(cut, names...)
	}
	if len(cut) > 0 {
		lines = append(lines, "cut off: "+strings.Join(cut, ", ")+"; to bring one back, launch it with the token that weft token --raw prints here")
	}
	return lines
}

// rotationState is the row of weft status about a rotation.
func rotationState(r api.Rotation) string {
	text := fmt.Sprintf("%s, %d of %d nodes", r.Phase, r.Confirmed, r.Total)
	if len(r.Away) > 0 {
		text += "; away: " + strings.Join(r.Away, ", ")
	}
	if len(r.Newcomers) > 0 {
		text += "; came later with the old token: " + strings.Join(r.Newcomers, ", ")
	}
	return text
}

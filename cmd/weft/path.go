// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

// choices are what weft path takes.
func choices() []string { return []string{api.PathAuto, "udp", "vxlan", "direct"} }

func (c *cli) path() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "path NODE auto|udp|vxlan|direct",
		Short: "Choose how packets reach a node",
		Long: `Path chooses how packets of this host reach another node, now and after every
start: by the kernel, directly or by VXLAN, in plaintext, which is possible only
where both sides trust the network between them (weft launch --trusted-subnets);
by udp, encrypted; or auto, which is the first of these that is proven to work.

A path that was chosen is used while it is proven, and udp while it is not. What
comes from the node is for the node to choose.`,
		Example: "  weft path host-2 udp\n  weft path host-2 auto",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(choices(), args[1]) {
				return usagef("%q is no path; choose %s", args[1], strings.Join(choices(), ", "))
			}
			res, err := c.client().Path(cmd.Context(), api.PathRequest{Node: args[0], Path: args[1]})
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(res)
			}
			text := fmt.Sprintf("%s: %s", res.Node, res.Path)
			if res.Why != "" {
				text += " (" + res.Why + ")"
			}
			return c.println(text)
		},
	}
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// encryption says in plain words what travels encrypted.
func encryption(s api.Status) string {
	switch k := s.Kernel; {
	case !s.Encrypted:
		return "off: packets between hosts travel in plaintext wherever the kernel can carry them"
	case k == nil || len(k.Possible) == 0:
		return "on"
	default:
		return fmt.Sprintf("on, but not by kernel paths: in plaintext to nodes in %s that trust this host's address, too", some(k.Trusted))
	}
}

// kernelRows are the rows of the status about kernel paths.
func kernelRows(s api.Status) [][]string {
	k := s.Kernel
	if k == nil {
		return nil
	}
	possible := "none is possible"
	if len(k.Possible) > 0 {
		possible = strings.Join(k.Possible, ", ")
	}
	if slices.Contains(k.Possible, "vxlan") {
		possible += fmt.Sprintf(" (VNI %d, UDP port %d)", k.VNI, k.Port)
	}
	around := "large flows go around this host's stack"
	if k.Bypass != "" {
		around = "none: " + k.Bypass
	}
	return [][]string{{"kernel paths:", possible}, {"bypass:", around}, {"paths:", counts(k.Nodes, "direct", "vxlan", "udp", "relay", "none")}}
}

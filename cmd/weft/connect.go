// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) connect() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "connect HOST[:PORT]...",
		Short: "Connect to hosts of the mesh, now and after every start",
		Long: `Connect has the node connect to hosts as --peer of weft launch does: it looks
the names up anew for each try, and tries again, with growing patience, whenever
nobody of the mesh answers there. One host is enough to be in the mesh, as every
node tells of all others; several make it sure to find the mesh again after a
partition or a restart.

The hosts are kept in the data directory, beside those of --peer; weft status
shows how it stands with each.`,
		Example: "  weft connect host-2 192.0.2.7 host-3:7000",
		Args:    someHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			res, err := c.client().Connect(cmd.Context(), api.ConnectRequest{Hosts: args})
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(res)
			}
			for _, t := range res.Targets {
				if err := c.println(t.Host + ": " + t.State); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) disconnect() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "disconnect HOST[:PORT]...",
		Short: "Connect to hosts no longer",
		Long: `Disconnect ends what --peer or weft connect began: the node connects to these
hosts no longer by itself. It puts nobody out of the mesh: a node found there
stays a member, as the others tell of it; weft leave, on that node, and weft
forget do that.

What --peer gives, the next launch with it connects to again.`,
		Example:           "  weft disconnect host-2",
		Args:              someHosts,
		ValidArgsFunction: c.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			res, err := c.client().Disconnect(cmd.Context(), api.DisconnectRequest{Hosts: args})
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(res)
			}
			for _, d := range res.Disconnected {
				text := d.Host + ": disconnected"
				if len(d.Notes) > 0 {
					text += "; " + strings.Join(d.Notes, "; ")
				}
				if err := c.println(text); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// completeTargets completes the hosts that the node connects to and that are not named yet.
func (c *cli) completeTargets(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	s, err := c.client().Status(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var hosts []string
	for _, t := range s.Targets {
		if strings.HasPrefix(t.Host, begun) && !slices.Contains(args, t.Host) {
			hosts = append(hosts, t.Host)
		}
	}
	return hosts, cobra.ShellCompDirectiveNoFileComp
}

// someHosts wants at least one argument.
func someHosts(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("weft %s needs a HOST or HOST:PORT, or several", cmd.Name())
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/cniinstall"
	"github.com/weftnet/weft/internal/node"
)

func (c *cli) reset() *cobra.Command {
	var dataDir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove everything that Weft made on this host, and nothing else",
		Long: `Reset ends the daemon, detaches the workloads, and removes every device, route,
rule and file that Weft made on this host. Run weft leave first if the mesh is
to get the node's addresses back, and weft cni uninstall to take the plugin for
container runtimes away.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if st, err := c.client().Status(cmd.Context()); err == nil && !cmd.Flags().Changed("data-dir") {
				dataDir = st.DataDir
			}
			if _, err := c.stopDaemon(cmd.Context(), api.StopRequest{}); err != nil && !errors.Is(err, api.ErrNotRunning) {
				return err
			}
			data, err := absolute(dataDir)
			if err != nil {
				return err
			}
			run, err := absolute(c.runDir)
			if err != nil {
				return err
			}
			removed, err := node.Reset(cmd.Context(), data, run)
			if err != nil {
				return err
			}
			if plugin := cniinstall.Installed(cniinstall.DefaultBinDir); plugin != "" {
				c.note(fmt.Sprintf("the CNI plugin %s stays; weft cni uninstall takes it away", plugin))
			}
			if asJSON {
				return c.printJSON(map[string][]string{"removed": append([]string{}, removed...)})
			}
			for _, r := range removed {
				if err := c.println("removed " + r); err != nil {
					return err
				}
			}
			if len(removed) == 0 {
				return c.println(fmt.Sprintf("nothing of Weft's is on this host (data directory %s)", data))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", node.DefaultDataDir, "directory of the node's state (default: that of the running daemon)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

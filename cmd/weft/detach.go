// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) detach() *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use:   "detach (--netns PATH | --pid PID)",
		Short: "Take a namespace's interface away and give its addresses back",
		Long: `Detach undoes attach. Detaching what is not attached, or whose namespace is
gone, is no error. It also takes away what a container runtime has attached
by the CNI plugin, and should have deleted: weft ps has its namespace.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := t.path()
			if err != nil {
				return err
			}
			_, err = c.client().Detach(cmd.Context(), api.DetachRequest{Netns: path, IfName: t.ifname})
			return err
		},
	}
	t.register(cmd)
	return cmd
}

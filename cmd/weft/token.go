// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/token"
)

func (c *cli) token() *cobra.Command {
	var raw, generate, asJSON bool
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print the command with which the next host joins",
		Long: `Token prints the command with which the next host joins, with the mesh's
token, or with --raw the token alone. Whoever holds the token may join: treat it
like a password. --generate makes a new one without asking any daemon, for a
mesh that is to be started by --seed on several hosts at once.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if generate {
				if raw || asJSON {
					return usagef("--generate goes alone")
				}
				t, err := token.New(rand.Reader)
				if err != nil {
					return err
				}
				return c.println(t.Reveal())
			}
			t, err := c.client().Token(cmd.Context())
			if err != nil {
				return err
			}
			if t.Warning != "" {
				_, _ = fmt.Fprintf(c.err, "weft: warning: %s\n", t.Warning)
			}
			switch {
			case asJSON:
				return c.printJSON(t)
			case raw:
				return c.println(t.Token)
			default:
				return c.println(t.Command)
			}
		},
	}
	cmd.AddCommand(c.rotate(), c.revokeOld())
	cmd.Flags().BoolVar(&raw, "raw", false, "print the token alone")
	cmd.Flags().BoolVar(&generate, "generate", false, "make a new token for a mesh that does not exist yet")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) println(s string) error {
	if _, err := fmt.Fprintln(c.out, s); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}

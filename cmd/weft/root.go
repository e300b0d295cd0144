// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

const defaultRunDir = "/run/weft"

// env is what commands see of the process around them.
type env struct {
	in       io.Reader // nil: nothing comes
	out, err io.Writer
	getenv   func(string) string
}

// usageError marks an error as wrong usage: exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// cli is shared by the commands of one invocation.
type cli struct {
	env
	runDir string
}

func (c *cli) client() *api.Client { return api.NewClient(c.runDir) }

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, e env) int {
	c := &cli{env: e}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(e.out)
	root.SetErr(e.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	if errors.Is(err, errDenied) {
		return exitFailed
	}
	_, _ = fmt.Fprintf(e.err, "weft: %s\n", oneLine(err))
	var u usageError
	if errors.As(err, &u) || strings.HasPrefix(err.Error(), "unknown command") {
		_, _ = fmt.Fprintln(e.err, "weft: try: weft help")
		return exitUsage
	}
	return exitFailed
}

// oneLine makes any error one line, as scripts and logs expect.
func oneLine(err error) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", "; ")), " ")
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "weft",
		Short: "An encrypted network for containers that needs nothing but this binary",
		Long: `Weft joins hosts into one encrypted pod network.

On the first host:    weft launch
On every other host:  weft launch --peer FIRST-HOST --token-file FILE
Then, on any host:    weft attach --netns /run/netns/NAME`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		// One line for an error, without suggestions.
		DisableSuggestions: true,
	}
	runDir := c.getenv("WEFT_RUN_DIR")
	if runDir == "" {
		runDir = defaultRunDir
	}
	root.PersistentFlags().StringVar(&c.runDir, "run-dir", runDir, "directory of the daemon's control socket (env WEFT_RUN_DIR)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		c.launch(), c.status(), c.peers(), c.events(), c.path(), c.connect(), c.disconnect(), c.ps(), c.attach(), c.label(), c.detach(),
		c.token(), c.ipam(), c.wg(), c.policy(), c.bench(), c.stop(), c.leave(), c.forget(), c.cni(), c.reset(), c.kube(), c.version(),
	)
	wrongArgsAreUsage(root.Commands())
	return root
}

func wrongArgsAreUsage(commands []*cobra.Command) {
	for _, cmd := range commands {
		wrongArgsAreUsage(cmd.Commands())
		if args := cmd.Args; args != nil {
			cmd.Args = func(cmd *cobra.Command, a []string) error {
				if err := args(cmd, a); err != nil {
					return usageError{err}
				}
				return nil
			}
		}
	}
}

// printJSON writes v indented, as every --json does.
func (c *cli) printJSON(v any) error {
	enc := json.NewEncoder(c.out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}

// reading makes a command that asks the daemon for one thing and prints it as a
// text or, with --json, as it came.
func reading[T any](c *cli, cmd *cobra.Command, ask func(context.Context, *api.Client) (T, error), show func(io.Writer, T) error) *cobra.Command {
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v, err := ask(cmd.Context(), c.client())
		if err != nil {
			return err
		}
		if *asJSON {
			return c.printJSON(v)
		}
		return show(c.out, v)
	}
	return cmd
}

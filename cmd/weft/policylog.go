// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) policyLog() *cobra.Command {
	var r api.PolicyLogRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Show connections that were denied on this host, and by which policy",
		Long: `Log shows connections that policies have denied on this host, the newest last,
with the policy that denied it, or those that isolate the workload and have no rule
that allows it. The last 1,000 are kept, until the daemon ends. When there are too
many at a time some are left out, and counted.

With --follow it goes on with what is denied, until Ctrl-C. With --json it prints an
array, with --json --follow one object per line.`,
		Example: "  weft policy log --follow",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch given := cmd.Flags().Changed("last"); {
			case given && r.Last < 0:
				return usagef("--last %d is negative; give a number of connections, or leave it out", r.Last)
			case !given && r.Follow:
				r.Last = followed
			case !given:
				r.Last = -1
			}
			show := streamPrinter[api.Denied]{
				c: c, json: asJSON, live: r.Follow, line: denialLine, list: []*api.Denied{},
				skipped: "%d connections that were denied were skipped: they came faster than they were read",
			}
			return show.end(cmd.Context(), c.client().PolicyLog(cmd.Context(), r, func(d api.PolicyLogProgress) { show.take(d.Denied, d.Skipped) }))
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&r.Follow, "follow", "f", false, "go on with what is denied")
	f.IntVar(&r.Last, "last", 0, "show the last `N` only (default: all that are kept, with --follow 10)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// denialLine writes what was denied for people.
func denialLine(d api.Denied) string {
	service := strings.ToUpper(d.Protocol)
	if d.Port != 0 {
		service += fmt.Sprintf(" %d", d.Port)
	}
	text := fmt.Sprintf("%s  %s to %s, %s: %s", d.Time.Format("2006-01-02 15:04:05-07:00"), party(d.Src, d.SrcName), party(d.Dst, d.DstName), service, d.Why)
	if d.Untold > 0 {
		text += fmt.Sprintf(" (and %d before it that were left out)", d.Untold)
	}
	return text
}

func party(a netip.Addr, name string) string {
	if name == "" {
		return a.String()
	}
	return fmt.Sprintf("%s (%v)", name, a)
}

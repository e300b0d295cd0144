// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

// followed is how many past events --follow shows unless told otherwise.
const followed = 10

func (c *cli) events() *cobra.Command {
	var r api.EventsRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what has happened in the mesh, and why",
		Long: `Events shows what this node has seen happen, the newest last: nodes that join,
stop, leave, fail and come back, changes of the paths to them, addresses granted
and taken over, nodes declared gone, changes of the token, hosts turned away, and
its own starts and stops. The last 1,000 are kept, also over restarts of the
daemon; what happens in its last second before it is killed may be missing. What
happens to many nodes at one moment is one event.

With --follow it goes on with what happens, until Ctrl-C; a reader that is too
slow is told how many events were skipped.

With --json it prints an array, with --json --follow one object per line: seq,
time, kind, node, node_id, text, cause. The kinds are start, join, stop, leave,
fail, path, grant, takeover, retire, rotate and refuse.`,
		Example: `  weft events -n 20
  weft events --follow --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch given := cmd.Flags().Changed("last"); {
			case given && r.Last < 0:
				return usagef("-n %d is negative; give a number of events, or leave it out", r.Last)
			case !given && r.Follow:
				r.Last = followed
			case !given:
				r.Last = -1
			}
			show := streamPrinter[api.Event]{
				c: c, json: asJSON, live: r.Follow, line: eventLine, list: []*api.Event{},
				skipped: "%d events were skipped: they came faster than they were read",
			}
			return show.end(cmd.Context(), c.client().Events(cmd.Context(), r, func(e api.EventsProgress) { show.take(e.Event, e.Skipped) }))
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&r.Follow, "follow", "f", false, "go on with what happens")
	f.IntVarP(&r.Last, "last", "n", 0, "show the last `N` events only (default: all, with --follow 10)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// eventLine writes an event for people, with the time as the node has it, which the times of day in causes are of, too.
func eventLine(e api.Event) string {
	text := fmt.Sprintf("%s  %-8s  %s", e.Time.Format("2006-01-02 15:04:05-07:00"), e.Kind, e.Text)
	if e.Cause != "" {
		text += " (" + e.Cause + ")"
	}
	return text
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
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
			show := denialPrinter{c: c, json: asJSON, live: r.Follow, list: []*api.Denied{}}
			err := ended(cmd.Context(), r.Follow, c.client().PolicyLog(cmd.Context(), r, show.take))
			if err == nil {
				err = show.err
			}
			if err == nil && asJSON && !r.Follow {
				err = c.printJSON(show.list)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&r.Follow, "follow", "f", false, "go on with what is denied")
	f.IntVar(&r.Last, "last", 0, "show the last `N` only (default: all that are kept, with --follow 10)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// denialPrinter prints what was denied as it comes.
type denialPrinter struct {
	c    *cli
	json bool
	live bool
	list []*api.Denied // of JSON, unless live
	err  error         // the first
}

func (p *denialPrinter) take(d api.PolicyLogProgress) {
	if d.Skipped > 0 {
		p.c.note(fmt.Sprintf("%d connections that were denied were skipped: they came faster than they were read", d.Skipped))
	}
	if d.Denied == nil || p.err != nil {
		return
	}
	switch {
	case p.json && !p.live:
		p.list = append(p.list, d.Denied)
	case p.json:
		if p.err = json.NewEncoder(p.c.out).Encode(d.Denied); p.err != nil {
			p.err = fmt.Errorf("writing the answer: %w", p.err)
		}
	default:
		p.err = p.c.println(denialLine(*d.Denied))
	}
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

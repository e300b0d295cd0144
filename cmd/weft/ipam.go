// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) ipam() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ipam",
		Short: "Show who owns which addresses, and what is allocated here",
		Long: `Ipam shows who owns which part of the range, what is allocated on this node,
which takeovers of dead nodes' addresses are under way and what they wait for,
and who was declared gone.`,
	}
	cmd.AddCommand(c.ipamExplain(), c.ipamGC())
	return reading(c, cmd, func(ctx context.Context, cl *api.Client) (api.IPAM, error) { return cl.IPAM(ctx) }, showIPAM)
}

func showIPAM(w io.Writer, i api.IPAM) error {
	if _, err := fmt.Fprintf(w, "range %s: %d addresses; here %d allocated, %d free, %d resting, %d granted but not yet known to a majority\n\n",
		withReserve(i.Universe, i.Reserve), i.Size, len(i.Allocations), i.Free, i.Quarantined, i.Pending); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	rows := [][]string{{"NODE", "OWNS", "SHARE", "BLOCKS"}}
	for _, h := range i.Holdings {
		rows = append(rows, []string{h.Node, fmt.Sprint(h.Slots), fmt.Sprintf("%.1f%%", h.Percent), prefixes(h.Prefixes)})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	rows = [][]string{{"ALLOCATED TO", "ADDRESSES"}}
	for _, a := range i.Allocations {
		rows = append(rows, []string{a.Owner, addrs(a.Addresses)})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if err := showRetirements(w, i.Retirements); err != nil {
		return err
	}
	for _, t := range i.Takeovers {
		if _, err := fmt.Fprintln(w, t.Text); err != nil {
			return fmt.Errorf("writing the answer: %w", err)
		}
	}
	for _, n := range i.Notes {
		if _, err := fmt.Fprintf(w, "note: %s\n", n); err != nil {
			return fmt.Errorf("writing the answer: %w", err)
		}
	}
	return nil
}

func showRetirements(w io.Writer, list []api.Retirement) error {
	if len(list) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	rows := [][]string{{"DECLARED GONE", "NODEID", "HEIR", "BY", "AT", "DECIDED"}}
	for _, r := range list {
		decided := "by a majority"
		if r.Forced {
			decided = "by force"
		}
		rows = append(rows, []string{r.Node, r.NodeID, r.Heir, r.By, moment(r.At), decided})
	}
	return table(w, rows)
}

func (c *cli) ipamExplain() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain ADDRESS",
		Short: "Tell the history of one address, as far as it is known",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := netip.ParseAddr(args[0])
			if err != nil {
				return usagef("%q is no IP address", args[0])
			}
			e, err := c.client().Explain(cmd.Context(), api.ExplainRequest{Address: a})
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(e)
			}
			for _, l := range e.Lines {
				if err := c.println(l); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) ipamGC() *cobra.Command {
	var r api.GCRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Release the addresses of network namespaces that are gone",
		Long: `Gc lists and releases the addresses on this host that nobody can use any more,
because the namespace they were attached to is gone. The daemon does so by
itself, twice a minute; this does it now, and says what it found. What is alive
keeps its addresses, also where the path is gone by which it was attached, and
so do the host itself and WireGuard clients.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			g, err := c.client().GC(cmd.Context(), r)
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(g)
			}
			did := "released"
			if r.DryRun {
				did = "would release"
			}
			for _, x := range g.Garbage {
				of := x.Owner
				if x.Netns != "" {
					of = x.Netns
				}
				if err := c.println(fmt.Sprintf("%s %s of %s: %s", did, addrs(x.Addresses), of, x.Reason)); err != nil {
					return err
				}
			}
			if len(g.Garbage) == 0 {
				return c.println("nothing to release: every address is in use")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "only list them")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

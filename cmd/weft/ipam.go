// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) ipam() *cobra.Command {
	cmd := &cobra.Command{Use: "ipam", Short: "Show who owns which addresses, and what is allocated here"}
	return reading(c, cmd, func(ctx context.Context, cl *api.Client) (api.IPAM, error) { return cl.IPAM(ctx) }, showIPAM)
}

func showIPAM(w io.Writer, i api.IPAM) error {
	if _, err := fmt.Fprintf(w, "range %s: %d addresses; here %d allocated, %d free, %d resting, %d granted but not yet known to a majority\n\n",
		i.Universe, i.Size, len(i.Allocations), i.Free, i.Quarantined, i.Pending); err != nil {
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
	for _, n := range i.Notes {
		if _, err := fmt.Fprintf(w, "note: %s\n", n); err != nil {
			return fmt.Errorf("writing the answer: %w", err)
		}
	}
	return nil
}

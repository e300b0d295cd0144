// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) status() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show how this node and its mesh are"}
	return reading(c, cmd, func(ctx context.Context, cl *api.Client) (api.Status, error) { return cl.Status(ctx) }, showStatus)
}

// withReserve adds to a range what of it is kept for static use.
func withReserve(universe, reserve string) string {
	if reserve == "" {
		return universe
	}
	return universe + ", of which in reserve: " + reserve
}

// policyState says how it is with network policies.
func policyState(p api.PolicyStatus) string {
	switch {
	case p.WaitsFor != "":
		return "waiting for " + p.WaitsFor
	case p.Failure != "":
		return fmt.Sprintf("%d, not in force as they should be", p.Policies)
	}
	about := fmt.Sprintf("%d workloads", p.Workloads)
	switch p.Workloads {
	case 0:
		about = "no workload"
	case 1:
		about = "1 workload"
	}
	return fmt.Sprintf("%d in force, about %s of this node", p.Policies, about)
}

func showStatus(w io.Writer, s api.Status) error {
	state := string(s.Phase)
	if s.WaitsFor != "" {
		state += ": " + s.WaitsFor
	}
	device := s.Device + ", not there yet"
	if s.MTU > 0 {
		offloads := "none"
		if len(s.Offloads) > 0 {
			offloads = strings.Join(s.Offloads, ", ")
		}
		device = fmt.Sprintf("%s (%s), MTU %d, %d shard(s), offloads %s", s.Device, s.TUN, s.MTU, s.Shards, offloads)
	}
	rows := [][]string{
		{"node:", fmt.Sprintf("%s (%s)", s.Name, s.NodeID)},
		{"state:", state},
		{"version:", s.Version},
		{"process:", fmt.Sprintf("%d, up %s", s.PID, age(s.Uptime))},
		{"port:", fmt.Sprintf("%d (UDP and TCP)", s.Port)},
		{"range:", withReserve(s.Universe, s.Reserve)},
		{"mesh:", s.MeshID},
		{"encryption:", encryption(s)},
		{"address:", addrs(s.Addresses)},
		{"device:", device},
		{"nodes:", fmt.Sprintf("%d alive of %d", s.Nodes.Alive, s.Nodes.Total)},
		{"workloads:", fmt.Sprint(s.Workloads)},
		{"data:", s.DataDir},
		{"socket:", s.Socket},
	}
	rows = append(rows, reachRows(s)...)
	rows = append(rows, kernelRows(s)...)
	if s.Policies != nil {
		rows = append(rows, []string{"policies:", policyState(*s.Policies)})
	}
	if s.Rotation != nil {
		rows = append(rows, []string{"token:", rotationState(*s.Rotation)})
	}
	for _, t := range s.Targets {
		rows = append(rows, []string{"peer " + t.Host + ":", t.State})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	var blocked []string
	if s.Reach != nil {
		blocked = s.Reach.Blocked
	}
	for _, m := range append(blocked, s.Warnings...) {
		if _, err := fmt.Fprintf(w, "warning: %s\n", strings.TrimSpace(m)); err != nil {
			return fmt.Errorf("writing the status: %w", err)
		}
	}
	return nil
}

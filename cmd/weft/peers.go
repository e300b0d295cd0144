// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) peers() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the other nodes and how they are reached",
		Long: `Peers lists the other nodes of the mesh. Those that are done with, because they
have left and own nothing or because they were declared gone and do not answer,
are listed with --all only.`,
	}
	all := cmd.Flags().Bool("all", false, "list nodes that are done with, too")
	return reading(c, cmd, func(ctx context.Context, cl *api.Client) ([]api.Peer, error) {
		peers, err := cl.Peers(ctx)
		if err != nil || *all {
			return peers, err
		}
		return slices.DeleteFunc(peers, func(p api.Peer) bool { return p.Gone }), nil
	}, showPeers)
}

func showPeers(w io.Writer, peers []api.Peer) error {
	now := time.Now()
	rows := [][]string{{"NAME", "STATE", "SINCE", "PATH", "SESSION", "SUITE", "ENDPOINT", "MTU", "RECEIVED", "SENT", "ADDRESSES"}}
	for _, p := range peers {
		session := p.Session
		if p.Reason != "" {
			session += " (" + p.Reason + ")"
		}
		rows = append(rows, []string{
			p.Name, p.State, since(now, p.Since), p.Path, session, p.Suite, p.Endpoint, pathMTU(p),
			size(p.RxBytes), size(p.TxBytes), prefixes(p.Prefixes),
		})
	}
	return table(w, rows)
}

// pathMTU writes how large packets to a peer may be, with a question mark until one of that size is known to have arrived.
func pathMTU(p api.Peer) string {
	switch {
	case p.PathMTU == 0:
		return ""
	case p.PathMTUConfirmed:
		return fmt.Sprint(p.PathMTU)
	}
	return fmt.Sprintf("%d?", p.PathMTU)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
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
are listed with --all only.

PATH says how packets reach a node: direct and vxlan by the kernel, in plaintext,
where both sides trust the network between them; udp encrypted and directly,
relay through the nodes named, sealed so that they cannot be read there, none not
at all. WHY says why it is not another one; --json tells of all of them.`,
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
	rows := [][]string{{"NAME", "STATE", "SINCE", "PATH", "RTT", "SESSION", "SUITE", "ENDPOINT", "MTU", "RECEIVED", "SENT", "ADDRESSES", "WHY"}}
	for _, p := range peers {
		session := p.Session
		if p.SessionError != "" {
			session += " (" + p.SessionError + ")"
		}
		rows = append(rows, []string{
			p.Name, p.State, since(now, p.Since), path(p), rtt(p.RTT), session, p.Suite, p.Endpoint, pathMTU(p),
			size(p.RxBytes), size(p.TxBytes), prefixes(p.Prefixes), why(p),
		})
	}
	if err := table(w, rows); err != nil || len(peers) <= fewPeers {
		return err
	}
	if _, err := fmt.Fprintln(w, summary(peers)); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// fewPeers is how many can be counted at sight.
const fewPeers = 20

// summary counts the peers by state and path.
func summary(peers []api.Peer) string {
	states, paths := map[string]int{}, map[string]int{}
	for _, p := range peers {
		states[p.State]++
		paths[p.Path]++
	}
	return fmt.Sprintf("%d nodes: %s; paths: %s", len(peers),
		counts(states, "alive", "failed", "stopped", "left", string(api.Retired)), counts(paths, "direct", "vxlan", "udp", "relay", "none"))
}

// counts lists those of keys that occur, with how often.
func counts(of map[string]int, keys ...string) string {
	var parts []string
	for _, k := range keys {
		if n := of[k]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, k))
		}
	}
	return strings.Join(parts, ", ")
}

// path writes by which path a peer is reached.
func path(p api.Peer) string {
	if len(p.Via) == 0 {
		return p.Path
	}
	return p.Path + " via " + strings.Join(p.Via, ", ")
}

// why says why a peer is not reached as one would wish; that it is reached directly needs no reason where nothing else is possible.
func why(p api.Peer) string {
	switch p.Path {
	case "direct", "vxlan", "udp":
		if p.Kernel == nil {
			return ""
		}
		return p.Kernel.Why
	}
	return p.Reason
}

// rtt writes a round trip time given in microseconds.
func rtt(us int64) string {
	switch {
	case us <= 0:
		return ""
	case us < 10_000:
		return fmt.Sprintf("%.1fms", float64(us)/1000)
	}
	return fmt.Sprintf("%dms", (us+500)/1000)
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

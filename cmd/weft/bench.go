// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

func (c *cli) bench() *cobra.Command {
	var r api.BenchRequest
	var most string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "bench NODE",
		Short: "Measure the way to another node: throughput, latency, packet rate, processor time",
		Long: `Bench measures what the mesh carries between this node and another one, from
host to host, over the way that workloads' packets go: the time of a request
and its response on the idle way, the throughput of one TCP stream and of
several, and how many small UDP packets arrive when they are sent without
holding back; each of the latter in both directions.

NODE is a name as weft peers shows it, or the beginning of a NodeID. The daemons
of the two nodes make the load, so workloads share the way and the processors
with it while it lasts: seven phases of --time each. A node takes part in one
measurement at a time; Ctrl-C ends it on both nodes.

Processor time is that of the two weft processes for each 10^9 bits that
arrived, the making and taking of the load included; in parentheses that of
their packet threads alone, which is what the mesh itself costs.`,
		Example: `  weft bench node-2
  weft bench node-2 --time 10s --streams 8 --json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Node = args[0]
			var err error
			if r.Bytes, err = parseBytes(most); err != nil {
				return usagef("--max-bytes %q is no number of bytes; give such as 500M or 32G", most)
			}
			if cmd.Flags().Changed("time") && r.Time == 0 || cmd.Flags().Changed("streams") && r.Streams == 0 {
				return usagef("--time and --streams cannot be 0; leave them out for the defaults")
			}
			show := benchProgress{w: c.err, live: interactive(c.err)}
			res, err := c.client().Bench(cmd.Context(), r, show.print)
			show.end()
			if cmd.Context().Err() != nil {
				return errors.New("interrupted: the measurement ends on both nodes")
			}
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(res)
			}
			return showBench(c.out, res)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&r.Time, "time", 0, "time of each phase, 1s to 30s (default 3s)")
	f.IntVar(&r.Streams, "streams", 0, "TCP streams of the phases with several, 1 to 32 (default 4)")
	f.StringVar(&most, "max-bytes", "", "payload of all phases together, 1M to 1T (default 32G)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// completeNodes completes the names of the other nodes that answer.
func (c *cli) completeNodes(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return c.completePeers(cmd, args, begun, func(p api.Peer) bool { return p.State == "alive" })
}

// completePeers completes the names of the peers that are wanted, as the only argument.
func (c *cli) completePeers(cmd *cobra.Command, args []string, begun string, wanted func(api.Peer) bool) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	peers, err := c.client().Peers(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, p := range peers {
		if wanted(p) && strings.HasPrefix(p.Name, begun) {
			names = append(names, p.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// parseBytes reads a number with or without a binary unit: K, M, G, T. Nothing is 0.
func parseBytes(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits, unit := s, int64(1)
	if i := strings.IndexByte("KMGT", s[len(s)-1]); i >= 0 {
		digits, unit = s[:len(s)-1], int64(1)<<(10*(i+1))
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading a number of bytes: %w", err)
	}
	if n <= 0 || n > 1<<62/unit {
		return 0, strconv.ErrRange
	}
	return n * unit, nil
}

// benchProgress shows the phases as they pass: a line for each that is done, and
// on a terminal one that changes for that which is not.
type benchProgress struct {
	w     io.Writer
	live  bool
	drawn bool // a line that is to be overwritten
}

func (b *benchProgress) print(p api.BenchProgress) {
	if !p.Done && !b.live {
		return
	}
	line := fmt.Sprintf("%d/%d %s: %s", p.Step, p.Steps, p.Phase, benchFigure(p))
	if b.live {
		line = "\r\x1b[K" + line
	}
	if p.Done {
		line += "\n"
	}
	b.drawn = !p.Done
	_, _ = io.WriteString(b.w, line)
}

// end leaves no half a line behind.
func (b *benchProgress) end() {
	if b.drawn {
		_, _ = io.WriteString(b.w, "\r\x1b[K")
	}
}

func benchFigure(p api.BenchProgress) string {
	switch {
	case p.Latency != nil && p.Done:
		return fmt.Sprintf("p50 %s, p99 %s", micros(p.Latency.P50), micros(p.Latency.P99))
	case p.Latency != nil:
		return fmt.Sprintf("%d requests", p.Latency.Samples)
	case p.Loss != nil:
		return fmt.Sprintf("%s, %.1f%% lost", packetRate(p.Rate), *p.Loss)
	case p.Rate > 0:
		return packetRate(p.Rate)
	}
	return bitRate(p.Bits)
}

func showBench(w io.Writer, r api.BenchResult) error {
	largest := ""
	if r.PathMTU > 0 {
		largest = fmt.Sprintf(", path MTU %d", r.PathMTU)
	}
	if _, err := fmt.Fprintf(w, "%s (%s, %v) to %s (%s, %v)\npath %s, %s, overlay MTU %d%s\n\n",
		r.From.Name, r.From.Build, r.From.Address, r.To.Name, r.To.Build, r.To.Address, path(api.Peer{Path: r.Path, Via: r.Via}), r.Suite, r.MTU, largest); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	cpu := func(process, engine float64) string { return fmt.Sprintf("%.3f (%.3f)", process, engine) }
	rows := [][]string{{"MEASURED", "RESULT", "NOTE", "CPU S/GBIT " + r.From.Name, "CPU S/GBIT " + r.To.Name}}
	rows = append(rows, []string{
		"request/response, 64 bytes", "p50 " + micros(r.Latency.P50),
		fmt.Sprintf("p99 %s, max %s", micros(r.Latency.P99), micros(r.Latency.Max)), "", "",
	})
	for _, t := range r.TCP {
		what := "1 TCP stream "
		if t.Streams > 1 {
			what = fmt.Sprintf("%d TCP streams ", t.Streams)
		}
		rows = append(rows, []string{
			what + t.Direction, bitRate(t.Bits), capped(t.Capped), cpu(t.CPU.From, t.CPU.FromEngine), cpu(t.CPU.To, t.CPU.ToEngine),
		})
	}
	for _, u := range r.Packets {
		note := fmt.Sprintf("%.1f%% lost", u.Loss)
		if u.Capped {
			note += ", " + capped(true)
		}
		rows = append(rows, []string{
			fmt.Sprintf("UDP packets of %d bytes %s", u.Payload, u.Direction), packetRate(u.Rate), note,
			cpu(u.CPU.From, u.CPU.FromEngine), cpu(u.CPU.To, u.CPU.ToEngine),
		})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	text := "\nCPU: seconds of the weft process for each 10^9 bits of payload that arrived, making and taking the load\n" +
		"included; in parentheses its packet threads alone. Small packets are sent without holding back: what is lost\n" +
		"was more than the way carries; where next to nothing is, the sender could not make more.\n"
	if r.Strangers > 0 {
		text += fmt.Sprintf("%d connections or datagrams that were not of this measurement were turned away.\n", r.Strangers)
	}
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

func capped(is bool) string {
	if is {
		return "ended by --max-bytes"
	}
	return ""
}

// bitRate writes bits per second with a decimal unit.
func bitRate(bits float64) string {
	switch {
	case bits >= 1e9:
		return fmt.Sprintf("%.2f Gbit/s", bits/1e9)
	case bits >= 1e6:
		return fmt.Sprintf("%.1f Mbit/s", bits/1e6)
	}
	return fmt.Sprintf("%.1f kbit/s", bits/1e3)
}

func packetRate(n float64) string { return fmt.Sprintf("%.0f packets/s", n) }

// micros writes microseconds in the unit that fits.
func micros(us float64) string {
	if us >= 10_000 {
		return fmt.Sprintf("%.1f ms", us/1000)
	}
	return fmt.Sprintf("%.0f µs", us)
}

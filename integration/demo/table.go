// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// row is what was measured between two workloads.
type row struct {
	from, to           *lab.Workload
	path, suite        string
	latency4, latency6 time.Duration
	rate4, rate6       float64 // bits per second
}

// table lays the rows out in columns.
func table(rows []row) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "pair\tpath\tsuite\tlatency v4\tv6\tTCP v4\tv6\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%s - %s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.from.Name(), r.to.Name(), r.path, r.suite,
			millis(r.latency4), millis(r.latency6), gigabits(r.rate4), gigabits(r.rate6))
	}
	if err := w.Flush(); err != nil { // a strings.Builder takes everything
		return err.Error()
	}
	return b.String()
}

func millis(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

func gigabits(bps float64) string { return fmt.Sprintf("%.2f Gb/s", bps/1e9) }

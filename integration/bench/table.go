// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// result is one contender's line of the tables.
type result struct {
	Name    string             `json:"name"`
	Metrics map[string]spread  `json:"metrics"`
	Ratios  map[string]float64 `json:"ratios,omitempty"` // of the medians to wireguard-go's, where it was measured
}

// results sums the samples up.
func results(all []*contender) []result {
	var base samples
	for _, c := range all {
		if c.name == wgName {
			base = c.samples
		}
	}
	rows := make([]result, 0, len(all))
	for _, c := range all {
		r := result{Name: c.name, Metrics: map[string]spread{}, Ratios: map[string]float64{}}
		for _, m := range metrics() {
			if len(c.samples[m.key]) == 0 {
				continue
			}
			r.Metrics[m.key] = summarize(c.samples[m.key])
			if b := summarize(base[m.key]); m.ratio && b.Median != 0 {
				r.Ratios[m.key] = ratio(r.Metrics[m.key].Median, b.Median)
			}
		}
		rows = append(rows, r)
	}
	return rows
}

// sheet is a table: its columns, and a line for each contender that has something to say in it.
type sheet struct {
	title string
	head  []string
	lines [][]string
}

// sheets lays the results out, one sheet for each kind that was measured.
func sheets(rows []result) []sheet {
	var out []sheet
	for _, k := range kinds() {
		s := sheet{title: k.about(), head: []string{""}}
		lines := make([][]string, len(rows))
		some := make([]bool, len(rows))
		column := func(title string, cell func(result) (string, bool)) {
			cells, used := make([]string, len(rows)), false
			for i, r := range rows {
				var ok bool
				cells[i], ok = cell(r)
				some[i], used = some[i] || ok, used || ok
			}
			if !used {
				return
			}
			s.head = append(s.head, title)
			for i := range rows {
				lines[i] = append(lines[i], cells[i])
			}
		}
		for _, m := range metrics() {
			if m.kind != k {
				continue
			}
			column(m.title, func(r result) (string, bool) {
				v, ok := r.Metrics[m.key]
				return orDash(v.text(m.digits), ok), ok
			})
			if m.ratio {
				column("/ wg-go", func(r result) (string, bool) {
					v, ok := r.Ratios[m.key]
					return orDash(fmt.Sprintf("%.2f", v), ok), ok
				})
			}
		}
		for i, r := range rows {
			if some[i] {
				s.lines = append(s.lines, append([]string{r.Name}, lines[i]...))
			}
		}
		if len(s.lines) > 0 {
			out = append(out, s)
		}
	}
	return out
}

func orDash(s string, ok bool) string {
	if !ok {
		return "-"
	}
	return s
}

// text returns the spread as the tables show it.
func (s spread) text(digits int) string {
	return fmt.Sprintf("%.*f (%.*f-%.*f)", digits, s.Median, digits, s.Min, digits, s.Max)
}

// terminal returns the sheet with its columns aligned.
func (s sheet) terminal() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, line := range append([][]string{s.head}, s.lines...) {
		fmt.Fprintf(w, "%s\t\n", strings.Join(line, "\t"))
	}
	if err := w.Flush(); err != nil { // a strings.Builder takes everything
		return err.Error()
	}
	return b.String()
}

// markdown returns the sheet as a table of Markdown.
func (s sheet) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s |\n|---|%s\n", strings.Join(s.head, " | "), strings.Repeat("---:|", len(s.head)-1))
	for _, line := range s.lines {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(line, " | "))
	}
	return b.String()
}

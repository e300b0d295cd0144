// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
)

// streamPrinter prints what a daemon tells one after another, as it comes: a line each, or JSON.
type streamPrinter[T any] struct {
	c       *cli
	json    bool
	live    bool           // JSON is printed as it comes, too, one value a line
	skipped string         // what is said of those that were left out, with %d for their number
	line    func(T) string // writes one for people
	list    []*T           // of JSON, unless live
	err     error          // the first
}

// take takes the next one, nil if there is none yet, and how many were left out before it.
func (p *streamPrinter[T]) take(next *T, skipped uint64) {
	if skipped > 0 {
		p.c.note(fmt.Sprintf(p.skipped, skipped))
	}
	if next == nil || p.err != nil {
		return
	}
	switch {
	case p.json && !p.live:
		p.list = append(p.list, next)
	case p.json:
		if p.err = json.NewEncoder(p.c.out).Encode(next); p.err != nil {
			p.err = fmt.Errorf("writing the answer: %w", p.err)
		}
	default:
		p.err = p.c.println(p.line(*next))
	}
}

// end prints what is left, given how the daemon's answer ended.
func (p *streamPrinter[T]) end(ctx context.Context, err error) error {
	if err = ended(ctx, p.live, err); err == nil {
		err = p.err
	}
	if err == nil && p.json && !p.live {
		err = p.c.printJSON(p.list)
	}
	return err
}

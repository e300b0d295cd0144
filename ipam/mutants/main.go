// SPDX-License-Identifier: Apache-2.0

// Mutants shows that the simulator of package ipam notices when a rule is broken: it breaks one line at a time (see
// list.go), builds the tests with that, and runs seeds of the simulator until one reports a violation. The source tree is
// not changed: the broken file is laid over it (go build -overlay). `make mutants` runs all of it.
//
// It fails if a mutant survives, and also if a line of the list is not in its file exactly once, so that the list cannot
// fall behind the code. Those of which it is not known that the simulator notices them are tried apart (-open).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to be undone
	}
}

func run(ctx context.Context) error {
	root := flag.String("root", ".", "the top of the source tree")
	only := flag.String("run", "", "try only the mutants whose name matches this regular expression")
	seeds := flag.Uint64("seeds", 4000, "how many seeds of the simulator a mutant may survive")
	jobs := flag.Int("j", max(1, runtime.NumCPU()), "how many mutants to try at the same time")
	list := flag.Bool("list", false, "print the list and do nothing")
	hard := flag.Bool("open", false, "try those of which it is not known that the simulator catches them")
	flag.Parse()
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	all := mutants()
	if *hard {
		all = open()
	}
	var chosen []mutant
	for _, m := range all {
		if wanted.MatchString(m.name) {
			chosen = append(chosen, m)
		}
	}
	if *list {
		for _, m := range chosen {
			fmt.Printf("%s (ipam/%s): %s\n\t- %s\n\t+ %s\n", m.name, m.file, m.rule, m.line, m.broken)
		}
		return nil
	}
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	abs, err := filepath.Abs(*root)
	if err != nil {
		return err
	}
	l := lab{root: abs, dir: dir, seeds: *seeds}
	return l.all(ctx, chosen, *jobs)
}

// all tries mutants, jobs at a time, and prints what came of each in the order of the list.
func (l *lab) all(ctx context.Context, chosen []mutant, jobs int) error {
	began := time.Now()
	results := make([]chan result, len(chosen))
	next := make(chan int)
	var wg sync.WaitGroup
	for i := range chosen {
		results[i] = make(chan result, 1)
	}
	for range jobs {
		wg.Go(func() {
			for i := range next {
				results[i] <- l.try(ctx, chosen[i])
			}
		})
	}
	wg.Go(func() {
		defer close(next)
		for i := range chosen {
			next <- i
		}
	})
	bad := 0
	for i, m := range chosen {
		r := <-results[i]
		if r.err != nil || r.violation == "" {
			bad++
		}
		fmt.Println(r.text(m, l.seeds))
	}
	wg.Wait()
	fmt.Printf("%d of %d mutants caught in %v\n", len(chosen)-bad, len(chosen), time.Since(began).Round(time.Second))
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted")
	case bad > 0:
		return fmt.Errorf("%d mutants survived or could not be tried; run one by -run NAME, with more seeds by -seeds N", bad)
	}
	return nil
}

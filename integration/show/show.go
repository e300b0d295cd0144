// SPDX-License-Identifier: Apache-2.0

// Package show is how programs that use the lab tell a person what they do: step by step, with what came of it and how long
// it took. It sees to it that everything is removed at the end, and that nothing is said of what fails because of an
// interruption. The demo and the benchmark import it.
package show

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// errStopped says that the program ended before it was through.
var errStopped = errors.New("stopped")

// Show tells what happens, line by line. It is the lab's [lab.TB]. One goroutine uses it, but for Logf.
type Show struct {
	name        string
	out, err    io.Writer
	interrupted context.Context
	began       time.Time
	failed      bool
	cleanups    []func()
}

// New returns a Show for the program called name; out gets the steps, err what went wrong. interrupted ends when the
// program is.
func New(name string, out, err io.Writer, interrupted context.Context) *Show { //nolint:revive // the context is what it is about, not the call's
	return &Show{name: name, out: out, err: err, interrupted: interrupted, began: time.Now()}
}

// Run runs f, whose end may be Fatalf's, then what was registered by Cleanup, and reports whether it failed.
func (s *Show) Run(f func()) (failed bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer s.cleanUp()
		f()
	}()
	<-done
	return s.failed
}

// Elapsed is the time since New.
func (s *Show) Elapsed() time.Duration { return time.Since(s.began) }

var _ lab.TB = (*Show)(nil)

// Helper does nothing.
func (*Show) Helper() {}

// Name returns the program's name.
func (s *Show) Name() string { return s.name }

// Failed reports whether something went wrong that nobody asked for.
func (s *Show) Failed() bool { return s.failed && s.interrupted.Err() == nil }

// Cleanup registers a function that runs at the end, last one first.
func (s *Show) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

// Logf writes a message that is not part of the show.
func (s *Show) Logf(format string, args ...any) { fmt.Fprintf(s.err, "\n"+format+"\n", args...) }

// Fatalf tells what went wrong and ends the program's part.
func (s *Show) Fatalf(format string, args ...any) {
	if s.interrupted.Err() == nil {
		fmt.Fprintf(s.err, "\n"+s.name+": "+format+"\n", args...)
	}
	s.failed = true
	runtime.Goexit()
}

func (s *Show) cleanUp() {
	for len(s.cleanups) > 0 {
		last := len(s.cleanups) - 1
		f := s.cleanups[last]
		s.cleanups = s.cleanups[:last]
		f()
	}
}

// stepWidth is how wide the description of a step is.
const stepWidth = 62

// Step does one step and prints what it is, then what came of it and how long it took. An error ends the program.
func (s *Show) Step(what string, do func() (result string, err error)) {
	start := time.Now()
	if s.interrupted.Err() != nil {
		s.Fatalf("%v", errStopped)
	}
	fmt.Fprintf(s.out, "  %-*s ", stepWidth, what)
	result, err := do()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
	fmt.Fprintf(s.out, "%6.2f s  %s\n", time.Since(start).Seconds(), result)
}

// Title prints what the steps after it are about, or anything else in paragraphs of its own.
func (s *Show) Title(format string, args ...any) { fmt.Fprintf(s.out, "\n"+format+"\n", args...) }

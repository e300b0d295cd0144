// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"
)

const (
	deadline    = 60 * time.Second // of a verb
	startWait   = 5 * time.Second  // for a daemon that is not there, or ends: it may be starting
	startPause  = 50 * time.Millisecond
	releaseWait = 10 * time.Second // for the answer to a DEL
	statusWait  = 10 * time.Second // for that to a STATUS
	maxStdin    = 1 << 20          // bytes of a configuration
	maxWarnings = 8                // lines on stderr
)

// Env is what the plugin is given by its runtime and its host.
type Env struct {
	Getenv         func(string) string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Name is the file name that the plugin runs as: the type under which a configuration means it.
	Name string
	// Connect returns the daemon with that run directory; nothing is sent before the first call.
	Connect func(runDir string) Daemon
	// Uptime is the clock of [Request] and [Release]; it may be nil.
	Uptime func() time.Duration
	// Step is told each step of ADD and DEL as it has been done; it may be nil. Tests end the plugin there.
	Step func(name string)
}

// Run does what the runtime asks for in the environment, and answers on Stdout with a result or an error of the specification. Stderr gets the
// daemon's warnings. It returns the exit code: 0, or 1 where it answered with an error. ctx ends it early; what has been begun is undone then.
func Run(ctx context.Context, env Env) int {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	c := &call{env: env, version: current}
	if env.Uptime != nil {
		c.begun = env.Uptime()
	}
	err := c.protected(ctx)
	if err == nil {
		return 0
	}
	_ = c.print(answer{Version: c.version, Error: asError(err)})
	return 1
}

// answer is the object by which an error is told.
type answer struct {
	Version string `json:"cniVersion"`
	*Error
}

// call is one call of the plugin.
type call struct {
	env     Env
	version string // in which it answers
	begun   time.Duration
	conf    config
	daemon  Daemon
	backlog *Backlog
}

// protected keeps a panic from the runtime, which would find no answer.
func (c *call) protected(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			_, _ = fmt.Fprintf(c.env.Stderr, "weft: panic: %v\n%s", p, debug.Stack())
			err = &Error{Code: codeInternal, Msg: fmt.Sprintf("the plugin has a fault: %v", p), Details: "report it with what it wrote to its standard error; " +
				"what was begun is undone by the runtime's DEL"}
		}
	}()
	return c.do(ctx)
}

func (c *call) do(ctx context.Context) error {
	verb := c.env.Getenv("CNI_COMMAND")
	if verb == "VERSION" {
		return c.answerVersion()
	}
	verbs := map[string]struct {
		since string // version of the specification that has it
		do    func(context.Context) error
	}{
		"ADD": {oldest, c.add}, "DEL": {oldest, c.del}, "CHECK": {"0.4.0", c.check}, "GC": {"1.1.0", c.gc}, "STATUS": {"1.1.0", c.status},
	}
	v, ok := verbs[verb]
	switch {
	case verb == "":
		return &Error{
			CodeEnvironment, "CNI_COMMAND is not set: nothing says what to do",
			"this is a CNI plugin, which container runtimes run; put a configuration of type " + quoted(c.env.Name) + " in their configuration directory",
		}
	case !ok:
		return &Error{CodeEnvironment, "CNI_COMMAND is " + quoted(verb), "it has to be ADD, DEL, CHECK, GC, STATUS or VERSION"}
	}
	raw, err := c.read()
	if err != nil {
		return err
	}
	c.conf, err = decodeConfig(raw)
	if err != nil {
		return err
	}
	if c.version, err = c.conf.chosenVersion(verb, v.since); err != nil {
		c.version = current
		return err
	}
	// What only ADD needs keeps nothing from being taken away: a runtime asks for that with the configuration that ADD has refused.
	if err = c.conf.read(c.env.Name, verb == "DEL" || verb == "GC"); err != nil {
		return err
	}
	c.daemon = c.env.Connect(c.conf.runDir)
	c.backlog = NewBacklog(c.conf.runDir)
	return v.do(ctx)
}

// read reads the configuration.
func (c *call) read() ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(c.env.Stdin, maxStdin+1))
	if err != nil {
		return nil, &Error{CodeIO, "the configuration cannot be read from standard input: " + oneLine(err.Error()), "the runtime has to give it there, and close it"}
	}
	if len(raw) > maxStdin {
		return nil, &Error{CodeDecode, fmt.Sprintf("the configuration on standard input is larger than %d bytes", maxStdin), "make it smaller"}
	}
	return raw, nil
}

// print writes v as one line of JSON.
func (c *call) print(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.env.Stdout.Write(append(b, '\n'))
	return err
}

func (c *call) warn(lines []string) {
	for i, l := range lines {
		if i == maxWarnings {
			_, _ = fmt.Fprintf(c.env.Stderr, "weft: and %d other warnings: see weft ps\n", len(lines)-i)
			return
		}
		_, _ = fmt.Fprintln(c.env.Stderr, "weft: "+oneLine(l))
	}
}

func (c *call) step(name string) {
	if c.env.Step != nil {
		c.env.Step(name)
	}
}

// asError is err as the runtime gets it.
func asError(err error) *Error {
	var e *Error
	if !errors.As(err, &e) {
		return &Error{Code: CodeIO, Msg: oneLine(err.Error()), Details: "see whether weft status answers on this host"}
	}
	out := *e
	if out.Code == 0 {
		out.Code = CodeFailed
	}
	out.Msg, out.Details = oneLine(out.Msg), oneLine(out.Details)
	return &out
}

// oneLine takes line breaks and other control characters out of s.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

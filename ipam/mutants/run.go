// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// mutant is a break of one rule by one line.
type mutant struct {
	name   string
	file   string // below ipam
	line   string // without its indentation; it is in the file exactly once
	broken string // what stands there instead
	rule   string // what the line is for, and the break does without
}

// apply returns the file with the line broken.
func (m mutant) apply(src []byte) ([]byte, error) {
	lines := strings.Split(string(src), "\n")
	at := -1
	for i, l := range lines {
		if strings.TrimSpace(l) != m.line {
			continue
		}
		if at >= 0 {
			return nil, fmt.Errorf("%s: ipam/%s has the line twice: %s", m.name, m.file, m.line)
		}
		at = i
	}
	if at < 0 {
		return nil, fmt.Errorf("%s: ipam/%s does not have the line any more, so the list of mutants has to follow: %s", m.name, m.file, m.line)
	}
	lines[at] = m.broken
	return []byte(strings.Join(lines, "\n")), nil
}

// lab is where mutants are built and run.
type lab struct {
	root  string // of the source
	dir   string // for what is built
	seeds uint64
}

// result is what came of a mutant.
type result struct {
	seed      uint64 // the one that has a violation; 0: none has, or it is not known
	test      string // in which
	violation string
	took      time.Duration // without building
	err       error         // it could not be tried
}

func (r result) text(m mutant, seeds uint64) string {
	switch {
	case r.err != nil:
		return fmt.Sprintf("FAILED    %-28s %v", m.name, r.err)
	case r.violation == "":
		return fmt.Sprintf("SURVIVED  %-28s %d seeds, %v", m.name, seeds, r.took.Round(100*time.Millisecond))
	}
	return fmt.Sprintf("caught    %-28s %-20s seed %-5d %6v  %s", m.name, r.test, r.seed, r.took.Round(100*time.Millisecond), r.violation)
}

// try builds the tests of package ipam with a mutant in it and runs the simulator.
func (l *lab) try(ctx context.Context, m mutant) (r result) {
	binary, err := l.build(ctx, m)
	if err != nil {
		r.err = err
		return r
	}
	defer os.Remove(binary)
	began := time.Now()
	defer func() { r.took = time.Since(began) }()
	for _, s := range []simulator{
		{"TestSimulation", "-sim.runs", l.seeds / 5},
		{"TestSimulationBiased", "-bias.runs", l.seeds},
	} {
		r.test = s.test
		cmd := exec.CommandContext(ctx, binary, "-test.run", "^"+s.test+"$", "-test.timeout", "30m", s.runs, strconv.FormatUint(s.seeds, 10))
		cmd.Dir = filepath.Join(l.root, "ipam")
		cmd.Env = append(os.Environ(), "GOGC=400")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			r.err = ctx.Err()
		case !errors.As(err, &exit):
			r.err = err
		default:
			r.seed, r.violation, r.err = verdict(out)
		}
		break
	}
	return r
}

// simulator is a test that runs seeds.
type simulator struct {
	test  string
	runs  string // the flag that says how many
	seeds uint64
}

// verdict finds the seed and the violation in what the simulator printed.
func verdict(out []byte) (seed uint64, violation string, err error) {
	found := regexp.MustCompile(`(?m)seed (\d+), step \d+: (.*)$`).FindSubmatch(out)
	if panicked := regexp.MustCompile(`(?m)^panic: .*$`).Find(out); found == nil && panicked != nil {
		return 0, string(panicked), nil
	}
	if found == nil {
		return 0, "", fmt.Errorf("the simulator failed and did not say by which seed: %s", bytes.TrimSpace(out[:min(len(out), 2000)]))
	}
	seed, err = strconv.ParseUint(string(found[1]), 10, 64)
	return seed, string(found[2]), err
}

// build returns the tests of package ipam with a mutant in it.
func (l *lab) build(ctx context.Context, m mutant) (binary string, err error) {
	original := filepath.Join(l.root, "ipam", filepath.FromSlash(m.file))
	src, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	broken, err := m.apply(src)
	if err != nil {
		return "", err
	}
	base := filepath.Join(l.dir, m.name)
	if err := os.WriteFile(base+".go", broken, 0o600); err != nil { //nolint:gosec // below the directory that the caller made
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: base + ".go"}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(base+".json", overlay, 0o600); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay", base+".json", "-o", base+".test", "./ipam")
	cmd.Dir = l.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("it does not build: %s", bytes.TrimSpace(out))
	}
	return base + ".test", nil
}

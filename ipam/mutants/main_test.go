// SPDX-License-Identifier: Apache-2.0

package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTry tries three mutants: one that breaks nothing, one that breaks a rule and one that does not build.
func TestTry(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	l := lab{root: root, dir: t.TempDir(), seeds: 20}
	m := mutant{name: "m", file: "ledger.go", line: "if !o.handed {", broken: "if !o.handed || o.handed == false {"}
	if r := l.try(t.Context(), m); r.err != nil || r.seed != 0 {
		t.Errorf("what breaks nothing: %+v", r)
	}
	m.broken = "if true {"
	if r := l.try(t.Context(), m); r.err != nil || r.seed == 0 || !strings.Contains(r.text(m, l.seeds), " speak for slot ") {
		t.Errorf("what breaks a rule: %+v", r)
	}
	m.broken = "if nothing {"
	if r := l.try(t.Context(), m); r.err == nil || !strings.Contains(r.err.Error(), "undefined: nothing") {
		t.Errorf("what does not build: %+v", r)
	}
	m.line = "x"
	if r := l.try(t.Context(), m); r.err == nil || !strings.Contains(r.err.Error(), "does not have the line any more") {
		t.Errorf("what is not there: %+v", r)
	}
}

// TestLinesAreThere verifies that every line that the list breaks is in its file exactly once, and that what stands
// there instead is Go.
func TestLinesAreThere(t *testing.T) {
	names := make(map[string]bool)
	for _, m := range append(mutants(), open()...) {
		if names[m.name] || m.name == "" || m.rule == "" {
			t.Errorf("mutant %q has no rule or the name of another one", m.name)
		}
		names[m.name] = true
		src, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(m.file)))
		if err != nil {
			t.Error(err)
			continue
		}
		broken, err := m.apply(src)
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := parser.ParseFile(token.NewFileSet(), m.file, broken, 0); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}

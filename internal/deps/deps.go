// SPDX-License-Identifier: Apache-2.0

// Package deps holds the architecture of the module as rules that a test checks: which package may import which, and
// what the pure packages must do without.
//
// It reads the source of a module tree, not its build: every file counts, whatever its build tags, and no tool has to be
// installed. Only its own test imports it.
package deps

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Module is the import path of the module whose tree is checked.
const Module = "github.com/weftnet/weft"

// A Violation is one place that breaks a rule.
type Violation struct {
	Pos  string // file:line, relative to the root of the tree
	Rule string // short name of the rule
	Text string // what is wrong
}

// String formats v like a compiler does.
func (v Violation) String() string { return v.Pos + ": " + v.Rule + ": " + v.Text }

// file is one parsed source file.
type file struct {
	pkg  string // directory, relative to the root; "." for the root itself
	test bool
	ast  *ast.File
}

// imports returns the import paths of f with their positions; those inside the module are made relative to its root.
func (f *file) imports() []imported {
	out := make([]imported, 0, len(f.ast.Imports))
	for _, spec := range f.ast.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has checked it
		}
		rel, own := strings.CutPrefix(p, Module+"/")
		out = append(out, imported{path: rel, own: own, pos: spec.Pos()})
	}
	return out
}

type imported struct {
	path string
	own  bool // inside the module
	pos  token.Pos
}

type checker struct {
	fset  *token.FileSet
	files []*file
	found []Violation
}

// Check reads the module tree below root and returns all violations, ordered by file and line. Directories named testdata
// or beginning with a dot, and nested modules, are not part of the tree. The error is about reading and parsing only.
func Check(root string) ([]Violation, error) {
	c := &checker{fset: token.NewFileSet()}
	if err := c.load(root); err != nil {
		return nil, err
	}
	for _, f := range c.files {
		c.checkImports(f)
		if !f.test {
			c.checkInit(f)
			if pure(f.pkg) {
				c.checkPure(f)
			}
		}
	}
	c.checkMeetings()
	c.checkGlobals()
	slices.SortStableFunc(c.found, func(a, b Violation) int { return strings.Compare(a.Pos, b.Pos) })
	return c.found, nil
}

func (c *checker) load(root string) error {
	tree := os.DirFS(root)
	return fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == "." {
				return nil
			}
			if d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			if _, err := fs.Stat(tree, path.Join(name, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(c.fset, name, src, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		c.files = append(c.files, &file{
			pkg: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), ast: parsed,
		})
		return nil
	})
}

func (c *checker) report(pos token.Pos, rule, format string, args ...any) {
	p := c.fset.Position(pos)
	c.found = append(c.found, Violation{
		Pos: fmt.Sprintf("%s:%d", p.Filename, p.Line), Rule: rule, Text: fmt.Sprintf(format, args...),
	})
}

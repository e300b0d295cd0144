// SPDX-License-Identifier: Apache-2.0

package deps

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestModule holds the whole module to the rules.
func TestModule(t *testing.T) {
	root := filepath.Join("..", "..")
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil || !strings.Contains(string(mod), "module "+Module+"\n") {
		t.Fatalf("%s is not the root of %s (%v)", root, Module, err)
	}
	found, err := Check(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found {
		t.Error(v)
	}
}

// TestPlanted shows that the rules bite: the tree in testdata breaks each of them in lines that say so with a comment
// "// want RULE", and is clean elsewhere.
func TestPlanted(t *testing.T) {
	root := filepath.Join("testdata", "planted")
	found, err := Check(root)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	rules := map[string]bool{}
	for _, v := range found {
		got = append(got, v.Pos+" "+v.Rule)
		rules[v.Rule] = true
	}
	want := wanted(t, root)
	slices.Sort(got)
	slices.Sort(want)
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("not found: %s", w)
		}
	}
	for _, v := range found {
		if !slices.Contains(want, v.Pos+" "+v.Rule) {
			t.Errorf("false alarm: %s", v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d violations found, %d planted", len(got), len(want))
	}
	for _, rule := range []string{"engine", "upwards", "support", "pure", "library", "meeting", "black-box", "command", "init", "global"} {
		if !rules[rule] {
			t.Errorf("nothing is planted against the rule %s", rule)
		}
	}
}

func TestUnreadable(t *testing.T) {
	if _, err := Check(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing tree passes")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.go"), []byte("package a\nfunc {"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(dir); err == nil {
		t.Error("a file with a syntax error passes")
	}
}

// wanted collects "file:line rule" of every want comment below root.
func wanted(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(f)
		for n := 1; lines.Scan(); n++ {
			if _, rules, ok := strings.Cut(lines.Text(), "// want "); ok {
				for rule := range strings.FieldsSeq(rules) {
					out = append(out, fmt.Sprintf("%s:%d %s", filepath.ToSlash(rel), n, rule))
				}
			}
		}
		return f.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

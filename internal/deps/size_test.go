// SPDX-License-Identifier: Apache-2.0

package deps

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestUnusedMethodsAreLeftOut holds the linker to leaving out the methods that nothing calls. It keeps all of every type as soon as anything that is
// reached looks a method up by a name that it learns at run time, as text/template does: that made the program 4 MB larger, and each daemon by as much
// in memory.
func TestUnusedMethodsAreLeftOut(t *testing.T) {
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-dumpdep", "-o", filepath.Join(t.TempDir(), "weft"), "./cmd/weft")
	build.Dir = filepath.Join("..", "..")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	var edges bytes.Buffer // "FROM -> TO" a line, where a symbol may be marked
	build.Stderr = &edges
	if err := build.Run(); err != nil {
		t.Fatalf("%v: %s", err, tail(edges.Bytes()))
	}
	if !bytes.Contains(edges.Bytes(), []byte("main.main -> ")) {
		t.Fatalf("the linker does not say what it keeps: %s", tail(edges.Bytes()))
	}
	var users []string
	for line := range bytes.Lines(edges.Bytes()) {
		user, _, marked := strings.Cut(string(line), " <ReflectMethod> -> ")
		if marked && !slices.Contains(users, user) {
			users = append(users, user)
		}
	}
	if len(users) > 0 {
		t.Errorf("methods are looked up by name at run time in %s; find what reaches it by go build -ldflags=-dumpdep, and do without", strings.Join(users, ", "))
	}
}

// tail returns the end of what a program printed.
func tail(b []byte) []byte { return b[max(0, len(b)-1000):] }

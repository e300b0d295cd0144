// SPDX-License-Identifier: Apache-2.0

package fault_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/fault"
)

// TestOff passes a point that is armed in a program that is built as usual.
func TestOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "armed")
	if err := os.WriteFile(path, []byte("here"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(fault.Env, path)
	fault.Point("here")
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// program passes two points and tells how far it has come.
const program = `package main

import (
	"os"

	"github.com/weftnet/weft/internal/fault"
)

func main() {
	_, _ = os.Stdout.WriteString("begun\n")
	fault.Point("one")
	fault.Point("two")
	_, _ = os.Stdout.WriteString("done\n")
}
`

// TestOn passes points in a program that is built with the tag.
func TestOn(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source, overlay, built := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay"), filepath.Join(dir, "program")
	// Only what lies in the module may import the package.
	at := filepath.Join(root, "internal", "fault", "program", "main.go")
	for path, text := range map[string]string{source: program, overlay: `{"Replace":{"` + at + `":"` + source + `"}}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-tags", "faultpoints", "-overlay", overlay, "-o", built, "./internal/fault/program")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	armed := filepath.Join(dir, "armed")
	for _, c := range []struct {
		text, out string
		fired     bool
	}{
		{"", "begun\ndone\n", false},
		{"three", "begun\ndone\n", false},
		{"on", "begun\ndone\n", false},
		{"one", "begun\n", true},
		{"two", "begun\n", true},
		{"two stop", "begun\ndone\n", true},
		{"trace", "begun\ndone\n", false},
	} {
		if err := os.WriteFile(armed, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		cmd := exec.Command(built)
		cmd.Env, cmd.Stdout = append(os.Environ(), fault.Env+"="+armed), &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stopped := false
		if strings.HasSuffix(c.text, "stop") {
			stopped = awaitStop(t, cmd.Process.Pid)
			if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}
		err := cmd.Wait()
		killed := !cmd.ProcessState.Exited()
		if out.String() != c.out || killed != (c.out == "begun\n") || stopped != strings.HasSuffix(c.text, "stop") {
			t.Errorf("%q: %v, killed: %t, stopped: %t, %q", c.text, err, killed, stopped, out.String())
		}
		if _, err := os.Stat(armed); (err != nil) != c.fired {
			t.Errorf("%q: %v", c.text, err)
		}
	}
	if b, err := os.ReadFile(armed); err != nil || string(b) != "trace\none\ntwo" {
		t.Errorf("traced: %v, %q", err, b)
	}
}

// awaitStop waits until the process is stopped, and says whether it is.
func awaitStop(t *testing.T, pid int) bool {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil {
			t.Fatal(err)
		}
		if _, after, _ := strings.Cut(string(b), ") "); strings.HasPrefix(after, "T") {
			return true
		}
	}
	return false
}

// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childMode tells the test binary to behave as one of the programs that tests run.
const childMode = "LAB_TEST_CHILD"

func TestMain(m *testing.M) {
	switch {
	case filepath.Base(os.Args[0]) == "weft":
		os.Exit(fakeWeft(os.Args[1:]))
	case os.Getenv(childMode) != "":
		os.Exit(child(os.Getenv(childMode)))
	}
	goleak.VerifyTestMain(m)
}

func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// child is a program that tests run inside a namespace.
func child(mode string) int {
	switch mode {
	case "where": // prints its namespace
		ns, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			return 1
		}
		fmt.Println(ns)
		fmt.Fprintln(os.Stderr, "on stderr")
		return 7
	case "sleep":
		time.Sleep(time.Hour)
	case "lab": // a process with a lab, to be ended from outside
		l := New(&childTB{}, Binary("/nonexistent"))
		h := l.Host("host", l.Switch("lan"))
		p, err := h.Start(Command{Path: os.Args[0], Env: []string{childMode + "=sleep"}})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		out := map[string]any{"root": l.Root(), "child": p.Pid(), "ns": inode(h.Path())}
		if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
			return 1
		}
		time.Sleep(time.Hour)
	}
	return 0
}

// childTB is a TB of a process that is no test.
type childTB struct{ cleanups []func() }

func (*childTB) Helper()                           {}
func (*childTB) Name() string                      { return "child" }
func (*childTB) Failed() bool                      { return false }
func (*childTB) Logf(format string, args ...any)   { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (*childTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (t *childTB) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }

// inode returns what names a namespace, given a link to it or to a descriptor of it.
func inode(path string) string {
	for {
		to, err := os.Readlink(path)
		if err != nil {
			return err.Error()
		}
		if !strings.HasPrefix(to, "/proc/") {
			return to
		}
		path = to
	}
}

// fakeWeft behaves as the weft binary does, as far as the lab uses it. It keeps its state in the run directory.
func fakeWeft(args []string) int {
	flag := func(name string) string {
		if i := slices.Index(args, name); i >= 0 && i+1 < len(args) {
			return args[i+1]
		}
		return ""
	}
	run := os.Getenv("WEFT_RUN_DIR")
	answer := func(v any) int {
		if _, err := os.Stat(filepath.Join(run, "up")); err != nil {
			fmt.Fprintln(os.Stderr, "no weft daemon is running")
			return 1
		}
		if json.NewEncoder(os.Stdout).Encode(v) != nil {
			return 1
		}
		return 0
	}
	switch args[0] {
	case "launch":
		fmt.Println("flags:", strings.Join(args[1:], " "), "env:", os.Getenv("FAKE"))
		if slices.Contains(args, "--refuse") {
			fmt.Fprintln(os.Stderr, "refused")
			return 1
		}
		up := filepath.Join(flag("--run-dir"), "up")
		term := make(chan os.Signal, 1)
		signal.Notify(term, unix.SIGTERM)
		if os.MkdirAll(flag("--run-dir"), 0o700) != nil || os.WriteFile(up, nil, 0o600) != nil {
			return 1
		}
		<-term
		if os.Remove(up) != nil {
			return 1
		}
		return 3
	case "status":
		return answer(map[string]any{"ready": true})
	case "attach":
		if len(inode(flag("--netns"))) == 0 {
			return 1
		}
		return answer(map[string]any{"addresses": []string{"10.32.0.5/32", "fd77::5"}})
	case "detach":
		return answer(nil)
	case "token":
		fmt.Println("secret")
	}
	return 0
}

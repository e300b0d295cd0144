// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// envFault names the file in which a fault point is armed, to programs that were built with these.
const envFault = "WEFT_FAULT"

// faulty builds the daemon and the plugin with fault points, once, and returns the directory with both. TestMain removes it.
var faulty = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(os.Getenv(envScratch), "faulty")
	for _, name := range []string{"weft", "weft-cni"} {
		build := exec.Command("go", "build", "-trimpath", "-tags", "faultpoints", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), "./cmd/"+name)
		build.Dir = ".."
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

// faultPoints finds the points in the source, each with its place: calls of fault.Point, and the steps of the plugin, each with its name.
func faultPoints(t *testing.T) map[string]string {
	t.Helper()
	points := map[string]string{}
	fset := gotoken.NewFileSet()
	for _, dir := range []string{"../cmd", "../cni", "../internal"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) != 1 || !isPoint(f.Name.Name, call.Fun) {
					return true
				}
				at := fset.Position(call.Pos()).String()
				text, ok := call.Args[0].(*ast.BasicLit)
				if !ok {
					if f.Name.Name != "cni" { // there a step is handed on
						t.Errorf("%s: the name of a fault point has to be written there", at)
					}
					return true
				}
				name, err := strconv.Unquote(text.Value)
				if err != nil {
					t.Error(err)
				}
				if before, ok := points[name]; ok {
					t.Errorf("%s: fault point %s is at %s as well", at, name, before)
				}
				points[name] = at
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return points
}

func isPoint(pkg string, f ast.Expr) bool {
	s, ok := f.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == "fault" && s.Sel.Name == "Point" || pkg == "cni" && s.Sel.Name == "step"
}

// crashHost is a host whose daemon and plugin are killed at fault points.
type crashHost struct {
	*lab.Host
	t             *testing.T
	plugin, armed string
	clean         []string // what there is without a container
	free          uint64   // addresses
}

func newCrashHost(t *testing.T) *crashHost {
	t.Helper()
	dir, err := faulty()
	if err != nil {
		t.Fatal(err)
	}
	m := &lab.Net{Lab: lab.New(t)}
	h := m.Host("host", m.Switch("lan"))
	c := &crashHost{Host: h, t: t, plugin: filepath.Join(h.Dir(), "weft"), armed: filepath.Join(h.Dir(), "armed")}
	if err := os.Symlink(filepath.Join(dir, "weft-cni"), c.plugin); err != nil {
		t.Fatal(err)
	}
	h.By(filepath.Join(dir, "weft"))
	h.Env(envFault + "=" + c.armed)
	h.Launch("--range", "10.32.0.0/24,fd77:6566:7400::/120", "--quarantine", "0")
	c.ready()
	c.clean = c.snapshot()
	c.free = ask[space](t, h, "ipam").Free
	return c
}

func (c *crashHost) ready() {
	c.t.Helper()
	if err := c.WaitReady(patience); err != nil {
		c.t.Fatal(err)
	}
}

// up starts the daemon anew if it has ended, and waits until it is ready.
func (c *crashHost) up() {
	c.t.Helper()
	if !c.Running() {
		c.Relaunch()
	}
	c.ready()
}

func (c *crashHost) snapshot() []string {
	c.t.Helper()
	lines, err := c.Snapshot()
	if err != nil {
		c.t.Fatal(err)
	}
	elements, err := c.SetElements()
	if err != nil {
		c.t.Fatal(err)
	}
	return append(lines, elements...)
}

func (c *crashHost) arm(text string) {
	c.t.Helper()
	// The daemon must not read a half of it.
	err := os.WriteFile(c.armed+".new", []byte(text), 0o600)
	if err == nil {
		err = os.Rename(c.armed+".new", c.armed)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// disarm reports whether what was armed has not happened.
func (c *crashHost) disarm() bool { return os.Remove(c.armed) == nil }

func (c *crashHost) isArmed() bool {
	_, err := os.Stat(c.armed)
	return err == nil
}

// traced returns what was passed since it was armed with "trace".
func (c *crashHost) traced() []string {
	c.t.Helper()
	b, err := os.ReadFile(c.armed)
	if err != nil {
		c.t.Fatal(err)
	}
	c.disarm()
	points := strings.Split(string(b), "\n")[1:]
	slices.Sort(points)
	return slices.Compact(points)
}

// container is one as its runtime knows it.
type container struct {
	id       string
	netns    *lab.Workload
	pristine []string // what its namespace has without Weft
	ipam     bool     // another plugin makes the interface
}

const (
	containerIf = "eth0"
	// settling is how long the kernel may take for what it does by and by.
	settling = 2 * time.Second
)

func (c *crashHost) container(id string, ipam bool) *container {
	c.t.Helper()
	k := &container{id: id, netns: c.Workload(id), ipam: ipam}
	k.look(c.t)
	return k
}

// look takes down what is in the namespace.
func (k *container) look(t *testing.T) {
	t.Helper()
	var err error
	if k.pristine, err = k.netns.Snapshot(); err != nil {
		t.Fatal(err)
	}
}

// said is what a plugin said, and how it ended.
type said struct {
	proc           *lab.Process
	stdout, stderr bytes.Buffer
}

func (s *said) String() string { return fmt.Sprintf("stdout %q, stderr %q", &s.stdout, &s.stderr) }

// start starts the plugin for a verb; more are further keys of the configuration.
func (c *crashHost) start(verb string, k *container, more ...string) *said {
	c.t.Helper()
	conf := append([]string{`"cniVersion":"1.1.0"`, `"name":"net"`}, more...)
	if k.ipam {
		conf = append(conf, `"type":"other"`, `"ipam":{"type":"weft","runDir":`+strconv.Quote(c.RunDir())+`}`)
	} else {
		conf = append(conf, `"type":"weft"`, `"runDir":`+strconv.Quote(c.RunDir()))
	}
	env := []string{envFault + "=" + c.armed, "CNI_COMMAND=" + verb, "CNI_PATH=" + filepath.Dir(c.plugin)}
	if verb != "GC" {
		env = append(env, "CNI_CONTAINERID="+k.id, "CNI_IFNAME="+containerIf, "CNI_NETNS="+k.netns.Path())
	}
	s := &said{}
	var err error
	s.proc, err = c.Start(lab.Command{
		Path: c.plugin, Env: env, Stdin: strings.NewReader("{" + strings.Join(conf, ",") + "}"), Stdout: &s.stdout, Stderr: &s.stderr,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *crashHost) startAdd(k *container) *said { return c.start("ADD", k) }
func (c *crashHost) startDel(k *container) *said { return c.start("DEL", k) }
func (c *crashHost) startGC(k *container) *said {
	return c.start("GC", k, `"cni.dev/valid-attachments":[]`)
}

// code waits until the plugin has ended, and returns its exit code.
func (c *crashHost) code(s *said) int {
	c.t.Helper()
	code, err := s.proc.Wait(verbTimeout)
	if err != nil {
		c.t.Fatal(err)
	}
	return code
}

// done is code that has to be 0.
func (c *crashHost) done(s *said) {
	c.t.Helper()
	if code := c.code(s); code != 0 {
		c.t.Fatalf("exit code %d, %v", code, s)
	}
}

// stopped reports whether the daemon is stopped.
func (c *crashHost) stopped() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Daemon().Pid()))
	_, after, _ := strings.Cut(string(b), ") ")
	return err == nil && strings.HasPrefix(after, "T")
}

// resume lets the daemon go on.
func (c *crashHost) resume() {
	c.t.Helper()
	if err := c.Daemon().Signal(unix.SIGCONT); err != nil {
		c.t.Fatal(err)
	}
}

// extra is what there is on the host and in the namespaces besides what there was without containers, with the addresses of the container as
// "V4" and "V6"; what is missing begins with a minus.
func (c *crashHost) extra(ks ...*container) []string {
	c.t.Helper()
	lines := differ("host", c.clean, c.snapshot())
	for i, k := range ks {
		now, err := k.netns.Snapshot()
		if err != nil {
			c.t.Fatal(err)
		}
		lines = append(lines, differ(fmt.Sprintf("namespace %d", i+1), k.pristine, now)...)
	}
	for _, w := range ask[[]workload](c.t, c.Host, "ps") {
		state := w.State
		if state != "up" {
			state = "not up"
		}
		lines = append(lines, fmt.Sprintf("workload with %d addresses %s", len(w.Addresses), state))
	}
	s := ask[space](c.t, c.Host, "ipam")
	for _, a := range s.Allocations {
		if a.Owner == "host" {
			continue
		}
		lines = append(lines, "addresses of "+a.Owner)
		for i, l := range lines {
			for _, addr := range a.Addresses {
				family := "V4"
				if addr.Is6() {
					family = "V6"
				}
				l = strings.ReplaceAll(l, addr.String(), family)
				l = strings.ReplaceAll(l, fmt.Sprintf("%x", addr.AsSlice()), family) // an element of a set
			}
			lines[i] = l
		}
	}
	if s.Free+uint64(len(s.Allocations)) != c.free+1 { // with the host's
		lines = append(lines, fmt.Sprintf("%d addresses are free", s.Free))
	}
	entries, err := os.ReadDir(filepath.Join(c.RunDir(), "cni"))
	if err == nil {
		lines = append(lines, fmt.Sprintf("backlog of %d entries", len(entries)))
	} else if !errors.Is(err, fs.ErrNotExist) {
		c.t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

// differ lists what is in one of two lists only.
func differ(where string, before, now []string) (lines []string) {
	counts := map[string]int{}
	for _, l := range now {
		counts[l]++
	}
	for _, l := range before {
		counts[l]--
	}
	for l, n := range counts {
		for ; n > 0; n-- {
			lines = append(lines, where+": "+l)
		}
		for ; n < 0; n++ {
			lines = append(lines, where+": -"+l)
		}
	}
	return lines
}

// is waits until there is what there should be: some of it the kernel does by and by.
func (c *crashHost) is(want []string, ks ...*container) error {
	c.t.Helper()
	var have []string
	for end := time.Now().Add(settling); ; time.Sleep(10 * time.Millisecond) {
		if have = c.extra(ks...); slices.Equal(have, want) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("there is:\n%s\nand not:\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
		}
	}
}

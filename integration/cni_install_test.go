// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/weftnet/weft/integration/lab"
)

// installed is a place where the plugin is installed.
type installed struct {
	t                    *testing.T
	root, bin, conf, run string
	armed                string
}

func newInstalled(t *testing.T) *installed {
	t.Helper()
	root := t.TempDir()
	i := &installed{t: t, root: root, bin: filepath.Join(root, "bin"), conf: filepath.Join(root, "net.d"), run: filepath.Join(root, "run"), armed: filepath.Join(root, "armed")}
	for _, dir := range []string{i.bin, i.conf} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

func (i *installed) write(path, text string) {
	i.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		i.t.Fatal(err)
	}
}

// files are the names and contents of what is there.
func (i *installed) files() map[string]string {
	i.t.Helper()
	all := map[string]string{}
	for _, dir := range []string{i.bin, i.conf} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			i.t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				i.t.Fatal(err)
			}
			all[e.Name()] = string(b)
		}
	}
	return all
}

// weft runs weft cni install or uninstall, built with fault points, and reports whether it was killed.
func (i *installed) weft(command string) (killed bool) {
	i.t.Helper()
	dir, err := faulty()
	if err != nil {
		i.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "weft"), "--run-dir", i.run, "cni", command, "--bin-dir", i.bin, "--conf-dir", i.conf)
	cmd.Env = append(os.Environ(), envFault+"="+i.armed)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && !exit.Exited() {
		return true
	}
	if err != nil {
		i.t.Fatalf("weft cni %s: %v\n%s", command, err, out)
	}
	return false
}

// sound checks what a runtime would find: a configuration that names the plugin finds it, and whole.
func (i *installed) sound() error {
	b, err := os.ReadFile(filepath.Join(i.conf, "10-weft.conflist"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil || !json.Valid(b) {
		return fmt.Errorf("the configuration: %w, %q", err, b)
	}
	if !strings.Contains(string(b), `"weft"`) {
		return nil
	}
	cmd := exec.Command(filepath.Join(i.bin, "weft"))
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
	if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "1.1.0") {
		return fmt.Errorf("the plugin of the configuration: %w, %q", err, out)
	}
	return nil
}

// TestCrashOfInstall kills weft cni install and uninstall at every step: a runtime never finds half of it, and what is done then, either of the two, puts it
// right: in the end there is what was there before, and nothing else.
func TestCrashOfInstall(t *testing.T) {
	unreached := faultPoints(t)
	maps.DeleteFunc(unreached, func(_, at string) bool { return !strings.Contains(at, "/cniinstall/") })
	points := slices.Sorted(maps.Keys(unreached))
	edit := func(i *installed) {
		conf := filepath.Join(i.conf, "10-weft.conflist")
		b, err := os.ReadFile(conf)
		if err != nil {
			t.Fatal(err)
		}
		i.write(conf, strings.Replace(string(b), `"type": "weft"`, `"type": "weft", "mtu": 1300`, 1))
	}
	remove := func(i *installed) {
		if err := os.Remove(filepath.Join(i.conf, "10-weft.conflist")); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		prepare func(*installed)
		act     string
		edited  bool
	}{
		"install":                      {func(*installed) {}, "install", false},
		"install of the configuration": {func(i *installed) { i.weft("install"); remove(i) }, "install", false},
		"uninstall":                    {func(i *installed) { i.weft("install") }, "uninstall", false},
		"uninstall of what was edited": {func(i *installed) { i.weft("install"); edit(i) }, "uninstall", true},
	} {
		for _, theirs := range []bool{true, false} {
			for _, point := range points {
				for _, then := range []string{"install", "uninstall"} {
					i := newInstalled(t)
					if theirs {
						i.write(filepath.Join(i.bin, "weft"), "#!/bin/sh\n")
						i.write(filepath.Join(i.conf, "10-weft.conflist"), "{}")
					}
					before := i.files()
					c.prepare(i)
					i.write(i.armed, point)
					if !i.weft(c.act) {
						break
					}
					delete(unreached, point)
					what := fmt.Sprintf("%s, killed at %s, then %s", name, point, then)
					if err := i.sound(); err != nil {
						t.Errorf("%s: at first: %v", what, err)
					}
					i.weft(then)
					if err := i.sound(); err != nil {
						t.Errorf("%s: %v", what, err)
					}
					if then == "install" {
						i.weft("uninstall")
					}
					after := i.files()
					if c.edited { // which is kept
						delete(after, "10-weft.conflist.edited")
					}
					if !maps.Equal(before, after) {
						t.Errorf("%s: before: %q, in the end: %q", what, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
					}
				}
			}
		}
	}
	if len(unreached) > 0 {
		t.Errorf("nothing has come to these points: %v", unreached)
	}
}

// TestInstalledPlugin installs the plugin beside those of the reference, and has a runtime use what it finds: containers come and go by it, and it
// is not taken away as long as there are any. What it has kept for the daemon goes with weft reset.
func TestInstalledPlugin(t *testing.T) {
	m := &lab.Net{Lab: lab.New(t)}
	h := m.Host("host", m.Switch("lan"))
	h.Launch()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	i := newInstalled(t)
	for _, name := range []string{"portmap", "bandwidth"} {
		b, err := os.ReadFile(filepath.Join(os.Getenv(envReference), name))
		if err != nil {
			t.Fatal(err)
		}
		i.write(filepath.Join(i.bin, name), string(b))
	}
	where := []string{"--bin-dir", i.bin, "--conf-dir", i.conf}
	done(t, h.Weft(append([]string{"cni", "install", "--from", os.Getenv(envPlugin)}, where...)...))
	n, err := libcni.LoadNetworkConf(i.conf, "weft")
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, p := range n.Plugins {
		types = append(types, p.Network.Type)
	}
	if !slices.Equal(types, []string{"weft", "portmap", "bandwidth"}) || n.CNIVersion != "1.1.0" {
		t.Errorf("version %s, plugins %q", n.CNIVersion, types)
	}
	c := withCNI(t, h)
	c.lib = libcni.NewCNIConfigWithCacheDir([]string{i.bin}, filepath.Join(h.Dir(), "cni-cache"), c)
	if err := c.lib.GetStatusNetworkList(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	p := c.added(n, "installed")
	if _, err := h.Reach(p.V4, patience); err != nil {
		t.Error(err)
	}
	uninstall := append([]string{"cni", "uninstall"}, where...)
	refused(t, h.Weft(uninstall...), "without it the runtime cannot remove them (1, see weft ps)", "--force")

	h.Kill()
	c.del(n, p) // is kept for the daemon
	kept := filepath.Join(h.RunDir(), "cni")
	if entries, err := os.ReadDir(kept); err != nil || len(entries) != 1 {
		t.Fatalf("kept: %v, %v", entries, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := h.TryWeft(ctx, "reset", "--data-dir", h.DataDir())
	if err != nil || r.Code != 0 || !strings.Contains(r.Stdout, "removed "+kept+"\n") || !strings.Contains(r.Stdout, "of workload cni/installed/eth0") {
		t.Errorf("reset: %v, exit code %d, %s%s", err, r.Code, r.Stdout, r.Stderr)
	}
	for _, dir := range []string{h.RunDir(), h.DataDir()} {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is there", dir)
		}
	}
	done(t, h.Weft(uninstall...))
	if have := slices.Sorted(maps.Keys(i.files())); !slices.Equal(have, []string{"bandwidth", "portmap"}) {
		t.Errorf("left: %q", have)
	}
}

// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// the configuration where no other plugin is.
const alone = `{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "0.3.1",
    "0.4.0",
    "1.0.0",
    "1.1.0"
  ],
  "name": "weft",
  "plugins": [
    {
      "type": "weft",
      "capabilities": {
        "ips": true,
        "mac": true
      }
    }
  ]
}
`

// place is where a test installs.
type place struct {
	t *testing.T
	Config
}

func newPlace(t *testing.T) *place {
	dir := t.TempDir()
	return &place{t: t, Config: Config{
		Plugin: filepath.Join(os.Getenv(envPlugins), "one"), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "etc", "net.d"),
	}}
}

func (p *place) plugin() string { return filepath.Join(p.BinDir, PluginName) }
func (p *place) conf() string   { return filepath.Join(p.ConfDir, ConfName) }

// write makes a file with the directories above it.
func (p *place) write(path, text string, mode fs.FileMode) {
	p.t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), mode)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// answering makes a plugin of somebody else's that knows these versions.
func (p *place) answering(name, versions string) {
	p.t.Helper()
	p.write(filepath.Join(p.BinDir, name), "#!/bin/sh\necho '{\"supportedVersions\":["+versions+"]}'\n", 0o755)
}

func (p *place) install() Report {
	p.t.Helper()
	r, err := Install(p.t.Context(), p.Config)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *place) uninstall() Report {
	p.t.Helper()
	r, err := Uninstall(p.t.Context(), p.Config)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// files is all that lies in the two directories: names, modes, contents and where symbolic links lead.
func (p *place) files() map[string]string {
	p.t.Helper()
	all := map[string]string{}
	for _, dir := range []string{p.BinDir, p.ConfDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			info, err := e.Info()
			if err != nil {
				p.t.Fatal(err)
			}
			if to, err := os.Readlink(path); err == nil {
				all[path] = "-> " + to
				continue
			}
			b, err := os.ReadFile(path)
			if err != nil {
				p.t.Fatal(err)
			}
			all[path] = fmt.Sprintf("%v %s", info.Mode(), b)
		}
	}
	return all
}

// same fails the test if the lines, in which $BIN and $CONF stand for the directories, are not these.
func (p *place) same(what string, have []string, want ...string) {
	p.t.Helper()
	text := strings.Join(have, "\n")
	text = strings.NewReplacer(p.BinDir, "$BIN", p.ConfDir, "$CONF").Replace(text)
	if text != strings.Join(want, "\n") {
		p.t.Errorf("%s:\n%s\nwant:\n%s", what, text, strings.Join(want, "\n"))
	}
}

const (
	noPortmap   = "there is no plugin $BIN/portmap, so no ports of the host for containers (hostPort): put it there and install again if they are wanted"
	noBandwidth = "there is no plugin $BIN/bandwidth, so no limits of bandwidth: put it there and install again if they are wanted"
)

// old is the warning of a plugin that takes verbs away.
func old(plugin, last, lost string) string {
	return "plugin $BIN/" + plugin + " knows versions of CNI up to " + last + ", and a configuration speaks what all of its plugins know: so runtimes do not ask Weft for " + lost +
		"; put a newer one there and install again"
}

func TestInstallAndUninstall(t *testing.T) {
	p := newPlace(t)
	r := p.install()
	p.same("done", r.Done, "installed $BIN/weft", "installed $CONF/10-weft.conflist")
	p.same("warnings", r.Warnings, noPortmap, noBandwidth)
	one, err := os.ReadFile(p.Plugin)
	if err != nil {
		t.Fatal(err)
	}
	have := p.files()
	if len(have) != 2 || have[p.plugin()] != "-rwxr-xr-x "+string(one) || have[p.conf()] != "-rw-r--r-- "+alone {
		t.Errorf("%d files; configuration: %s", len(have), have[p.conf()])
	}
	if Installed(p.BinDir) != p.plugin() {
		t.Errorf("Installed says %q", Installed(p.BinDir))
	}

	r = p.install()
	p.same("done again", r.Done, "in place already: $BIN/weft", "in place already: $CONF/10-weft.conflist")

	p.Plugin = filepath.Join(os.Getenv(envPlugins), "two")
	r = p.install()
	p.same("done by the next version", r.Done, "brought up to date: $BIN/weft", "brought up to date: $CONF/10-weft.conflist")

	r = p.uninstall()
	p.same("undone", r.Done, "removed $CONF/10-weft.conflist", "removed $BIN/weft")
	if have := p.files(); len(have) != 0 {
		t.Errorf("left: %v", have)
	}
	r = p.uninstall()
	p.same("undone again", append(r.Done, r.Warnings...))
	if Installed(p.BinDir) != "" {
		t.Error("Installed finds what is gone")
	}
	p.BinDir, p.ConfDir = filepath.Join(p.BinDir, "none"), filepath.Join(p.BinDir, "nowhere")
	r = p.uninstall()
	p.same("undone where nothing is", append(r.Done, r.Warnings...))
	if _, err := os.Stat(p.BinDir); err == nil {
		t.Error("uninstall made a directory")
	}
}

// TestChain has other plugins to put behind Weft's: the configuration speaks a version that all of them know.
func TestChain(t *testing.T) {
	for name, c := range map[string]struct {
		portmap, bandwidth string // "": is not there
		base               string
		versions, plugins  []string
		warnings           []string
	}{
		"new": {
			`"0.1.0","0.3.1","0.4.0","1.0.0","1.1.0"`, `"0.3.1","0.4.0","1.0.0","1.1.0"`, "1.0.0",
			[]string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"},
			[]string{"weft", "portmap", "bandwidth"},
			nil,
		},
		"one of before 1.1.0": {
			`"0.3.1","0.4.0","1.0.0"`, `"0.3.1","0.4.0","1.0.0","1.1.0"`, "1.0.0",
			[]string{"0.3.1", "0.4.0", "1.0.0"},
			[]string{"weft", "portmap", "bandwidth"},
			[]string{old("portmap", "1.0.0", "GC, STATUS")},
		},
		"one of before 1.0.0": {
			`"0.3.1","0.4.0","1.0.0"`, `"0.3.1","0.4.0"`, "0.4.0",
			[]string{"0.3.1", "0.4.0"},
			[]string{"weft", "portmap", "bandwidth"},
			[]string{old("portmap", "1.0.0", "GC, STATUS")}, // bandwidth takes no verb away then
		},
		"one of before 0.4.0": {
			`"0.3.1","0.4.0","1.0.0","1.1.0"`, `"0.3.1"`, "0.3.1",
			[]string{"0.3.1"},
			[]string{"weft", "portmap", "bandwidth"},
			[]string{old("bandwidth", "0.3.1", "CHECK, GC, STATUS")},
		},
		"two old ones": {
			`"0.3.1"`, `"0.3.1","0.4.0"`, "0.3.1",
			[]string{"0.3.1"},
			[]string{"weft", "portmap", "bandwidth"},
			[]string{old("portmap", "0.3.1", "CHECK, GC, STATUS")},
		},
		"bandwidth only": {
			``, `"1.0.0","1.1.0"`, "1.0.0", []string{"1.0.0", "1.1.0"}, []string{"weft", "bandwidth"}, []string{noPortmap},
		},
		"nothing in common": {
			`"0.1.0","7.0.0"`, `"1.0.0"`, "1.0.0",
			[]string{"1.0.0"},
			[]string{"weft", "bandwidth"},
			[]string{
				"plugin $BIN/portmap knows no version of CNI that Weft's knows; it is left out, so no ports of the host for containers (hostPort)",
				old("bandwidth", "1.0.0", "GC, STATUS"),
			},
		},
		"versions that are none": {
			`"one","1.1"`, `"1.1.0","1.0.0"`, "1.0.0",
			[]string{"1.0.0", "1.1.0"},
			[]string{"weft", "bandwidth"},
			[]string{"plugin $BIN/portmap does not tell which versions of CNI it knows; it is left out, so no ports of the host for containers (hostPort)"},
		},
		"nonsense": {
			`"1.0.0"`, `"`, "1.0.0",
			[]string{"1.0.0"},
			[]string{"weft", "portmap"},
			[]string{
				old("portmap", "1.0.0", "GC, STATUS"),
				"plugin $BIN/bandwidth does not tell which versions of CNI it knows; it is left out, so no limits of bandwidth",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			p.RunDir = "/run/other"
			for plugin, versions := range map[string]string{"portmap": c.portmap, "bandwidth": c.bandwidth} {
				if versions != "" {
					p.answering(plugin, versions)
				}
			}
			r := p.install()
			p.same("warnings", r.Warnings, c.warnings...)
			have, state := readConf(p.conf())
			var types []string
			for _, x := range have.Plugins {
				types = append(types, x.Type)
			}
			if state != asMade || have.CNIVersion != c.base || !slices.Equal(have.CNIVersions, c.versions) || !slices.Equal(types, c.plugins) || have.Plugins[0].RunDir != "/run/other" {
				t.Errorf("state %d, %+v", state, have)
			}
		})
	}
}

// TestKeep has files of somebody else's under both names: they are kept, and come back as they were.
func TestKeep(t *testing.T) {
	p := newPlace(t)
	p.write(p.plugin(), "#!/bin/sh\nexit 1\n", 0o700)
	p.write(filepath.Join(p.ConfDir, "theirs"), `{"plugins":[{"type":"bridge"}]}`, 0o600)
	if err := os.Symlink("theirs", p.conf()); err != nil {
		t.Fatal(err)
	}
	before := p.files()
	r := p.install()
	p.same("done", r.Done, "kept $BIN/weft, which is not Weft's, as weft.before-weft", "installed $BIN/weft",
		"kept $CONF/10-weft.conflist, which is not Weft's, as 10-weft.conflist.before-weft", "installed $CONF/10-weft.conflist")
	if !isPlugin(p.plugin()) || !isConf(p.conf()) {
		t.Error("not installed")
	}
	p.install()
	r = p.uninstall()
	p.same("undone", r.Done, "put back $CONF/10-weft.conflist, as it was before", "put back $BIN/weft, as it was before")
	if after := p.files(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("before: %v\nafter: %v", before, after)
	}
	r = p.uninstall()
	p.same("undone again", append(r.Done, r.Warnings...))
	if after := p.files(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("before: %v\nafter: %v", before, after)
	}

	// Theirs was installed over Weft's meanwhile: both stay.
	p.install()
	p.write(p.conf(), "{}", 0o644)
	r = p.uninstall()
	p.same("undone", r.Done, "put back $BIN/weft, as it was before")
	p.same("warnings", r.Warnings, "$CONF/10-weft.conflist is not Weft's and stays, and so does $CONF/10-weft.conflist.before-weft, which was there before it")
	_, err := Install(t.Context(), p.Config)
	if err == nil || !strings.HasSuffix(err.Error(), ".before-weft is Weft's, and only one of them can be kept; move one away and install again") {
		t.Errorf("error: %v", err)
	}
}

// TestEdited has a configuration that somebody has changed: it stays until it is taken away, and is not lost then.
func TestEdited(t *testing.T) {
	for name, text := range map[string]string{
		"other key":       strings.Replace(alone, `"type": "weft",`, `"type": "weft", "mtu": 1300,`, 1),
		"other plugin":    strings.Replace(alone, "  ]\n}", `    ,{"type": "tuning", "capabilities": {}}`+"\n  ]\n}", 1),
		"other name":      strings.Replace(alone, `"name": "weft"`, `"name": "-blue"`, 1),
		"other version":   strings.Replace(alone, `"cniVersion": "1.0.0"`, `"cniVersion": "0.4.0"`, 1),
		"no capabilities": `{"cniVersion":"1.0.0","name":"weft","plugins":[{"type":"weft"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			p.install()
			p.write(p.conf(), text, 0o644)
			p.Plugin = filepath.Join(os.Getenv(envPlugins), "two")
			r := p.install()
			p.same("done", r.Done, "brought up to date: $BIN/weft")
			p.same("warnings", r.Warnings, "$CONF/10-weft.conflist was edited and stays as it is; remove it and install again for a new one")
			if b, err := os.ReadFile(p.conf()); err != nil || string(b) != text {
				t.Errorf("%v: it is now %s", err, b)
			}
			r = p.uninstall()
			p.same("undone", r.Done, "kept $CONF/10-weft.conflist, which was edited, as 10-weft.conflist.edited", "removed $BIN/weft")
			if have := p.files(); len(have) != 1 || have[p.conf()+editedSuffix] != "-rw-r--r-- "+text {
				t.Errorf("left: %v", have)
			}
		})
	}
	// Written in another way it is the same.
	p := newPlace(t)
	p.install()
	p.write(p.conf(), strings.Join(strings.Fields(alone), ""), 0o644)
	r := p.install()
	p.same("done", r.Done, "in place already: $BIN/weft", "in place already: $CONF/10-weft.conflist")
}

// TestEarlier names the configurations that runtimes would take instead.
func TestEarlier(t *testing.T) {
	p := newPlace(t)
	for _, name := range []string{"05-a.conf", "10-a.conflist", "10-weft.conf", "10-weft.conflist.d", "1-z.json", "11-b.conflist", "09-note.txt", "99.conf"} {
		p.write(filepath.Join(p.ConfDir, name), "{}", 0o644)
	}
	if err := os.Mkdir(filepath.Join(p.ConfDir, "00.conf"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := p.install()
	var want []string
	for _, name := range []string{"05-a.conf", "1-z.json", "10-a.conflist", "10-weft.conf"} {
		want = append(want, "$CONF/"+name+" comes before 10-weft.conflist, and runtimes take the first one: remove it, or rename one of the two")
	}
	p.same("warnings", r.Warnings[2:], want...)
}

func TestInstallRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		make func(*place)
		want string
	}{
		"no plugin": {
			func(p *place) { p.Plugin = "/nowhere/weft-cni" },
			"the CNI plugin /nowhere/weft-cni is not there; it is built together with weft: copy weft-cni to beside it, or name its file by --from",
		},
		"another file": {func(p *place) { p.Plugin = "/bin/sh" }, "/bin/sh is not Weft's CNI plugin; name the file weft-cni by --from"},
		"a directory under its name": {
			func(p *place) { p.write(filepath.Join(p.plugin(), "x"), "", 0o600) },
			"$BIN/weft is a directory; move it away and install again",
		},
		"a file in the way": {func(p *place) { p.write(p.BinDir, "", 0o600) }, "directory $BIN cannot be made: not a directory"},
		"two of others": {
			func(p *place) {
				p.write(p.plugin(), "a", 0o700)
				p.write(p.plugin()+keptSuffix, "b", 0o700)
			},
			"neither $BIN/weft nor $BIN/weft.before-weft is Weft's, and only one of them can be kept; move one away and install again",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			c.make(p)
			r, err := Install(t.Context(), p.Config)
			if err == nil {
				t.Fatalf("it did: %v", r)
			}
			p.same("error", []string{err.Error()}, c.want)
			if len(r.Done) != 0 {
				t.Errorf("done: %v", r.Done)
			}
			if _, err := os.Stat(p.conf()); err == nil {
				t.Error("the configuration is there, the plugin is not")
			}
		})
	}
}

// TestInterrupted begins with what an installation leaves that is killed: the next one, or a removal, puts it right.
func TestInterrupted(t *testing.T) {
	theirs := "#!/bin/sh\n"
	for name, make := range map[string]func(*place){
		"plugin half written": func(p *place) { p.write(p.plugin()+newSuffix, "\x7fELF", 0o700) },
		"plugin only":         func(p *place) { p.install(); _ = os.Remove(p.conf()) },
		"configuration half written": func(p *place) {
			p.install()
			_ = os.Remove(p.conf())
			p.write(p.conf()+newSuffix, "{", 0o600)
		},
		"theirs has both names": func(p *place) {
			p.write(p.plugin(), theirs, 0o755)
			if err := os.Link(p.plugin(), p.plugin()+keptSuffix); err != nil {
				p.t.Fatal(err)
			}
		},
		"theirs is not back": func(p *place) {
			p.write(p.plugin(), theirs, 0o755)
			p.install()
			_ = os.Remove(p.plugin())
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, first := range []bool{true, false} {
				p := newPlace(t)
				make(p)
				want := 0
				if strings.HasPrefix(name, "theirs") {
					want = 1
				}
				if first {
					p.install()
					if have := p.files(); len(have) != 2+want || !isPlugin(p.plugin()) || !isConf(p.conf()) {
						t.Errorf("installed: %v", len(have))
					}
				}
				p.uninstall()
				var have []string
				for _, dir := range []string{p.BinDir, p.ConfDir} {
					entries, _ := os.ReadDir(dir)
					for _, e := range entries {
						have = append(have, e.Name())
					}
				}
				if len(have) != want {
					t.Errorf("left: %v", have)
				}
				if want == 1 {
					if b, err := os.ReadFile(p.plugin()); err != nil || string(b) != theirs {
						t.Errorf("theirs: %v, %q", err, b)
					}
				}
			}
		})
	}
}

// TestUpgradeWhileCalled replaces the plugin and the configuration again and again while both are in use: no call fails, and nothing is
// ever half there.
func TestUpgradeWhileCalled(t *testing.T) {
	p := newPlace(t)
	p.install()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var calls, readings int
	wg.Go(func() {
		for ; ctx.Err() == nil; calls++ {
			cmd := exec.Command(p.plugin())
			out, err := cmd.Output()
			if err != nil || !json.Valid(out) {
				t.Errorf("call %d: %v, %q", calls, err, out)
				return
			}
		}
	})
	wg.Go(func() {
		for ; ctx.Err() == nil; readings++ {
			if b, err := os.ReadFile(p.conf()); err != nil || !json.Valid(b) {
				t.Errorf("reading %d: %v, %q", readings, err, b)
				return
			}
		}
	})
	for i := range 40 {
		p.Plugin = filepath.Join(os.Getenv(envPlugins), []string{"two", "one"}[i%2])
		p.RunDir = fmt.Sprintf("/run/%d", i)
		r := p.install()
		p.same("done", r.Done, "brought up to date: $BIN/weft", "brought up to date: $CONF/10-weft.conflist")
	}
	cancel()
	wg.Wait()
	t.Logf("%d calls and %d readings while it was installed 40 times", calls, readings)
	if calls < 40 {
		t.Error("that is too few to tell")
	}
}

// TestAtOnce installs and uninstalls at once: in the end it is as the last one has left it.
func TestAtOnce(t *testing.T) {
	p := newPlace(t)
	p.write(p.plugin(), "theirs", 0o755)
	p.install()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			for range 5 {
				var err error
				if i%2 == 0 {
					_, err = Install(t.Context(), p.Config)
				} else {
					_, err = Uninstall(t.Context(), p.Config)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p.uninstall()
	if have := p.files(); len(have) != 1 || have[p.plugin()] != "-rwxr-xr-x theirs" {
		t.Errorf("left: %v", have)
	}
}

// TestSameDirectory has both files in one directory, by two paths: it does not wait for itself.
func TestSameDirectory(t *testing.T) {
	p := newPlace(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(p.BinDir, link); err != nil {
		t.Fatal(err)
	}
	p.write(filepath.Join(p.BinDir, "x"), "", 0o600)
	p.ConfDir = link
	p.install()
	p.uninstall()
}

// TestWaits finds the directory in use: it waits, and not for ever.
func TestWaits(t *testing.T) {
	p := newPlace(t)
	p.install()
	d, err := openDir(t.Context(), p.BinDir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Uninstall(ctx, p.Config)
	if err == nil {
		t.Fatal("it did not wait")
	}
	p.same("error", []string{err.Error()}, "directory $BIN is in use by another weft cni install or uninstall; try again when that has ended")
	done := make(chan error, 1)
	go func() {
		_, err := Uninstall(t.Context(), p.Config)
		done <- err
	}()
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// FuzzConf reads configurations: whatever Weft takes for its own it would write so.
func FuzzConf(f *testing.F) {
	f.Add([]byte(alone))
	f.Add([]byte(`{"plugins":[{"type":"weft"}]}`))
	f.Add([]byte(`{"plugins":[null]}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), ConfName)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, state := readConf(path)
		if state != asMade {
			return
		}
		text, err := c.text()
		if err != nil {
			t.Fatal(err)
		}
		var again conf
		if err := json.NewDecoder(text).Decode(&again); err != nil || !again.equal(c) {
			t.Errorf("%v: %+v became %+v", err, c, again)
		}
	})
}

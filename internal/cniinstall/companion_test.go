// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOwnPortmap names a plugin for ports of the host, as the image does: it is installed under a name of Weft's own, taken
// rather than another one, and goes with Weft.
func TestOwnPortmap(t *testing.T) {
	p := newPlace(t)
	image := t.TempDir()
	plugin, err := os.ReadFile(p.Plugin)
	if err != nil {
		t.Fatal(err)
	}
	beside := func(name string) string { return filepath.Join(image, name) }
	answer := func(path, versions string) {
		p.write(path, "#!/bin/sh\nprintf '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":["+versions+"]}'\n", 0o755)
	}
	p.write(beside("weft-cni"), string(plugin), 0o755)
	answer(beside("portmap"), `"1.0.0"`)
	p.Plugin, p.Portmap = beside("weft-cni"), beside("portmap")
	p.answering("portmap", `"0.4.0"`)
	if err := os.MkdirAll(p.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	theirs := p.files()
	types := func() (all []string) {
		c, state := readConf(p.conf())
		if state != asMade {
			t.Errorf("the configuration's state is %d", state)
		}
		for _, x := range c.Plugins {
			all = append(all, x.Type)
		}
		return all
	}

	r := p.install()
	p.same("done", r.Done, "installed $BIN/weft", "installed $BIN/weft-portmap", "installed $CONF/10-weft.conflist")
	if got := types(); !slices.Equal(got, []string{"weft", "weft-portmap"}) {
		t.Errorf("chained are %q", got)
	}
	r = p.install()
	p.same("done again", r.Done, "in place already: $BIN/weft", "in place already: $BIN/weft-portmap", "in place already: $CONF/10-weft.conflist")
	answer(beside("portmap"), `"1.0.0","1.1.0"`)
	r = p.install()
	p.same("done by the next version", r.Done, "in place already: $BIN/weft", "brought up to date: $BIN/weft-portmap", "brought up to date: $CONF/10-weft.conflist")
	r = p.uninstall()
	p.same("undone", r.Done, "removed $CONF/10-weft.conflist", "removed $BIN/weft", "removed $BIN/weft-portmap")
	if left := p.files(); !maps.Equal(left, theirs) {
		t.Errorf("left: %v, want %v", left, theirs)
	}

	r, err = InstallPlugin(t.Context(), p.Config)
	if err != nil {
		t.Fatal(err)
	}
	p.same("done without a configuration", r.Done, "installed $BIN/weft", "installed $BIN/weft-portmap")
}

// TestPortmapUnasked has a plugin for ports of the host beside Weft's that nobody has named, and may have come from anybody: it is neither run nor
// installed.
func TestPortmapUnasked(t *testing.T) {
	p := newPlace(t)
	plugin, err := os.ReadFile(p.Plugin)
	if err != nil {
		t.Fatal(err)
	}
	beside := t.TempDir()
	p.Plugin = filepath.Join(beside, "weft-cni")
	p.write(p.Plugin, string(plugin), 0o755)
	ran := filepath.Join(beside, "ran")
	p.write(filepath.Join(beside, "portmap"), "#!/bin/sh\n: > "+ran+"\n", 0o755)
	r := p.install()
	p.same("done", r.Done, "installed $BIN/weft", "installed $CONF/10-weft.conflist")
	p.same("warnings", r.Warnings, noPortmap, noBandwidth)
	if _, err := os.Stat(ran); err == nil {
		t.Error("it was run")
	}
}

// TestPortmapRefused names plugins for ports of the host that somebody else may have put there, or may change: none is run or installed.
func TestPortmapRefused(t *testing.T) {
	const who = "the plugin for ports of the host $FILE "
	for name, c := range map[string]struct {
		make func(p *place, file string) error
		want string
	}{
		"not there": {func(*place, string) error { return nil }, who + "is not there; it is portmap of the containernetworking plugins: name its file by --portmap"},
		"a link": {
			func(p *place, file string) error {
				p.answering("x", "")
				return os.Symlink(filepath.Join(p.BinDir, "x"), file)
			},
			who + "is a symbolic link, which leads elsewhere when somebody wants it to; name the file itself by --portmap",
		},
		"a pipe":      {func(_ *place, file string) error { return unix.Mkfifo(file, 0o700) }, who + "is no file; name that of portmap by --portmap"},
		"a directory": {func(_ *place, file string) error { return os.Mkdir(file, 0o700) }, who + "is no file; name that of portmap by --portmap"},
		"another user's": {
			func(p *place, file string) error {
				p.write(file, "#!/bin/sh\n", 0o755)
				return os.Chown(file, 12345, 0)
			},
			who + "belongs to another user, and would be run as root; see what it is, and make it root's: chown root $FILE",
		},
		"writable by a group": {
			func(p *place, file string) error { p.write(file, "#!/bin/sh\n", 0o755); return os.Chmod(file, 0o775) },
			who + "may be changed by other users (mode 0775), and would be run as root; see what it is, then: chmod go-w $FILE",
		},
		"writable by all": {
			func(p *place, file string) error { p.write(file, "#!/bin/sh\n", 0o755); return os.Chmod(file, 0o757) },
			who + "may be changed by other users (mode 0757), and would be run as root; see what it is, then: chmod go-w $FILE",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			p.Portmap = filepath.Join(t.TempDir(), "file")
			if err := c.make(p, p.Portmap); err != nil {
				t.Fatal(err)
			}
			for _, install := range []func() (Report, error){
				func() (Report, error) { return Install(t.Context(), p.Config) },
				func() (Report, error) { return InstallPlugin(t.Context(), p.Config) },
			} {
				_, err := install()
				if want := strings.ReplaceAll(c.want, "$FILE", p.Portmap); err == nil || err.Error() != want {
					t.Errorf("got: %v\nwant: %s", err, want)
				}
				if _, err := os.Lstat(filepath.Join(p.BinDir, portmapName)); err == nil {
					t.Error("it is installed")
				}
			}
		})
	}
}

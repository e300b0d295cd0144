// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestOwnPortmap has a plugin for ports of the host beside Weft's, as in the image: it is installed under a name of Weft's own, taken
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
	p.Plugin = beside("weft-cni")
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

// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestLinks has links of somebody else's under both names that lead to files as Weft makes them: they are not Weft's.
func TestLinks(t *testing.T) {
	p := newPlace(t)
	p.install()
	elsewhere := t.TempDir()
	for name, path := range map[string]string{"plugin": p.plugin(), "conf": p.conf()} {
		to := filepath.Join(elsewhere, name)
		if err := errors.Join(os.Rename(path, to), os.Symlink(to, path)); err != nil {
			t.Fatal(err)
		}
	}
	before := p.files()
	if got := Installed(p.BinDir); got != "" {
		t.Errorf("Installed says %s", got)
	}
	r := p.install()
	p.same("done", r.Done, "kept $BIN/weft, which is not Weft's, as weft.before-weft", "installed $BIN/weft")
	p.same("warnings", r.Warnings, "$CONF/10-weft.conflist was edited and stays as it is; remove it and install again for a new one")
	if after := p.files(); after[p.conf()] != before[p.conf()] || after[p.plugin()+keptSuffix] != before[p.plugin()] {
		t.Errorf("before: %v\nafter: %v", before, after)
	}
	r = p.uninstall()
	p.same("undone", r.Done, "kept $CONF/10-weft.conflist, which was edited, as 10-weft.conflist.edited", "put back $BIN/weft, as it was before")
	after := p.files()
	if len(after) != 2 || after[p.plugin()] != before[p.plugin()] || after[p.conf()+editedSuffix] != before[p.conf()] {
		t.Errorf("before: %v\nafter: %v", before, after)
	}
	p.uninstall()
	if again := p.files(); fmt.Sprint(again) != fmt.Sprint(after) {
		t.Errorf("uninstalled again: %v", again)
	}
	for _, name := range []string{"plugin", "conf"} {
		if _, err := os.Stat(filepath.Join(elsewhere, name)); err != nil {
			t.Error(err)
		}
	}
}

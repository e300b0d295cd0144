// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSharedByRuntimes keeps runtimes that share a host from taking each other's containers away by GC: none does any, or each has a network of another name. What
// was said once stays when it is not said again, as at an upgrade.
func TestSharedByRuntimes(t *testing.T) {
	p := newPlace(t)
	yes, no := true, false
	for _, c := range []struct {
		say       string
		network   string
		disableGC *bool
		name      string // that runtimes read then
		noGC      bool
		done      string
		warning   string
	}{
		{"nothing", "", nil, "weft", false, "installed", ""},
		{"no GC", "", &yes, "weft", true, "brought up to date:", ""},
		{"nothing more", "", nil, "weft", true, "in place already:", ""},
		{"another name", "weft-podman", nil, "weft-podman", true, "brought up to date:", "the network was called weft: containers that are in it stay there until they are removed, and no GC of weft-podman sees to them"},
		{"nothing more", "", nil, "weft-podman", true, "in place already:", ""},
		{"GC again", "", &no, "weft-podman", false, "brought up to date:", ""},
		{"both", "weft", &yes, "weft", true, "brought up to date:", "the network was called weft-podman: containers that are in it stay there until they are removed, and no GC of weft sees to them"},
	} {
		p.Network, p.DisableGC = c.network, c.disableGC
		r := p.install()
		p.same(c.say+": done", r.Done[1:], c.done+" $CONF/10-weft.conflist")
		var warnings []string
		for _, w := range r.Warnings {
			if !strings.HasPrefix(w, "there is no plugin") {
				warnings = append(warnings, w)
			}
		}
		if got := strings.Join(warnings, "\n"); got != c.warning {
			t.Errorf("%s: warnings %q, want %q", c.say, got, c.warning)
		}
		b, err := os.ReadFile(p.conf())
		if err != nil {
			t.Fatal(err)
		}
		var read struct { // as libcni has it
			Name      string `json:"name"`
			DisableGC bool   `json:"disableGC"`
		}
		if err := json.Unmarshal(b, &read); err != nil {
			t.Fatal(err)
		}
		if read.Name != c.name || read.DisableGC != c.noGC {
			t.Errorf("%s: a runtime reads network %s, without GC: %v; want %s, %v", c.say, read.Name, read.DisableGC, c.name, c.noGC)
		}
	}
	r := p.uninstall()
	p.same("undone", r.Done, "removed $CONF/10-weft.conflist", "removed $BIN/weft")
}

func TestNetworkRefused(t *testing.T) {
	for name, want := range map[string]string{
		"two words":              `"two words" is no name of a network: it consists of letters, digits and _ . - and begins with a letter or digit`,
		"-x":                     `"-x" is no name of a network: it consists of letters, digits and _ . - and begins with a letter or digit`,
		strings.Repeat("x", 201): "the name of the network has 201 bytes; 200 are the most",
	} {
		p := newPlace(t)
		p.Network = name
		r, err := Install(t.Context(), p.Config)
		if err == nil || err.Error() != want || len(r.Done) != 0 {
			t.Errorf("%v, %v, want %s", r.Done, err, want)
		}
		if all, _ := filepath.Glob(filepath.Join(p.BinDir, "*")); len(all) != 0 {
			t.Errorf("there is %q", all)
		}
	}
}

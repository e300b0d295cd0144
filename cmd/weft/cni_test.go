// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
	"github.com/weftnet/weft/internal/store"
)

// TestCNIInstall installs a plugin that does not run here: the command line is told, and nothing was changed. What an installation
// does is tested in internal/cniinstall.
func TestCNIInstall(t *testing.T) {
	dir := t.TempDir()
	where := []string{"--bin-dir", filepath.Join(dir, "bin"), "--conf-dir", filepath.Join(dir, "conf")}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("x"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args      []string
		out, errs string
		code      int
	}{
		{[]string{"install", "--from", text}, "", "weft: " + text + " is not Weft's CNI plugin; name the file weft-cni by --from\n", exitFailed},
		{[]string{"uninstall", "--data-dir", filepath.Join(dir, "data")}, "the CNI plugin is not installed (in " + where[1] + " and " + where[3] + ")\n", "", exitDone},
		{[]string{"install", "--network", ""}, "", "weft: \"\" is no name of a network: it consists of letters, digits and _ . - and begins with a letter or digit\nweft: try: weft help\n", exitUsage},
		{[]string{"install", "x"}, "", "weft: unknown command \"x\" for \"weft cni install\"\nweft: try: weft help\n", exitUsage},
	} {
		args := append([]string{"cni"}, append(c.args, where...)...)
		if code, out, errs := run(t, dir, args...); code != c.code || out != c.out || errs != c.errs {
			t.Errorf("weft %s: exit %d, %q, %q", strings.Join(args, " "), code, out, errs)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v: %v", err, entries)
	}
	// Without --from the plugin is the one beside weft, which for this test there is not.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	code, _, errs := run(t, dir, append([]string{"cni", "install"}, where...)...)
	if want := "weft: the CNI plugin " + filepath.Join(filepath.Dir(exe), "weft-cni") + " is not there; it is built together with weft: copy weft-cni to beside it, or name its file by --from\n"; code != exitFailed || errs != want {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// TestCNIUninstallRefuses has containers that nobody could remove any more.
func TestCNIUninstallRefuses(t *testing.T) {
	d := daemon()
	dir := apitest.Serve(t, d)
	bin := t.TempDir()
	for _, id := range []string{"cni/0123abcd", "cni/4567cdef", "4:4026532000"} {
		if _, err := d.Attach(t.Context(), api.AttachRequest{Netns: id, IfName: "eth0"}); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"cni", "uninstall", "--bin-dir", bin, "--conf-dir", bin}
	want := "weft: containers still have interfaces or addresses by the plugin, and without it the runtime cannot remove them (2, see weft ps); remove them first, or give --force\n"
	if code, out, errs := run(t, dir, args...); code != exitFailed || out != "" || errs != want {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	want = "the CNI plugin is not installed (in " + bin + " and " + bin + ")\n"
	if code, out, errs := run(t, dir, append(args, "--force")...); code != exitDone || out != want || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

// TestCNIUninstallWithoutDaemon has containers, and no daemon that could tell of them: what is not known is not taken for none.
func TestCNIUninstallWithoutDaemon(t *testing.T) {
	dir, data := t.TempDir(), filepath.Join(t.TempDir(), "data")
	bin := t.TempDir()
	args := []string{"cni", "uninstall", "--bin-dir", bin, "--conf-dir", bin, "--data-dir", data}
	none := "the CNI plugin is not installed (in " + bin + " and " + bin + ")\n"
	check := func(what string, args []string, wantCode int, wantOut, wantErr string) {
		t.Helper()
		if code, out, errs := run(t, dir, args...); code != wantCode || out != wantOut || errs != wantErr {
			t.Errorf("%s: exit %d, %q, %q", what, code, out, errs)
		}
	}
	check("no state", args, exitDone, none, "")
	st, err := store.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Update(func(tx *store.Tx) error { return tx.Put(store.Workloads, "cni/a/eth0", []byte("{}")) }); err != nil {
		t.Fatal(err)
	}
	const unknown = "weft: whether containers have interfaces or addresses by the plugin, without which the runtime cannot remove them, is not known: "
	check("a daemon elsewhere", args, exitFailed, "", unknown+"no daemon answers in "+dir+", but one has the data directory "+data+"; name its --run-dir, or give --force if there are none\n")
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	check("containers", args, exitFailed, "",
		"weft: containers still have interfaces or addresses by the plugin, and without it the runtime cannot remove them (1, by the state in "+data+", as no daemon runs); remove them first, or give --force\n")
	check("by force", append(args, "--force"), exitDone, none, "")

	// The configuration names the daemon whom the plugin asks.
	d := daemon()
	other := apitest.Serve(t, d)
	if _, err := d.Attach(t.Context(), api.AttachRequest{Netns: "cni/b/eth0", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	conf := `{"name":"weft","plugins":[{"type":"tuning"},{"type":"weft","runDir":"` + other + `"}]}`
	if err := os.WriteFile(filepath.Join(bin, "10-weft.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	check("containers of the daemon of the configuration", args, exitFailed, "",
		"weft: containers still have interfaces or addresses by the plugin, and without it the runtime cannot remove them (1, see weft ps); remove them first, or give --force\n")
}

// TestPortmapBeside finds the plugin for ports of the host that the image has beside weft.
func TestPortmapBeside(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "portmap")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := portmapBeside(); got != "" {
		t.Errorf("beside the test there is %s", got)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	beside := filepath.Join(filepath.Dir(exe), "portmap")
	if err := os.Symlink(file, beside); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(beside) })
	if got := portmapBeside(); got != beside {
		t.Errorf("got %q, want %s, which is looked at where it is installed", got, beside)
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// envSettings has the test binary make a directory read-only in a mount namespace of its own, and then try to make it writable.
const envSettings = "WEFT_TEST_SETTINGS"

// TestWritableSettings has a directory that is mounted read-only, as containers have /proc/sys: it becomes writable in the container alone.
func TestWritableSettings(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mount namespaces need root")
	}
	if dir := os.Getenv(envSettings); dir != "" {
		if err := inContainer(dir); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := t.TempDir()
	run := func() (string, error) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWritableSettings$", "-test.v")
		cmd.Env = append(os.Environ(), envSettings+"="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "written")); err != nil {
		t.Errorf("nothing was written: %v", err)
	}
	if err := writableSettings(filepath.Join(dir, "none")); err == nil || !strings.HasPrefix(err.Error(), "looking at ") {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// inContainer is the part in the namespace.
func inContainer(dir string) error {
	for _, m := range []struct {
		source, target string
		flags          uintptr
	}{{"", "/", unix.MS_REC | unix.MS_PRIVATE}, {dir, dir, unix.MS_BIND}, {"", dir, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY}} {
		if err := unix.Mount(m.source, m.target, "", m.flags, ""); err != nil {
			return err
		}
	}
	file := filepath.Join(dir, "written")
	if err := os.WriteFile(file, nil, 0o600); err == nil {
		return os.ErrExist // it is not read-only
	}
	for range 2 { // the second time there is nothing to do
		if err := writableSettings(dir); err != nil {
			return err
		}
	}
	return os.WriteFile(file, nil, 0o600)
}

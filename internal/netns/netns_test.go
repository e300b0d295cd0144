// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAt(t *testing.T) {
	a, err := At("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	b, err := At(fmt.Sprintf("/proc/%d/ns/net", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if a != b || a == "" {
		t.Errorf("%q by one path, %q by another", a, b)
	}
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if string(a) != want {
		t.Errorf("got %q, the kernel says %q", a, want)
	}
}

func TestAtRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		fifo:                      fifo + " is no network namespace; give the path of one, such as /run/netns/NAME or /proc/PID/ns/net",
		file:                      file + " is no network namespace; give the path of one, such as /run/netns/NAME or /proc/PID/ns/net",
		"/proc/self/ns/mnt":       "/proc/self/ns/mnt is no network namespace; give the path of one, such as /run/netns/NAME or /proc/PID/ns/net",
		"/run/netns/weft-nothing": "/run/netns/weft-nothing does not exist, so it is no network namespace; give the path of one, such as /run/netns/NAME",
		"/proc/999999999/ns/net":  "there is no process 999999999, so /proc/999999999/ns/net is no network namespace; give the pid of one that runs",
	} {
		done := make(chan error, 1)
		go func() { // which whoever opens a FIFO would not leave
			_, err := At(path)
			done <- err
		}()
		var err error
		select {
		case err = <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it is still being opened", path)
		}
		if !errors.Is(err, ErrNotNetns) || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", path, err, want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

func TestInput(t *testing.T) {
	r, w := pipe(t)
	if _, err := w.WriteString("ab"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(&input{fd: int(r.Fd()), until: time.Now().Add(20 * time.Millisecond)}); string(b) != "ab" || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a pipe that stays open: %q, %v", b, err)
	}
	_ = w.Close()
	if b, err := io.ReadAll(newInput(int(r.Fd()), false)); len(b) != 0 || err != nil {
		t.Errorf("a pipe that was closed: %q, %v", b, err)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("cd"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(newInput(int(f.Fd()), true)); string(b) != "cd" || err != nil {
		t.Errorf("a file: %q, %v", b, err)
	}
	_ = f.Close()
	if b, err := io.ReadAll(newInput(1<<20, false)); len(b) != 0 || !errors.Is(err, unix.EBADF) {
		t.Errorf("a descriptor that is none: %q, %v", b, err)
	}
	terminal, err := os.Open("/dev/ptmx")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = terminal.Close() }()
	if b, err := io.ReadAll(newInput(int(terminal.Fd()), true)); len(b) != 0 || err != nil {
		t.Errorf("VERSION at a terminal: %q, %v", b, err)
	}
}

func TestOutput(t *testing.T) {
	r, w := pipe(t)
	if err := unix.SetNonblock(int(w.Fd()), true); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789"), 50_000) // more than a pipe holds
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(r)
		got <- b
	}()
	if n, err := output(w.Fd()).Write(want); n != len(want) || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	_ = w.Close()
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("%d bytes came, not all as they were written", len(b))
	}
	r2, w2 := pipe(t)
	_ = r2.Close()
	if n, err := output(w2.Fd()).Write(want); n != 0 || !errors.Is(err, unix.EPIPE) {
		t.Errorf("to nobody: wrote %d, %v", n, err)
	}
}

// TestOutputUnread writes to pipes that nobody reads, of which one blocks: it gives up in time.
func TestOutputUnread(t *testing.T) {
	for name, nonblock := range map[string]bool{"blocking": false, "non-blocking": true} {
		t.Run(name, func(t *testing.T) {
			_, w := pipe(t)
			fd := int(w.Fd()) // which makes it blocking
			if err := unix.SetNonblock(fd, nonblock); err != nil {
				t.Fatal(err)
			}
			type result struct {
				n   int
				err error
			}
			got := make(chan result, 1)
			go func() {
				n, err := output(fd).write(make([]byte, 1<<20), time.Now().Add(50*time.Millisecond))
				got <- result{n, err}
			}()
			select {
			case r := <-got:
				if r.n < 4096 || r.n >= 1<<20 || !errors.Is(r.err, os.ErrDeadlineExceeded) {
					t.Errorf("wrote %d, %v", r.n, r.err)
				}
			case <-time.After(20 * time.Second):
				t.Error("it is still writing")
			}
		})
	}
}

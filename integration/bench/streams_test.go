// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// What counts is what the receiver has read, not what waits for it.
func TestHasRead(t *testing.T) {
	b, c := bareLink(t)
	clients, servers, err := connect(b.ctx, c.from, c.to, c.addr, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(clients, servers)
	s := &streaming{}
	f, err := unwatched(servers[0])
	if err != nil {
		t.Fatal(err)
	}
	s.drains = append(s.drains, f)
	defer s.stop()
	const sent, read = 5000, 3000
	if _, err := clients[0].Write(make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	if err := servers[0].SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	for want, n := range []int64{0, read} {
		if want > 0 {
			if _, err := io.ReadFull(servers[0], make([]byte, read)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := s.received(); got != n || err != nil {
			t.Errorf("%d of %d bytes are read, it says %d, %v", n, sent, got, err)
		}
	}
}

// Who reads ends with the stream, and all are gone when the measurement is over.
func TestStreamsEnd(t *testing.T) {
	b, c := bareLink(t)
	s, err := startStreams(b.ctx, c, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	if len(s.ends) != 4 {
		t.Fatalf("%d programs", len(s.ends))
	}
	drain, source := s.ends[0], s.ends[1]
	source.Kill()
	if code, err := drain.Wait(within); code != 0 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
	s.stop()
	for i, p := range s.ends {
		select {
		case <-p.Done():
		default:
			t.Errorf("program %d still runs", i)
		}
	}
}

func TestStreamUsage(t *testing.T) {
	for _, name := range []string{sourceCommand, drainCommand} {
		var out, errs strings.Builder
		if code := part(name)([]string{"-speed", "1"}, &out, &errs); code != 2 || !strings.Contains(errs.String(), "flag provided but not defined") {
			t.Errorf("%s: code %d, %s", name, code, errs.String())
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	source := exec.Command(self, sourceCommand)
	source.Stdin = file
	out, err := source.CombinedOutput()
	var failed *exec.ExitError
	if want := "bench source: its standard input is not an end of a stream: bad file descriptor\n"; !errors.As(err, &failed) || failed.ExitCode() != 1 || string(out) != want {
		t.Errorf("%v, %q, want %q", err, out, want)
	}
}

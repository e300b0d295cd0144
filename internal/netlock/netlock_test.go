// SPDX-License-Identifier: Apache-2.0

package netlock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func testName(t *testing.T) string { return fmt.Sprintf("@weft-test/%d/%s", os.Getpid(), t.Name()) }

func TestSecondIsToldWhoHoldsIt(t *testing.T) {
	name := testName(t)
	first, err := take(t.Context(), name, Holder{PID: 4711, Socket: "/run/weft/weft.sock"})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err = take(t.Context(), name, Holder{PID: 2})
		var te *TakenError
		want := "a weft daemon already runs in this network namespace (pid 4711, socket /run/weft/weft.sock); stop it (weft stop) or use it"
		if !errors.As(err, &te) || err.Error() != want {
			t.Fatalf("got  %v\nwant %s", err, want)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := take(t.Context(), name, Holder{})
	if err != nil {
		t.Fatalf("the lock was not given up: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestHolderThatIsNoDaemon(t *testing.T) {
	name := testName(t)
	ln, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		if c, err := ln.Accept(); err == nil {
			_, _ = c.Write([]byte("hello"))
			_ = c.Close()
		}
	}()
	_, err = take(t.Context(), name, Holder{})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d holds the lock", os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

// Whoever launches right after a kill -9 is not refused because of a process that the kernel has not cleared away yet.
func TestHolderThatEnds(t *testing.T) {
	name := testName(t)
	ln, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if c, err := ln.Accept(); err == nil {
			_ = c.Close() // without a word
		}
		time.Sleep(100 * time.Millisecond)
		_ = ln.Close() // whoever waits to be accepted is reset
	}()
	l, err := take(t.Context(), name, Holder{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

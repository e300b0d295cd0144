// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// A daemon that is killed while it is asked.
func TestDaemonEndsBeforeItAnswers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, SocketName)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = l.Close() }()
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			_, _ = c.Read(buf) // a socket that is closed with something unread in it resets
			_ = c.Close()
		}
	})
	_, err = NewClient(dir).Detach(t.Context(), DetachRequest{Netns: "/n", IfName: "eth0"})
	want := fmt.Sprintf("the daemon on %s ended before it answered, and has done this or not; start it if it does not run, and repeat this: EOF", path)
	if err == nil || err.Error() != want || !errors.Is(err, io.EOF) {
		t.Errorf("error %v, want %s", err, want)
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// weftBinary is the one that the environment names, or is built.
func weftBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("WEFT_BIN"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "weft")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", path, "./cmd/weft")
	build.Dir = filepath.Join("..", "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building weft: %v\n%s", err, out)
	}
	return path
}

// Every way in which Weft takes part can be launched, carries packets, and is what its name says: what Weft does by default
// may change, and then its contenders must.
func TestWays(t *testing.T) {
	b := &bench{ctx: t.Context(), options: options{length: 200 * time.Millisecond}}
	l := lab.New(t, lab.Binary(weftBinary(t)))
	lan := l.Switch("switch")
	b.hosts = [hosts]*lab.Host{l.Host("host1", lan), l.Host("host2", lan)}
	b.third = l.Host("host3", lan)
	if err := b.weft(); err != nil {
		t.Fatal(err)
	}
	for _, c := range b.mesh.contenders() {
		if err := b.turn(c); err != nil { // measures nothing
			t.Errorf("%s: %v", c.name, err)
		}
	}
	wrong := b.mesh.launched(way{name: "wrong", suite: wgSuite})
	if err := b.turn(wrong); err == nil {
		t.Error("nodes with Weft's suite pass for ones with WireGuard's")
	}
}

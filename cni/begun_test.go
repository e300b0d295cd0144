// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Each request tells when the plugin was begun, also that which is kept.
func TestRequestsTellWhenTheyWereBegun(t *testing.T) {
	const begun = 77 * time.Minute
	p := newPlugin(t)
	p.begun = begun
	p.ok(t, env("ADD"), p.conf())
	p.ok(t, env("DEL"), p.conf())
	p.ok(t, env("GC"), p.conf("cni.dev/valid-attachments", []int{}))
	p.daemon.fail = p.daemon.after(errors.New("cannot be read"))
	p.refused(t, env("ADD"), p.conf()) // which takes it back
	if n := len(p.daemon.released); n != 3 || len(p.daemon.requests) != 1 {
		t.Fatalf("released were %v, asked %v", p.daemon.released, p.daemon.requests)
	}
	if r := p.daemon.requests[0]; r.Begun != begun {
		t.Errorf("ADD was begun at %v", r.Begun)
	}
	for _, r := range p.daemon.released {
		if r.Begun != begun {
			t.Errorf("%+v was begun at %v", r, r.Begun)
		}
	}
	p.daemon.fail, p.daemon.down = nil, ErrNotRunning
	p.ok(t, env("DEL"), p.conf())
	kept := 0
	if err := NewBacklog(p.runDir).Each(func(r Release) error {
		if kept++; r.Begun != begun {
			t.Errorf("%+v is kept", r)
		}
		return nil
	}); err != nil || kept != 1 {
		t.Errorf("kept are %d, %v", kept, err)
	}
}

// A daemon that does not understand DEL has not done it: it is kept for one that does.
func TestDelThatIsNotUnderstood(t *testing.T) {
	p := newPlugin(t)
	p.daemon.down = errors.New("the daemon does not understand the plugin: request cni/detach cannot be read")
	p.ok(t, env("DEL"), p.conf())
	if kept := p.kept(); len(kept) != 1 {
		t.Errorf("kept are %v", kept)
	}
}

// The clock goes on, and the requests of one plugin are begun at once.
func TestUptime(t *testing.T) {
	a := Uptime()
	if b := Uptime(); a == 0 || b < a {
		t.Errorf("first it is %v, then %v", a, b)
	}
	var out discard
	if code := Run(context.Background(), Env{Getenv: func(string) string { return "" }, Stdout: out, Stderr: out}); code != 1 {
		t.Errorf("without a clock: exit %d", code)
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

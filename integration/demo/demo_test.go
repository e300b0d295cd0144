// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--no-such-flag"}, 2, "flag provided but not defined"},
		{[]string{"--weft", "/nonexistent/weft"}, 1, "no weft binary: stat /nonexistent/weft: no such file or directory; build it with: make build"},
	} {
		var out, errs bytes.Buffer
		if code := run(tt.args, &out, &errs); code != tt.code || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("demo %v: code %d, %s", tt.args, code, &errs)
		}
	}
}

func TestProgress(t *testing.T) {
	var out, errs bytes.Buffer
	p := &progress{out: &out, err: &errs, interrupted: context.Background()}
	var order []int
	for i := range 3 {
		p.Cleanup(func() { order = append(order, i) })
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.cleanUp()
		p.step("first", func() (string, error) { return "fine", nil })
		p.step("second", func() (string, error) { return "", errors.New("broken") })
		p.step("third", func() (string, error) { return "never", nil })
	}()
	<-done
	if !p.Failed() || len(order) != 3 || order[0] != 2 {
		t.Errorf("failed: %v, cleanups: %v", p.failed, order)
	}
	if s := out.String(); !strings.Contains(s, "fine") || strings.Contains(s, "never") {
		t.Errorf("printed %q", s)
	}
	if s := errs.String(); s != "\ndemo: second: broken\n" {
		t.Errorf("errors %q", s)
	}
}

func TestTable(t *testing.T) {
	if got := gigabits(1.234e9); got != "1.23 Gb/s" {
		t.Error(got)
	}
	if got := millis(1234000); got != "1.23 ms" {
		t.Error(got)
	}
	if got := table(nil); !strings.HasPrefix(strings.TrimSpace(got), "pair") {
		t.Error(got)
	}
}

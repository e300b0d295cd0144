// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
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

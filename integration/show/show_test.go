// SPDX-License-Identifier: Apache-2.0

package show

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

func TestShow(t *testing.T) {
	var out, errs bytes.Buffer
	p := New("demo", &out, &errs, context.Background())
	var order []int
	for i := range 3 {
		p.Cleanup(func() { order = append(order, i) })
	}
	failed := p.Run(func() {
		p.Step("first", func() (string, error) { return "fine", nil })
		p.Step("second", func() (string, error) { return "", errors.New("broken") })
		p.Step("third", func() (string, error) { return "never", nil })
	})
	if !failed || !p.Failed() || len(order) != 3 || order[0] != 2 {
		t.Errorf("failed: %v, cleanups: %v", failed, order)
	}
	if s := out.String(); !strings.Contains(s, "fine") || strings.Contains(s, "never") {
		t.Errorf("printed %q", s)
	}
	if s := errs.String(); s != "\ndemo: second: broken\n" {
		t.Errorf("errors %q", s)
	}
}

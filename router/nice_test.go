// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// A shard is less nice while only streams pass and it catches up with them.
func TestNice(t *testing.T) {
	const behind = behindFor
	for _, c := range []struct {
		name  string
		usual int
		turns []niceTurn
	}{
		{"streams", 0, []niceTurn{{0, false, false, -12}, {1, false, false, -12}, {time.Hour, false, false, -12}}},
		{"a request", 0, []niceTurn{{0, false, false, -12}, {1, true, false, 0}, {1, true, true, 0}, {1, false, false, -12}}},
		{"too much", 0, []niceTurn{
			{0, false, false, -12},
			{1, false, true, -12},
			{behind - 2, false, true, -12},
			{1, false, true, 0},
			{time.Hour, false, true, 0},
			{1, false, false, -12},
		}},
		{"too much from the beginning", 0, []niceTurn{{0, false, true, -12}, {behind, false, true, 0}}},
		{"a daemon that is nice", 5, []niceTurn{{0, false, false, -7}, {1, true, false, 5}}},
		{"a daemon that is less nice", -10, []niceTurn{{0, false, false, -20}, {1, true, false, -10}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			now, has, calls := time.Unix(1, 0), c.usual, 0
			var n nice
			n.begin(c.usual, func(to int) error { has, calls = to, calls+1; return nil }, now)
			for i, step := range c.turns {
				now = now.Add(step.after)
				before, was := calls, has
				if err := n.turn(now, step.hasty, step.more); err != nil {
					t.Fatal(err)
				}
				if has != step.want {
					t.Errorf("turn %d: %d, want %d", i, has, step.want)
				}
				if calls > before && was == has {
					t.Errorf("turn %d sets what is set", i)
				}
			}
			if !n.end() || has != c.usual {
				t.Errorf("in the end %d, want %d", has, c.usual)
			}
		})
	}
}

type niceTurn struct {
	after       time.Duration
	hasty, more bool
	want        int
}

// Who may not is asked once, and told.
func TestNiceForbidden(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	calls := 0
	s := &shard{r: &Router{config: Config{Log: zap.New(core)}}}
	s.nice.begin(0, func(int) error { calls++; return unix.EACCES }, time.Unix(1, 0))
	for range 3 {
		s.turnNice(time.Unix(1, 0), false)
	}
	if calls != 1 || logs.Len() != 1 || !strings.Contains(logs.All()[0].Message, "CAP_SYS_NICE") {
		t.Errorf("%d calls, log %v", calls, logs.All())
	}
	if !s.nice.end() {
		t.Error("the thread is not what it was")
	}
	// Back it may always; if not, the thread is given up.
	var n nice
	n.begin(0, func(to int) error {
		if to == 0 {
			return errors.New("no way back")
		}
		return nil
	}, time.Unix(1, 0))
	if err := n.turn(time.Unix(1, 0), false, false); err != nil {
		t.Fatal(err)
	}
	if n.end() {
		t.Error("a thread that is still less nice is taken for what it was")
	}
}

// The thread is set, and no other.
func TestNiceThread(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	has := func(thread int) int {
		got, err := unix.Getpriority(unix.PRIO_PROCESS, thread)
		if err != nil {
			t.Fatal(err)
		}
		return 20 - got
	}
	usual, process := has(0), unix.Getpid()
	others := has(process)
	now := time.Unix(1, 0)
	s := &shard{r: &Router{config: Config{Log: zap.NewNop(), Now: func() time.Time { return now }}}}
	s.beginNice()
	s.turnNice(now, false)
	want := max(usual+calmNice, leastNice)
	if s.nice.set == nil {
		want = usual // not allowed here
	}
	if got := has(0); got != want {
		t.Errorf("while streams pass %d, want %d", got, want)
	}
	if unix.Gettid() != process && has(process) != others {
		t.Errorf("the process's first thread has %d, had %d", has(process), others)
	}
	if !s.nice.end() || has(0) != usual {
		t.Errorf("in the end %d, want %d", has(0), usual)
	}
}

// SPDX-License-Identifier: Apache-2.0

package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// disk keeps what is saved, and counts the transactions.
type disk struct {
	mu    sync.Mutex
	kept  []Event
	saves int
	fail  error
}

func (d *disk) save(put []Event, first uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.saves++
	if d.fail != nil {
		return d.fail
	}
	var left []Event
	for _, e := range d.kept {
		if e.Seq >= first {
			left = append(left, e)
		}
	}
	d.kept = append(left, put...)
	return nil
}

func (d *disk) open() *Log {
	return New(Config{Kept: d.kept, Save: d.save, Now: time.Now, Log: zap.NewNop()})
}

// running runs l until the result is called.
func running(l *Log) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	return func() { cancel(); <-done }
}

func numbers(list []Event) string {
	var s []string
	for _, e := range list {
		s = append(s, fmt.Sprint(e.Seq, e.Text))
	}
	return strings.Join(s, " ")
}

// A storm costs a transaction a second, the last 1,000 stay, and the next run goes on after them.
func TestStormAndRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		l := d.open()
		end := running(l)
		for i := range 100_000 {
			l.Add(Event{Kind: Fail, Text: fmt.Sprint("x", i)})
			if i%100 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		end()
		if d.saves > 12 {
			t.Errorf("%d transactions for 10 s of storm", d.saves)
		}
		if len(d.kept) != Most || d.kept[0].Seq != 99_001 || d.kept[Most-1].Text != "x99999" {
			t.Errorf("%d kept, from %d", len(d.kept), d.kept[0].Seq)
		}
		l = d.open()
		l.Add(Event{Kind: Start, Text: "again"})
		if got := numbers(l.Recent(2)); got != "100000x99999 100001again" {
			t.Errorf("after a restart: %s", got)
		}
		if got := l.Recent(-1); len(got) != Most || got[0].Seq != 99_002 {
			t.Errorf("%d are held, from %d", len(got), got[0].Seq)
		}
	})
}

// What a full disk does not take is saved when it does, and the log says both once.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		d := &disk{fail: errors.New("the disk is full")}
		l := New(Config{Save: d.save, Now: time.Now, Log: zap.New(core)})
		end := running(l)
		t.Cleanup(end)
		l.Add(Event{Text: "a"})
		time.Sleep(time.Minute)
		l.Add(Event{Text: "b"})
		time.Sleep(time.Minute)
		if n := logs.Len(); n != 1 {
			t.Errorf("%d lines while it fails", n)
		}
		synctest.Wait()
		d.mu.Lock()
		d.fail = nil
		d.mu.Unlock()
		time.Sleep(saveRetry + saveGap)
		synctest.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		if got := numbers(d.kept); got != "1a 2b" || logs.Len() != 2 {
			t.Errorf("kept %q, %d lines", got, logs.Len())
		}
		if d.saves > 14 {
			t.Errorf("%d tries in two minutes", d.saves)
		}
	})
}

// A follower sees everything in order, one that is slow is told what it missed, and neither keeps Add waiting.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := (&disk{}).open()
		l.Add(Event{Text: "a"}, Event{Text: "b"})
		ctx, cancel := context.WithCancel(t.Context())
		var fast []string
		slow, release := []string{}, make(chan struct{})
		done := make(chan struct{}, 2)
		go func() {
			l.Follow(ctx, 1, func(e Event, skipped uint64) { fast = append(fast, fmt.Sprint(e.Seq, e.Text, skipped)) })
			done <- struct{}{}
		}()
		go func() {
			l.Follow(ctx, 2, func(e Event, skipped uint64) {
				slow = append(slow, fmt.Sprint(e.Seq, e.Text, skipped))
				<-release
			})
			done <- struct{}{}
		}()
		synctest.Wait()
		l.Add(Event{Text: "c"})
		synctest.Wait()
		if got := strings.Join(fast, " "); got != "2b0 3c0" {
			t.Errorf("the fast one: %s", got)
		}
		for i := range 3000 {
			l.Add(Event{Text: fmt.Sprint("x", i)})
		}
		close(release)
		synctest.Wait()
		if n := len(slow); n != 1+Most || slow[0] != "3c0" || slow[1] != "2004x20002000" || slow[2] != "2005x20010" {
			t.Errorf("the slow one: %d, %v", n, slow[:3])
		}
		cancel()
		<-done
		<-done
	})
}

// Names and texts may come from anybody.
func TestTextsAreLines(t *testing.T) {
	l := (&disk{}).open()
	l.Add(Event{Node: strings.Repeat("é", 400), Text: "a\nb\x1b[31m\xffc", Cause: strings.Repeat("x", 5000)})
	e := l.Recent(1)[0]
	if e.Text != "a b?[31m?c" || len(e.Cause) != maxText || !strings.HasSuffix(e.Cause, "x...") || len(e.Node) > maxName || !strings.HasSuffix(e.Node, "é...") {
		t.Errorf("%+v", e)
	}
}

// What was kept with a hole in it begins after the hole.
func TestHoleInWhatWasKept(t *testing.T) {
	l := New(Config{Kept: []Event{{Seq: 1}, {Seq: 4, Text: "d"}, {Seq: 5, Text: "e"}}, Now: time.Now, Log: zap.NewNop()})
	if got := numbers(l.Recent(-1)); got != "4d 5e" {
		t.Errorf("held: %s", got)
	}
	if next, skipped := l.After(1, 9); numbers(next) != "4d 5e" || skipped != 2 {
		t.Errorf("%s, %d", numbers(next), skipped)
	}
}

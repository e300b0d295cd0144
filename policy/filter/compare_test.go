// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// What others have changed in a large table while nobody watched is found after a restart, whatever it is, and an untouched one is left alone.
func TestComparesWhatItTakesOver(t *testing.T) {
	t.Parallel()
	s := crowded(0, openPort)
	for _, tt := range []struct {
		name   string
		tamper func(m *model, e *edit)
	}{
		{"nothing", nil},
		{"another value", func(m *model, e *edit) {
			for k, v := range m.byNumber[1].cells {
				other := m.byNumber[1].last
				e.value(setCells, cellKey(1, k.service, k.port), &v, &other)
				return
			}
		}},
		{"one less", func(m *model, e *edit) {
			v := m.byNumber[1].last
			e.value(setWide, wideKey(1, worldNumber), &v, nil)
		}},
		{"one more", func(m *model, e *edit) {
			for _, v := range m.byNumber[1].cells {
				e.value(setCells, cellKey(1, service{worldNumber, policy.TCP}, closedPort), nil, &v)
				return
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			f := newFilter(t, w.node)
			must(t, f.Replace(s))
			if tt.tamper != nil {
				e := newEdit()
				tt.tamper(f.model, e)
				var b buffer
				e.compose(&b, Table)
				must(t, f.conn.commit(b))
			}
			repaired := make(chan []string, 10)
			g, err := New(Config{NetNS: w.node.fd, Log: zaptest.NewLogger(t), Repaired: func(lines []string) { repaired <- lines }})
			must(t, err)
			t.Cleanup(g.Close)
			must(t, g.Replace(s))
			before, ok := g.current()
			if !ok {
				t.Fatal("nftables tell no generation")
			}
			run(t, g)
			if tt.tamper == nil {
				// While it compares, changes are not taken for anybody else's.
				c := compile.Cell{Identity: 100, Protocol: policy.TCP, First: 7, Last: 7}
				for i := range uint32(20) {
					p := compile.Patch{Set: map[compile.Cell]compile.Verdict{c: by(true, "new")}}
					if i%2 == 1 {
						p = compile.Patch{Drop: []compile.Cell{c}}
					}
					must(t, g.Update(compile.Delta{Patches: map[compile.TableID]compile.Patch{1: p}}))
				}
				select {
				case lines := <-repaired:
					t.Errorf("an untouched table is repaired: %q", lines)
				case <-time.After(time.Second):
				}
				if same, err := g.collate(t.Context()); !same || err != nil {
					t.Errorf("an untouched table is another one: %v", err)
				}
				if after, _ := g.current(); after != before+20 {
					t.Errorf("%d transactions, want 20", after-before)
				}
				return
			}
			select {
			case lines := <-repaired:
				if len(lines) != 1 || lines[0] != changed {
					t.Errorf("%q", lines)
				}
			case <-time.After(patience):
				t.Fatal("not repaired")
			}
			if same, err := g.collate(t.Context()); !same || err != nil {
				t.Errorf("it is not right: %v", err)
			}
			if got := w.client.tcp(clientAddr(false), podAddr(0, false), closedPort, never); got != lost {
				t.Errorf("a forbidden connection is %s", got)
			}
		})
	}
}

// BenchmarkCompare compares 300,000 elements.
func BenchmarkCompare(b *testing.B) {
	f := newFilter(b, newSpace(b))
	must(b, f.Replace(large(300_000)))
	for b.Loop() {
		began := processor(b)
		if same, err := f.collate(b.Context()); !same || err != nil {
			b.Fatal(same, err)
		}
		b.ReportMetric(float64((processor(b) - began).Milliseconds()), "cpu-ms")
	}
}

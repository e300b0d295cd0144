// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"net/netip"
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

// A kernel that does not tell how many elements there are gives no reason to make a table anew.
func TestSized(t *testing.T) {
	t.Parallel()
	want := map[string]uint32{setCells: 7, setWide: 1}
	for _, tt := range []struct {
		name string
		have map[string]uint32
		want bool
	}{
		{"as it should be", map[string]uint32{setCells: 7, setWide: 1, setLists: 0, setRanges: 9}, true},
		{"not told", nil, true},
		{"too many", map[string]uint32{setCells: 8, setWide: 1, setLists: 0}, false},
		{"too few", map[string]uint32{setCells: 7, setWide: 0, setLists: 0}, false},
		{"in a set that should be empty", map[string]uint32{setCells: 7, setWide: 1, setLists: 1}, false},
	} {
		if got := sized(tt.have, want); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// What this run has made it does not compare, whatever becomes of its rules; what another one has made it does.
func TestComparesNothingOfItsOwn(t *testing.T) {
	t.Parallel()
	ns := newSpace(t)
	f, s := newFilter(t, ns), crowded(0, openPort)
	must(t, f.Replace(s))
	g := newFilter(t, ns)
	must(t, g.Replace(s))
	if n := len(g.inherited); n != 1 {
		t.Error("it does not compare what another run has made")
	}
	must(t, f.Update(compile.Delta{SetBlocks: map[netip.Prefix]compile.Identity{netip.MustParsePrefix("192.0.2.0/24"): 7}}))
	if !f.layout.blocks {
		t.Fatal("the rules are the same as before")
	}
	if n := len(f.inherited); n != 0 {
		t.Error("it compares what it has made")
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

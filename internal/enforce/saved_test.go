// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// TestRestart has the kernel have what an earlier run left until the source has told all, and puts that back if it is gone.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
			c.SetEndpoint(pod("b", "u-b", "n1", "db"))
		})
		a, b := attached("ka", "a", "u-a", "10.32.0.5"), attached("kb", "b", "u-b", "10.32.0.6", "fd00::6")
		for _, l := range []Local{a, b} {
			if err := s.within(time.Second, l); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		s.end()
		before := s.kernel.has
		s.kernel.take()

		s.start()
		time.Sleep(time.Minute)
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"replace"}) || !sameState(s.kernel.has, before) {
			t.Errorf("what should be there is not told, once: %q", calls)
		}
		if err := s.Readmit(t.Context(), []Local{a})[0]; err != nil {
			t.Errorf("connected again: %v", err)
		}
		s.kernel.set(func() { s.kernel.has = nil })
		time.Sleep(restoreLook)
		synctest.Wait()
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"replace"}) || !sameState(s.kernel.has, before) {
			t.Errorf("what somebody removed is not put back: %q", calls)
		}
		s.kernel.set(func() { s.kernel.has, s.kernel.fail = nil, errors.New("no memory") })
		time.Sleep(restoreLook)
		synctest.Wait()
		if err := s.Readmit(t.Context(), []Local{a})[0]; err == nil || s.Status().Failure != "no memory" {
			t.Errorf("connected again while nothing is in force: %v, %+v", err, s.Status())
		}
		s.kernel.set(func() { s.kernel.fail = nil })
		time.Sleep(restoreLook)
		synctest.Wait()
		s.kernel.take()
		want := []string{
			"network policies were put back in force (the packet filter had lost them, and what there is now is not known yet)",
			"the network policies of the earlier run could not be put back in force (no memory)",
			"network policies were put back in force (the packet filter had lost them, and what there is now is not known yet)",
		}
		if notes := s.takeNotes(); !slices.Equal(notes, want) {
			t.Errorf("%q", notes)
		}

		// The object of b was deleted meanwhile; b is attached still.
		s.Change(func(c Changes) {
			c.SetPolicy(isolating("db", "app", "db"))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
		})
		s.Begin([]Local{a, b})
		s.Synced()
		synctest.Wait()
		if calls := s.kernel.take(); !slices.Equal(calls, []string{"replace"}) || !s.kernel.judged("10.32.0.6") || !s.kernel.judged("fd00::6") {
			t.Errorf("when all is known: %q", calls)
		}
		if s.news != 2 {
			t.Errorf("told %d times in two runs that what is due can be done", s.news)
		}
	})
}

// TestBootEnds does not take what was kept in another boot for what is attached.
func TestBootEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "", ""))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
		})
		if err := s.within(time.Second, attached("ka", "a", "u-a", "10.32.0.5")); err != nil {
			t.Fatal(err)
		}
		s.end()
		if info, err := os.Stat(filepath.Join(s.home, FileName)); err != nil || info.Mode() != 0o600 {
			t.Fatalf("what an end leaves: %v %v", info, err)
		}
		s.boot = "boot-2"
		s.kernel.set(func() { s.kernel.has = nil })
		s.kernel.take()
		s.start()
		time.Sleep(time.Minute)
		if calls := s.kernel.take(); calls != nil {
			t.Errorf("%q", calls)
		}
	})
}

// TestKeptBeside keeps each state through a minute of changes without ever asking for the whole of it: commits do not wait for that.
func TestKeptBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t, func(c Changes) {
			c.SetPolicy(isolating("db", "", ""))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
		})
		if err := s.within(time.Second, attached("ka", "a", "u-a", "10.32.0.5")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		before := s.whole.states
		for i := range 240 {
			s.Change(func(c Changes) {
				c.SetPolicy(isolating(fmt.Sprint("p", i), "", ""))
				if i%3 == 0 {
					c.DeletePolicy(isolating(fmt.Sprint("p", i-3), "", "").PolicyKey)
				}
			})
			time.Sleep(250 * time.Millisecond)
			synctest.Wait()
			if _, err := os.Stat(s.saver.path + older); err == nil {
				continue
			}
			if got, err := s.saver.load(); err != nil || !sameState(got.state, s.kernel.has) {
				t.Fatalf("after %d changes something else is kept: %v", i, err)
			}
		}
		time.Sleep(time.Minute)
		if got, err := s.saver.load(); err != nil || got.behind || !sameState(got.state, s.kernel.has) {
			t.Errorf("%v %+v", err, got)
		}
		if s.whole.states != before || before == 0 {
			t.Errorf("the whole state was asked for %d times more, and %d times at first", s.whole.states-before, before)
		}
	})
}

// TestDamaged starts with nothing if what was kept cannot be read, and keeps it anew.
func TestDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		if err := os.WriteFile(filepath.Join(s.home, FileName), []byte("nonsense"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.start()
		s.Change(func(c Changes) {
			c.SetPolicy(isolating("db", "", ""))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
		})
		s.Synced()
		s.Begin([]Local{attached("ka", "a", "u-a", "10.32.0.5")})
		time.Sleep(time.Minute)
		if kept, err := s.saver.load(); err != nil || !sameState(kept.state, s.kernel.has) {
			t.Errorf("%v %v", kept, err)
		}
	})
}

// TestUnwritable goes on where nothing can be kept.
func TestUnwritable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.home = filepath.Join(s.home, "missing")
		s.start()
		s.Change(func(c Changes) {
			c.SetPolicy(isolating("db", "", ""))
			c.SetEndpoint(pod("a", "u-a", "n1", "db"))
		})
		s.Synced()
		s.Begin([]Local{attached("ka", "a", "u-a", "10.32.0.5")})
		time.Sleep(time.Minute)
		if !s.kernel.judged("10.32.0.5") {
			t.Error("not in force")
		}
	})
}

func sameState(a, b *compile.State) bool {
	if a == nil || b == nil || len(a.Tables) != len(b.Tables) {
		return false
	}
	for id, x := range a.Tables {
		y := b.Tables[id]
		if y == nil || !x.Default.Equal(y.Default) || !maps.EqualFunc(x.Cells, y.Cells, compile.Verdict.Equal) {
			return false
		}
	}
	return maps.Equal(a.Sides, b.Sides) && maps.Equal(a.Identities, b.Identities) && maps.Equal(a.Blocks, b.Blocks) && maps.Equal(a.Selves, b.Selves)
}

// example is a state with one of everything, and what is attached.
func example() saved {
	s := compile.NewState()
	by := &policy.Verdict{Reason: policy.Isolated, Isolating: []policy.PolicyKey{{Kind: policy.Network, Name: named("p")}, {Kind: policy.Admin, Name: policy.Name{Name: "c"}}}}
	allowed := compile.Verdict{Allow: true, By: &policy.Verdict{Allowed: true, Reason: policy.ByRule, Policy: policy.PolicyKey{Kind: policy.Network, Name: named("p")}, Rule: 3}}
	s.Tables[5] = &compile.Table{ID: 5, Default: compile.Verdict{By: by}, Cells: map[compile.Cell]compile.Verdict{
		{Identity: 7, Protocol: policy.TCP, First: 80, Last: 90}: allowed, {Identity: 8}: allowed,
	}}
	a, b := netip.MustParseAddr("10.32.0.5"), netip.MustParseAddr("fd00::5")
	s.Sides[compile.Side{Addr: a, Direction: policy.Egress}] = 5
	s.Sides[compile.Side{Addr: b}] = 5
	s.Identities[a], s.Identities[b], s.Selves[a] = 7, compile.OwnNode, 9
	s.Blocks[netip.MustParsePrefix("192.0.2.0/24")] = 8
	return saved{state: s, locals: []policy.Endpoint{{Name: named("a"), ID: "u", Labels: map[string]string{"app": "db"}, Ports: []policy.NamedPort{{Name: "web", Protocol: policy.TCP, Port: 80}}}}, spaces: map[string]map[string]string{"default": {"team": "a"}, "shop": nil}}
}

// TestFormat reads what was written.
func TestFormat(t *testing.T) {
	was := example()
	b, err := takeDown("boot", was).encode()
	if err != nil {
		t.Fatal(err)
	}
	boot, is, err := decode(b)
	if err != nil || boot != "boot" || !sameState(is.state, was.state) || !reflect.DeepEqual(is.locals, was.locals) || !reflect.DeepEqual(is.spaces, was.spaces) {
		t.Errorf("%q %+v %v", boot, is, err)
	}
	for i := range b {
		broken := slices.Clone(b)
		broken[i] ^= 1
		if _, _, err := decode(broken); err == nil {
			t.Errorf("a wrong bit in byte %d is not noticed", i)
		}
		if _, _, err := decode(b[:i]); err == nil {
			t.Errorf("its first %d bytes are taken for all of it", i)
		}
	}
}

// TestReasons reads a verdict of whatever reason, and writes none that it could not read.
func TestReasons(t *testing.T) {
	s := newSaver(filepath.Join(t.TempDir(), FileName), "boot", zap.NewNop())
	write := func(r policy.Reason) error {
		keep := example()
		keep.state.Tables[5].Default = compile.Verdict{By: &policy.Verdict{Reason: r}}
		return s.write(&keep)
	}
	last := policy.Reason(0)
	for ; last < reasons(t); last++ {
		if err := write(last); err != nil {
			t.Errorf("%d: %v", last, err)
		}
		if kept, err := s.load(); err != nil || kept.state.Tables[5].Default.By.Reason != last {
			t.Errorf("%d: %v %v", last, kept, err)
		}
	}
	if err := write(last); err == nil || !strings.Contains(err.Error(), "could not be read again: it makes no sense") {
		t.Errorf("what cannot be read is written: %v", err)
	}
	if kept, err := s.load(); err != nil || kept.state.Tables[5].Default.By.Reason != last-1 {
		t.Errorf("afterwards: %v %v", kept, err)
	}
}

// reasons counts the constants of policy.Reason.
func reasons(t *testing.T) (n policy.Reason) {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", "..", "policy", "judge.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(at ast.Node) bool {
		if d, ok := at.(*ast.GenDecl); ok && d.Tok == token.CONST {
			if of, ok := d.Specs[0].(*ast.ValueSpec); ok && fmt.Sprint(of.Type) == "Reason" {
				n = policy.Reason(len(d.Specs))
			}
		}
		return true
	})
	if n <= policy.Open {
		t.Fatalf("%d reasons", n)
	}
	return n
}

// TestSenseless refuses what has the right form and makes no sense.
func TestSenseless(t *testing.T) {
	for what, change := range map[string]func(f *file){
		"version":          func(f *file) { f.Version = 2 },
		"kind":             func(f *file) { f.Policies[0].Kind = 9 },
		"policy":           func(f *file) { f.Verdicts[0].Policy = 99 },
		"isolating":        func(f *file) { f.Verdicts[0].Isolating = []uint32{1 << 31} },
		"reason":           func(f *file) { f.Verdicts[0].Reason = 99 },
		"rule":             func(f *file) { f.Verdicts[0].Rule = 1 << 31 },
		"verdict":          func(f *file) { f.Tables[0].Default = 1 << 31 },
		"table":            func(f *file) { f.Sides[0].Table = 9 },
		"direction":        func(f *file) { f.Sides[0].Direction = 2 },
		"address":          func(f *file) { f.Addrs[0].Addr = []byte{1, 2, 3} },
		"no address":       func(f *file) { f.Selves[0].Addr = nil },
		"mapped address":   func(f *file) { f.Addrs[0].Addr = netip.MustParseAddr("::ffff:10.0.0.1").AsSlice() },
		"bits":             func(f *file) { f.Blocks[0].Bits = 33 },
		"unmasked":         func(f *file) { f.Blocks[0].Bits = 8 },
		"range":            func(f *file) { f.Tables[0].Cells[0].First, f.Tables[0].Cells[0].Last = 9, 8 },
		"same table twice": func(f *file) { f.Tables = append(f.Tables, f.Tables[0]) },
		"same side twice":  func(f *file) { f.Sides = append(f.Sides, f.Sides[0]) },
		"world":            func(f *file) { f.Tables[0].Cells = append(f.Tables[0].Cells, fileCell{}) },
	} {
		f := takeDown("boot", example())
		change(f)
		b, err := f.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := decode(b); err == nil {
			t.Errorf("%s: it is taken", what)
		}
	}
}

// FuzzDecode has no file do harm, and what is taken be written as the same again.
func FuzzDecode(f *testing.F) {
	b, err := takeDown("boot", example()).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[4:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := decode(b); err == nil && len(b) < 4 {
			t.Error("nothing is taken for something")
		}
		boot, is, err := decode(append(sum(b), b...))
		if err != nil {
			return
		}
		for side := range is.state.Sides {
			is.state.Verdict(policy.Connection{Src: side.Addr, Dst: side.Addr.Next(), Protocol: policy.TCP, Port: 80})
		}
		again, err := takeDown(boot, is).encode()
		if err != nil {
			t.Fatal(err)
		}
		boot2, was, err := decode(again)
		if err != nil || boot != boot2 || !sameState(is.state, was.state) || len(is.locals) != len(was.locals) {
			t.Errorf("%v: %+v is not %+v", err, is, was)
		}
	})
}

// TestTooLarge keeps nothing that could not be read again.
func TestTooLarge(t *testing.T) {
	s := newSaver(filepath.Join(t.TempDir(), FileName), "boot", zap.NewNop())
	keep := example()
	keep.locals[0].ID = strings.Repeat("x", maxFile)
	err := s.write(&keep)
	if want := fmt.Sprintf("%s would have", s.path); err == nil || err.Error()[:len(want)] != want {
		t.Error(err)
	}
	if kept, err := s.load(); err != nil || kept.state != nil {
		t.Errorf("%v %v", kept, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// crowded is isolated with so many elements that the bulk is not read.
func crowded(pod int, ports ...uint16) *compile.State {
	s := isolated(pod, ports...)
	v := by(true, "crowd")
	for i := range readable + 1000 {
		port := uint16(1000 + i%1000)
		s.Tables[1].Cells[compile.Cell{Identity: compile.Identity(100 + i/1000), Protocol: policy.TCP, First: port, Last: port}] = v
	}
	return s
}

// present says whether there is a table that judges, and whether there is any.
func (f *Filter) present(t testing.TB) (whole, left bool) {
	t.Helper()
	whole, err := f.Present()
	must(t, err)
	left, err = f.Left()
	must(t, err)
	return whole, left
}

// A table counts as there only if it judges. Whatever there is of it can be removed.
func TestPresentIsWhatJudges(t *testing.T) {
	t.Parallel()
	for _, script := range []string{
		"", "flush table inet weft-policy", "flush chain inet weft-policy forward", "flush chain inet weft-policy judge", "insert rule inet weft-policy output accept",
		"flush map inet weft-policy egress4", "flush set inet weft-policy current-a", "delete element inet weft-policy current-a { ipv6 }",
		"add chain inet weft-policy forward { policy drop; }", "flush ruleset", "delete table inet weft-policy; add table inet weft-policy",
	} {
		ns := newSpace(t)
		f := newFilter(t, ns)
		must(t, f.Replace(sample()))
		if script != "" {
			ns.nft(t, script)
		}
		gone := script == "flush ruleset"
		whole, left := f.present(t)
		if whole != (script == "") || left == gone {
			t.Errorf("%q: judges %v, is there %v", script, whole, left)
		}
		must(t, newFilter(t, ns).Remove())
		if whole, left := f.present(t); whole || left {
			t.Errorf("%q: when removed, judges %v, is there %v", script, whole, left)
		}
	}
	// A run was killed between the stages of a large one.
	ns := newSpace(t)
	f := newFilter(t, ns)
	m, err := build(crowded(0), newNumbers())
	must(t, err)
	l := m.layout(f.config.Group, false)
	var b buffer
	b.composeSkeleton(Table, l, m.digest().count)
	must(t, f.conn.commit(b))
	must(t, m.contents(Table, f.conn.commit))
	if whole, left := f.present(t); whole || !left {
		t.Errorf("half of it judges %v, is there %v", whole, left)
	}
	g := newFilter(t, ns)
	must(t, g.Replace(crowded(0)))
	if whole, left := f.present(t); !whole || !left {
		t.Errorf("what was made half, and then whole, judges %v, is there %v", whole, left)
	}
}

// What a version with other rules has made judges, as long as nobody has changed it.
func TestAnotherVersionsTableIsPresent(t *testing.T) {
	t.Parallel()
	ns := newSpace(t)
	other := newFilter(t, ns)
	other.config.Group++ // in each rule that tells of what is denied
	must(t, other.Replace(sample()))
	f := newFilter(t, ns)
	have, err := f.conn.look(Table, skeleton)
	must(t, err)
	m, err := build(sample(), newNumbers())
	must(t, err)
	if slices.Equal(have.skeleton, m.layout(f.config.Group, false).describe()) {
		t.Fatal("its rules are the same")
	}
	if whole, _ := f.present(t); !whole {
		t.Error("it is taken for none")
	}
	ns.nft(t, "insert rule inet weft-policy forward accept")
	if whole, _ := f.present(t); whole {
		t.Error("it is taken for whole, though somebody has opened it")
	}
}

// If the last stage fails, nothing of the table stays.
func TestNothingIsLeftOfStages(t *testing.T) {
	t.Parallel()
	ns := newSpace(t)
	f, other := newFilter(t, ns), newFilter(t, ns)
	m, err := build(crowded(0), newNumbers())
	must(t, err)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // has a chain there that is in the way, as soon as there is the table
		defer close(done)
		var b buffer
		b.composeChain(Table, &chain{name: "forward", hook: unix.NF_INET_LOCAL_OUT, priority: 7})
		for other.conn.commit(b) != nil {
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	err = f.make(Table, m, m.layout(f.config.Group, false), m.digest(), nil)
	close(stop)
	<-done
	if err == nil || !strings.Contains(err.Error(), "forward") {
		t.Fatalf("%v, want that chain forward could not be made", err)
	}
	if whole, left := f.present(t); whole || left {
		t.Errorf("judges %v, is there %v", whole, left)
	}
}

// If a large table that judges fails in the last stage when it is made anew, that is said of it, and the next look makes it again: nobody else has removed it.
func TestFailsBehindTheStandby(t *testing.T) {
	t.Parallel()
	ns := newSpace(t)
	f, other := newFilter(t, ns), newFilter(t, ns)
	must(t, f.Replace(crowded(0)))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // has a chain there that is in the way, whenever it can
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			var b buffer
			b.composeChain(Table, &chain{name: "forward", hook: unix.NF_INET_LOCAL_OUT, priority: 7})
			_ = other.conn.commit(b) // while there is the table it cannot
		}
	}()
	f.distrust = true
	err := f.Replace(crowded(0, openPort))
	close(stop)
	<-done
	const want = "network policy: programming nftables table inet weft-policy, in whose place inet weft-policy-standby judges: adding chain [weft-policy forward]: "
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Fatalf("%v, want %s", err, want)
	}
	if there, err := f.exists(standby); !there || err != nil {
		t.Errorf("the standby is there: %v %v", there, err)
	}
	if lines, err := f.repair(false); len(lines) > 0 || err != nil {
		t.Errorf("put right: %q %v", lines, err)
	}
	if whole, _ := f.present(t); !whole {
		t.Error("there is no table that judges")
	}
	if there, err := f.exists(standby); there || err != nil {
		t.Errorf("the standby is there: %v %v", there, err)
	}
}

// A flood is datagrams that are sent to a pod which must not get one.
type flood struct {
	target, source int
	sent           atomic.Int64
	stop           atomic.Bool
	all            sync.WaitGroup
}

func newFlood(t testing.TB, w *world) *flood {
	t.Helper()
	n := &flood{}
	var err error
	n.target, err = w.pods[0].socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, podAddr(0, false), 9)
	must(t, err)
	n.source, err = w.client.socket(unix.SOCK_DGRAM, clientAddr(false), 0)
	must(t, err)
	n.all.Go(func() {
		for !n.stop.Load() {
			if unix.Sendto(n.source, []byte("!"), 0, sockaddr(podAddr(0, false), 9)) == nil {
				n.sent.Add(1)
			}
		}
	})
	return n
}

// end fails the test if one came through.
func (n *flood) end(t testing.TB) {
	t.Helper()
	n.stop.Store(true)
	n.all.Wait()
	if got, _, err := unix.Recvfrom(n.target, make([]byte, 16), 0); err == nil {
		t.Errorf("%d bytes came through, of %d datagrams", got, n.sent.Load())
	} else if !errors.Is(err, unix.EAGAIN) {
		t.Error(err)
	}
	if n.sent.Load() < 1000 {
		t.Errorf("no more than %d datagrams were sent", n.sent.Load())
	}
	for _, fd := range []int{n.source, n.target} {
		must(t, unix.Close(fd))
	}
}

// A table that has to be made anew, small or large, lets nothing through meanwhile, wherever a run is killed; afterwards there is it alone.
func TestRenewedWithoutAGap(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		state func(int, ...uint16) *compile.State
	}{{"small", isolated}, {"large", crowded}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			f := newFilter(t, w.node)
			must(t, f.Replace(tt.state(0, 81)))
			kept := connect(t, w.client, clientAddr(false), w.pods[0], podAddr(0, false), 81)
			must(t, kept.echo(patience))
			n := newFlood(t, w)
			alone := func(f *Filter) {
				t.Helper()
				if there, err := f.exists(standby); there || err != nil {
					t.Errorf("the standby is there: %v %v", there, err)
				}
				if whole, _ := f.present(t); !whole {
					t.Error("there is no table that judges")
				}
			}
			for range 3 {
				f.mu.Lock()
				f.distrust = true
				must(t, f.sync())
				f.mu.Unlock()
				alone(f)
				must(t, kept.echo(patience))
			}
			s := tt.state(0, 81, 82)
			m, err := build(s, newNumbers())
			must(t, err)
			l, d := m.layout(f.config.Group, false), m.digest()
			d.rules = fingerprint(l.describe())
			for _, killed := range []string{"while the standby is made", "when it judges", "when the table is gone", "while the table is made", "before the standby goes"} {
				f := newFilter(t, w.node)
				have, err := f.conn.look(Table, small)
				must(t, err)
				f.mu.Lock()
				var b buffer
				switch killed {
				case "while the standby is made":
					b.composeSkeleton(standby, l, d.count)
				case "before the standby goes":
					must(t, f.renew(m, l, d, have))
				default:
					must(t, f.standIn(m, l, d))
					if killed != "when it judges" {
						b.composeRemoval(Table, have)
					}
					if killed == "while the table is made" {
						b.composeSkeleton(Table, l, d.count)
					}
				}
				if len(b) > 0 {
					must(t, f.conn.commit(b))
				}
				f.mu.Unlock()
				g := newFilter(t, w.node)
				must(t, g.Replace(s))
				alone(g)
				must(t, kept.echo(patience))
			}
			n.end(t)
			if o := w.client.tcp(clientAddr(false), podAddr(0, false), 82, patience); o != refused {
				t.Errorf("what is allowed now: %s", o)
			}
		})
	}
}

// A large table is made by a few transactions, whatever is in it.
func TestFewStages(t *testing.T) {
	t.Parallel()
	ns := newSpace(t)
	f := newFilter(t, ns)
	before, ok := f.current()
	must(t, f.Replace(crowded(0)))
	after, still := f.current()
	if most := uint32(readable/stage + len(sets()) + 3); !ok || !still || after-before > most {
		t.Errorf("%d transactions, more than %d", after-before, most)
	}
}

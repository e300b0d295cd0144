// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"context"
	"maps"
	"net/netip"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// run runs a Filter until the test ends.
func run(t testing.TB, f *Filter) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

// isolated is a state in which one pod is reached by the allowed ports of TCP alone, from anywhere.
func isolated(pod int, ports ...uint16) *compile.State {
	s := compile.NewState()
	t := &compile.Table{ID: 1, Default: by(false, "isolate"), Cells: map[compile.Cell]compile.Verdict{}}
	for _, p := range ports {
		t.Cells[compile.Cell{Identity: compile.World, Protocol: policy.TCP, First: p, Last: p}] = by(true, "open")
	}
	s.Tables[1] = t
	for _, v6 := range []bool{false, true} {
		s.Sides[compile.Side{Addr: podAddr(pod, v6), Direction: policy.Ingress}] = 1
	}
	return s
}

func (s *space) nft(t testing.TB, script string) {
	t.Helper()
	must(t, s.do(func() error {
		out, err := exec.Command("nft", script).CombinedOutput()
		if err != nil {
			t.Logf("nft %s: %s", script, out)
		}
		return err
	}))
}

// eventually waits until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	within(t, patience, what, f)
}

// within is eventually for what takes longer than a packet.
func within(t testing.TB, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

// Whatever others do to the table is put right, and told.
func TestRepairs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	repaired := make(chan []string, 100)
	f, err := New(Config{NetNS: w.node.fd, Log: zaptest.NewLogger(t), Repaired: func(lines []string) { repaired <- lines }})
	must(t, err)
	t.Cleanup(f.Close)
	must(t, f.Replace(sample()))
	run(t, f)
	time.Sleep(100 * time.Millisecond)
	for _, tt := range []struct{ do, told string }{
		{"flush ruleset", "nftables table inet weft-policy was removed by somebody; made again"},
		{"delete element inet weft-policy current-a { ipv4 }", "nftables table inet weft-policy was changed by somebody; put right"},
		{"add chain inet weft-policy more", "nftables table inet weft-policy was changed by somebody; put right"},
		{"flush chain inet weft-policy forward", "nftables table inet weft-policy was changed by somebody; put right"},
		{"insert rule inet weft-policy forward accept", "nftables table inet weft-policy was changed by somebody; put right"},
		{"delete element inet weft-policy ids4 { 10.9.1.12 }", "elements of nftables table inet weft-policy were changed by somebody: 1 lost, 0 added, 0 others; put right"},
		{"add element inet weft-policy ids4 { 10.9.1.77 : 0:3 }", "elements of nftables table inet weft-policy were changed by somebody: 0 lost, 1 added, 0 others; put right"},
		{"flush set inet weft-policy counts", "elements of nftables table inet weft-policy were changed by somebody: 7 lost, 0 added, 0 others; put right"},
	} {
		f.mu.Lock()
		for f.phase != "a" { // the name of the copy is part of a case
			must(t, f.commit(newEdit()))
		}
		f.mu.Unlock()
		w.node.nft(t, tt.do)
		select {
		case lines := <-repaired:
			if len(lines) != 1 || lines[0] != tt.told {
				t.Errorf("%s: told %q, want %q", tt.do, lines, tt.told)
			}
		case <-time.After(patience):
			t.Errorf("%s: not repaired", tt.do)
		}
		eventually(t, "repair of "+tt.do, func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			have, err := f.conn.look(Table, whole)
			return err == nil && len(f.damage(have, whole)) == 0
		})
	}
	w.node.nft(t, "add table inet other")
	select {
	case lines := <-repaired:
		t.Errorf("what is none of its own is repaired: %q", lines)
	case <-time.After(never):
	}
}

// A pipe is a connection between two sockets.
type pipe struct{ near, far int }

// connect makes one from a space to a server.
func connect(t testing.TB, from *space, a netip.Addr, to *space, b netip.Addr, port uint16) pipe {
	t.Helper()
	l, err := to.socket(unix.SOCK_STREAM, b, port)
	must(t, err)
	defer func() { _ = unix.Close(l) }()
	must(t, unix.Listen(l, 1))
	near, err := from.socket(unix.SOCK_STREAM, a, 0)
	must(t, err)
	eventually(t, "a connection", func() bool { return unix.Connect(near, sockaddr(b, port)) == nil }) // neighbours have to be found first
	far, _, err := unix.Accept(l)
	must(t, err)
	t.Cleanup(func() { _, _ = unix.Close(near), unix.Close(far) })
	return pipe{near, far}
}

// echo says whether a byte gets through and back.
func (p pipe) echo(limit time.Duration) error {
	for _, x := range [][2]int{{p.near, p.far}, {p.far, p.near}} {
		if _, err := unix.Write(x[0], []byte("x")); err != nil {
			return err
		}
		if err := ready(x[1], unix.POLLIN, limit); err != nil {
			return err
		}
		if _, err := unix.Read(x[1], make([]byte, 16)); err != nil {
			return err
		}
	}
	return nil
}

// A connection that a new state forbids is cut, those that it allows are not; both ends learn of it as soon as they send.
func TestCuts(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		w := newWorld(t)
		f := newFilter(t, w.node)
		var told atomic.Int32
		f.config.Changed = func() { told.Add(1) }
		must(t, f.Replace(isolated(0, 80, 81)))
		run(t, f)
		doomed := connect(t, w.client, clientAddr(v6), w.pods[0], podAddr(0, v6), 80)
		mute := connect(t, w.client, clientAddr(v6), w.pods[0], podAddr(0, v6), 80)
		kept := connect(t, w.client, clientAddr(v6), w.pods[0], podAddr(0, v6), 81)
		node := connect(t, w.node, pick(v6, "10.9.0.1", "fd09:0::1"), w.pods[0], podAddr(0, v6), 90)
		for _, p := range []pipe{doomed, mute, kept, node} {
			must(t, p.echo(patience))
		}
		before := told.Load()
		if before == 0 {
			t.Error("not told that packets are judged by a state")
		}
		must(t, f.Update(compile.Delta{Patches: map[compile.TableID]compile.Patch{1: {
			Drop: []compile.Cell{{Identity: compile.World, Protocol: policy.TCP, First: 80, Last: 80}},
		}}}))
		changed := told.Load()
		if changed == before {
			t.Error("not told that packets are judged another way")
		}
		eventually(t, "the cut is told", func() bool { return told.Load() > changed })
		eventually(t, "the connection is cut", func() bool {
			_, err := unix.Write(doomed.near, []byte("x"))
			return err != nil
		})
		// The server's side speaks first.
		eventually(t, "it does not come back from the other side", func() bool {
			_, err := unix.Write(mute.far, []byte("x"))
			return err != nil
		})
		for _, fd := range []int{doomed.near, mute.far} {
			if err := ready(fd, unix.POLLIN|unix.POLLHUP, patience); err != nil {
				t.Error("not told:", err)
			}
		}
		must(t, kept.echo(patience))
		must(t, node.echo(patience))
		time.Sleep(cutAgain + 200*time.Millisecond)
		must(t, kept.echo(patience))
		must(t, node.echo(patience))
	}
}

// What is denied is told with the connection and the direction, once, and counted.
func TestDenials(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := newFilter(t, w.node)
	s := isolated(0)
	s.Tables[2] = &compile.Table{ID: 2, Default: by(false, "out")}
	for _, v6 := range []bool{false, true} {
		s.Sides[compile.Side{Addr: podAddr(2, v6), Direction: policy.Egress}] = 2
	}
	must(t, f.Replace(s))
	run(t, f)
	heard := f.Denials(t.Context())
	for _, v6 := range []bool{false, true} {
		for _, tt := range []struct {
			at *space
			Denial
		}{
			{w.client, Denial{Connection: policy.Connection{Src: clientAddr(v6), Dst: podAddr(0, v6), Protocol: policy.TCP, Port: 99}, Direction: policy.Ingress}},
			{w.pods[1], Denial{Connection: policy.Connection{Src: podAddr(2, v6), Dst: clientAddr(v6), Protocol: policy.UDP, Port: 53}, Direction: policy.Egress}},
		} {
			var got Denial
			for tries := 0; got.Connection == (policy.Connection{}); tries++ { // the first ones may be before Run listens
				try := tt.at.tcp
				if tt.Protocol == policy.UDP {
					try = tt.at.udp
				}
				if o := try(tt.Src, tt.Dst, tt.Port, never); o != lost {
					t.Fatalf("%+v: %s", tt.Connection, o)
				}
				select {
				case got = <-heard:
				case <-time.After(time.Second):
				}
				if tries > 20 {
					t.Fatalf("%+v: not told", tt.Connection)
				}
			}
			if got.Connection != tt.Connection || got.Direction != tt.Direction || time.Since(got.Time) > time.Minute {
				t.Errorf("told %+v, want %+v", got, tt.Denial)
			}
		}
	}
	counts, err := f.Counters()
	must(t, err)
	for _, name := range []string{"isolate", "out"} {
		key := policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "n", Name: name}}
		if c := counts[key]; c.Denied < 2 || c.Allowed != 0 {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// nft(8), which reads all rules of all tables for much of what it does, can do so with the table there, and so can firewalls that use its library.
func TestReadByOthers(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"whole", "plain"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			f, err := New(Config{NetNS: w.node.fd, Log: zaptest.NewLogger(t)})
			must(t, err)
			t.Cleanup(f.Close)
			s := sample()
			if kind == "plain" { // no ranges of ports, no networks
				maps.DeleteFunc(s.Tables[7].Cells, func(c compile.Cell, _ compile.Verdict) bool { return c.First != c.Last })
				clear(s.Blocks)
			}
			must(t, f.Replace(s))
			for _, args := range [][]string{{"list", "tables"}, {"list", "ruleset"}, {"-j", "list", "ruleset"}, {"list", "table", "inet", "weft-policy"}} {
				must(t, w.node.do(func() error {
					out, err := exec.Command("nft", args...).CombinedOutput()
					if err != nil {
						t.Logf("nft %q: %s", args, out)
					}
					return err
				}))
			}
		})
	}
}

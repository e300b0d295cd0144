// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/events"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
)

// happened returns what the node of m says has happened, as lines of kind, text and cause.
func (m *machine) happened() (lines []string) {
	_, err := m.service().Events(context.Background(), api.EventsRequest{Last: -1}, func(p api.EventsProgress) {
		lines = append(lines, fmt.Sprintf("%s %s: %s", p.Event.Kind, p.Event.Text, p.Event.Cause))
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return lines
}

// count returns how many lines contain all of the parts.
func count(lines []string, parts ...string) int {
	n := 0
	for _, l := range lines {
		ok := true
		for _, p := range parts {
			ok = ok && strings.Contains(l, p)
		}
		if ok {
			n++
		}
	}
	return n
}

// What happens to a mesh of three is told with its causes, once, and a restart repeats nothing.
func TestEventsOfAMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, nil, "n1")
		c.start(n3, nil, "n1")
		c.ready(n2)
		c.ready(n3)
		expect := func(m *machine, n int, parts ...string) {
			t.Helper()
			c.eventually(time.Minute, fmt.Sprint(m.name, " tells ", parts), func() bool { return count(m.happened(), parts...) >= n })
			if got := m.happened(); count(got, parts...) != n {
				t.Errorf("%s tells %q %d times, not %d:\n%s", m.name, parts, count(got, parts...), n, strings.Join(got, "\n"))
			}
		}
		expect(n1, 1, "start weft test starts on n1: this is the first launch with this data directory")
		expect(n1, 1, "join n2 is in the mesh: it was met for the first time at 192.0.2.2:6783")
		expect(n1, 1, "grant n2 got", "addresses from this node: it asked for them")
		expect(n2, 1, "grant this node got", "addresses from n1")
		expect(n2, 1, "join n3 is in the mesh")

		if err := n3.stop(); err != nil { // told to
			t.Fatal(err)
		}
		expect(n1, 1, "stop n3 has stopped: it said that it stops for a while")
		time.Sleep(time.Minute)
		c.start(n3, nil)
		c.ready(n3)
		expect(n1, 1, "join n3 is back: it was stopped for 1m")
		expect(n3, 1, "stop n3 stops: it was told to by a signal")
		expect(n3, 1, "start weft test starts on n3: it was stopped before")
		expect(n3, 1, "join n1 is in the mesh")

		n2.net.Dark(true)
		expect(n1, 1, "fail n2 does not answer: no answer from 192.0.2.2:6783 since ")
		expect(n2, 1, "fail n1 does not answer")
		// A restart in the middle of it repeats nothing and forgets nothing.
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil)
		c.ready(n1)
		time.Sleep(time.Minute)
		expect(n1, 1, "fail n2 does not answer")
		expect(n1, 1, "join n2 is in the mesh")
		expect(n1, 1, "join n3 is in the mesh")
		n2.net.Dark(false)
		expect(n1, 1, "join n2 is back: it answers again at 192.0.2.2:6783 after ")

		if _, err := n2.service().Leave(t.Context(), api.LeaveRequest{}, untold); err != nil {
			t.Fatal(err)
		}
		expect(n1, 1, "leave n2 has left: it said that it leaves for good")
		seq := uint64(0)
		_, err := n1.service().Events(t.Context(), api.EventsRequest{Last: -1}, func(p api.EventsProgress) {
			if seq != 0 && p.Event.Seq != seq+1 {
				t.Errorf("event %d comes after %d", p.Event.Seq, seq)
			}
			seq = p.Event.Seq
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// Who was declared gone, and by whom, is told, as is what became of the addresses, and what the one concerned learns.
func TestEventsOfATakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, nil, "n1")
		c.ready(n2)
		c.start(n3, nil, "n1")
		c.ready(n3)
		n3.net.Dark(true)
		c.eventually(time.Minute, "n3 failed", func() bool { return count(n1.happened(), "fail n3") == 1 })
		if _, err := n1.service().Forget(t.Context(), api.ForgetRequest{Node: "n3"}, func(api.ForgetProgress) {}); err != nil {
			t.Fatal(err)
		}
		both := func() []string { return append(n1.happened(), n2.happened()...) }
		c.eventually(time.Minute, "the takeover is told", func() bool {
			return count(both(), "takeover this node took over", "they were those of n3, declared gone") == 1
		})
		if n := count(both(), "retire n3 was declared gone; n", "gets its addresses: n1 proposed it, and the owners of more than half"); n != 2 {
			t.Errorf("the retirement is told %d times:\n%s", n, strings.Join(both(), "\n"))
		}
		n3.net.Dark(false)
		c.eventually(time.Minute, "n3 knows", func() bool {
			return count(n3.happened(), "retire this node was declared gone; n", "n1 proposed it") == 1
		})
	})
}

// A follower is told what comes, and its end.
func TestFollowedEventsEndWithTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		ctx, hangUp := context.WithCancel(t.Context())
		var got []string
		done := make(chan error)
		go func() {
			_, err := n1.service().Events(ctx, api.EventsRequest{Last: 0, Follow: true}, func(p api.EventsProgress) { got = append(got, p.Event.Kind) })
			done <- err
		}()
		synctest.Wait()
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		hangUp() // as the server does when the daemon ends
		if err := <-done; err == nil || err.Error() != "this node ends, and with it what there is to follow; start it and ask again" {
			t.Errorf("it ended with %v", err)
		}
		if len(got) != 1 || got[0] != "stop" {
			t.Errorf("told %v", got)
		}
	})
}

func TestWatcher(t *testing.T) {
	h := &history{told: map[mesh.NodeID]told{}, dirty: map[mesh.NodeID]bool{}}
	start := time.Date(2026, 11, 21, 14, 0, 0, 0, time.UTC)
	gone := map[mesh.NodeID]bool{}
	w := watcher{h: h, started: start, seen: map[mesh.NodeID]bool{}, gone: func(id mesh.NodeID) bool { return gone[id] }}
	node := func(id mesh.NodeID, s mesh.Status, boot uint64, since time.Duration) mesh.Node {
		return mesh.Node{
			Record: mesh.Record{ID: id, Name: fmt.Sprint("n", uint64(id)), Boot: boot}, Status: s, Since: start.Add(since),
			Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(id)}), 6783),
		}
	}
	heard := func(m mesh.Node, at time.Duration) mesh.Node {
		m.Heard = start.Add(at)
		return m
	}
	for _, step := range []struct {
		what  string
		at    time.Duration
		nodes []mesh.Node
		want  string
		again time.Duration // 0: not
	}{
		{"met, one of them dead", 0, []mesh.Node{node(1, mesh.Self, 1, 0), node(2, mesh.Alive, 1, 0), node(3, mesh.Failed, 1, 0), node(4, mesh.Left, 1, 0)}, "join n2 is in the mesh (it was met for the first time at 192.0.2.2:6783)", 0},
		{"nothing", time.Second, []mesh.Node{node(2, mesh.Alive, 1, 0), node(3, mesh.Failed, 1, 0), node(4, mesh.Left, 1, 0)}, "", 0},
		{"restarted, and another comes to life", time.Minute, []mesh.Node{node(2, mesh.Alive, 2, 0), node(3, mesh.Alive, 1, 0)}, "join n2 has started anew (its daemon ended without a word: it was killed, it crashed, or its host went down), join n3 is in the mesh (it was met for the first time at 192.0.2.3:6783)", 0},
		{"failed", 2 * time.Minute, []mesh.Node{node(2, mesh.Failed, 2, 118*time.Second), node(3, mesh.Alive, 1, 0)}, "fail n2 does not answer (no answer from 192.0.2.2:6783 since 14:01:58)", 0},
		{"back", 3 * time.Minute, []mesh.Node{node(2, mesh.Alive, 2, 3*time.Minute), node(3, mesh.Alive, 1, 0)}, "join n2 is back (it answers again at 192.0.2.2:6783 after 1m2s)", 0},
		{"its record comes", 3*time.Minute + time.Second, []mesh.Node{node(2, mesh.Alive, 3, 3*time.Minute), node(3, mesh.Alive, 1, 0)}, "", 0},
		{"restarted again", 3*time.Minute + 2*time.Second, []mesh.Node{node(2, mesh.Alive, 4, 3*time.Minute), node(3, mesh.Alive, 1, 0)}, "join n2 has started anew (its daemon ended without a word: it was killed, it crashed, or its host went down)", 0},
		{"failed, and when it was heard is known", 200 * time.Second, []mesh.Node{heard(node(2, mesh.Failed, 4, 200*time.Second), 194*time.Second), node(3, mesh.Alive, 1, 0)}, "fail n2 does not answer (no answer from 192.0.2.2:6783 since 14:03:14)", 0},
		{"back again", 201 * time.Second, []mesh.Node{node(2, mesh.Alive, 4, 201*time.Second), node(3, mesh.Alive, 1, 0)}, "join n2 is back (it answers again at 192.0.2.2:6783 after 1s)", 0},
		{"restarted later", 230 * time.Second, []mesh.Node{node(2, mesh.Alive, 5, 201*time.Second), node(3, mesh.Alive, 1, 0)}, "join n2 has started anew (its daemon ended without a word: it was killed, it crashed, or its host went down)", 0},
		{"left and forgotten", 4 * time.Minute, []mesh.Node{node(2, mesh.Left, 2, 4*time.Minute)}, "leave n2 has left (it said that it leaves for good)", 0},
		{"met again", 5 * time.Minute, []mesh.Node{node(3, mesh.Alive, 1, 0)}, "join n3 is in the mesh (it was met for the first time at 192.0.2.3:6783)", 0},
		{"this node is started anew", 0, []mesh.Node{node(3, mesh.Failed, 1, 0)}, "", settleTime},
		{"and hears nothing", settleTime, []mesh.Node{node(3, mesh.Failed, 1, 0)}, "fail n3 does not answer (no answer from 192.0.2.3:6783 since 14:00:00)", 0},
		{"until it stops", 2 * settleTime, []mesh.Node{node(3, mesh.Stopped, 1, 0)}, "stop n3 has stopped (it said that it stops for a while)", 0},
	} {
		if step.what == "this node is started anew" {
			w.seen = map[mesh.NodeID]bool{}
		}
		news, again := w.look(step.nodes, start.Add(step.at))
		var got []string
		for _, e := range news {
			got = append(got, fmt.Sprintf("%s %s (%s)", e.Kind, e.Text, e.Cause))
		}
		if strings.Join(got, ", ") != step.want {
			t.Errorf("%s:\ngot  %s\nwant %s", step.what, strings.Join(got, ", "), step.want)
		}
		if again.IsZero() != (step.again == 0) || !again.IsZero() && again.Sub(start) != step.again {
			t.Errorf("%s: again at %v", step.what, again)
		}
	}
	// A node that was declared gone is not back.
	gone[3] = true
	news, _ := w.look([]mesh.Node{node(3, mesh.Alive, 2, time.Hour)}, start.Add(time.Hour))
	if len(news) != 1 || news[0].Text != "n3 answers, but was declared gone" || news[0].Cause != "it runs nothing until weft reset there" {
		t.Errorf("%+v", news)
	}
	// A partition of a large mesh is one event.
	var alive, dead []mesh.Node
	for id := range mesh.NodeID(200) {
		alive, dead = append(alive, node(id+10, mesh.Alive, 1, 0)), append(dead, node(id+10, mesh.Failed, 1, time.Duration(id)))
	}
	w.look(alive, start)
	news, _ = w.look(dead, start.Add(time.Minute))
	if len(news) != 1 || news[0].Kind != events.Fail || news[0].Text != "200 nodes do not answer: n10, n11, n12, n13, n14, n15, n16, n17, and 192 more" || news[0].Cause != "" {
		t.Errorf("%+v", news)
	}
}

func TestEventsOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, func(cfg *Config) { cfg.Token = newToken(t) }, "n1")
		if err := <-n2.done; err == nil {
			t.Fatal("joined with another token")
		}
		n2.kill = nil
		c.eventually(time.Minute, "the refusal is told", func() bool {
			return count(n1.happened(), "refuse a host at 192.0.2.2 was turned away: it has another token; if it belongs here") == 1
		})
		n := &Node{}
		n.history = &history{log: events.New(events.Config{Now: time.Now})}
		for _, err := range []error{mesh.ErrClone, mesh.ErrVersion, mesh.ErrNoUniverse, &mesh.UniverseMismatchError{}} {
			n.noteRefused(mesh.Refusal{From: "192.0.2.9", ID: 9, Name: "n9", Err: err})
		}
		causes := []string{"data directory is a copy", "another version", "wait to join", "of another mesh"}
		for i, e := range n.history.log.Recent(-1) {
			if e.Kind != events.Refuse || e.Text != "n9 at 192.0.2.9 was turned away" || e.Node != "n9" || !strings.Contains(e.Cause, causes[i]) {
				t.Errorf("%+v", e)
			}
		}
	})
}

// What is saved comes back, old events go from the store, and forgotten nodes do.
func TestHistoryIsKept(t *testing.T) {
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := loadHistory(st, 7, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	h.update(3, func(t *told) { t.Status, t.Boot = "alive", 4 })
	h.update(4, func(t *told) { t.Status = "failed" })
	put := []events.Event{{Seq: 1, Kind: events.Start, NodeID: mesh.NodeID(7).String()}, {Seq: 2, Kind: events.Fail, Text: "x"}}
	if err := h.save(put, 1); err != nil {
		t.Fatal(err)
	}
	h.keepOnly([]mesh.Node{{Record: mesh.Record{ID: 4}}})
	if err := h.save([]events.Event{{Seq: 3, Kind: events.Stop, Text: "y", NodeID: mesh.NodeID(7).String()}}, 3); err != nil {
		t.Fatal(err)
	}
	again, err := loadHistory(st, 7, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if got := again.log.Recent(-1); len(got) != 1 || got[0].Seq != 3 || got[0].Text != "y" || again.last != events.Stop {
		t.Errorf("%+v, last %s", got, again.last)
	}
	if len(again.told) != 1 || again.get(4).Status != "failed" {
		t.Errorf("told %+v", again.told)
	}
	if _, err := loadHistory(st, 8, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
}

func TestEndsAreNamed(t *testing.T) {
	n := &Node{cfg: Config{Name: "n1"}, history: &history{log: events.New(events.Config{Now: time.Now})}}
	never := context.Background()
	for _, c := range []struct {
		cause error
		err   error
		want  string
	}{
		{errStopped, nil, "it was told to by weft stop"},
		{context.Canceled, nil, "it was told to by a signal"},
		{errors.New("the socket is gone"), nil, "the socket is gone"},
		{nil, errors.New("no address"), "no address"},
	} {
		ctx, cancel := context.WithCancelCause(never)
		if c.cause != nil {
			cancel(c.cause)
		}
		n.noteEnd(ctx, never, c.err)
		cancel(nil)
		if e := n.history.log.Recent(1)[0]; e.Kind != events.Stop || e.Cause != c.want {
			t.Errorf("%v: %+v", c.cause, e)
		}
	}
	failed, cancel := context.WithCancelCause(never)
	cancel(errors.New("the router ended"))
	n.noteEnd(failed, failed, nil)
	if e := n.history.log.Recent(1)[0]; e.Cause != "the router ended" {
		t.Errorf("%+v", e)
	}
	if got := heritageOf([]ipam.Retirement{{Dead: 1, Heir: 2}, {Dead: 3, Heir: 9}, {Dead: 4, Heir: 9}}, 9, func(o ring.Owner) string { return fmt.Sprint(uint64(o)) }); got != "4, 3, declared gone" {
		t.Errorf("heritage: %s", got)
	}
}

// Looking at a thousand nodes of whom there is nothing new costs next to nothing, as it is done whenever gossip says something.
func BenchmarkWatcher(b *testing.B) {
	h := &history{told: map[mesh.NodeID]told{}, dirty: map[mesh.NodeID]bool{}}
	w := watcher{h: h, started: time.Now(), seen: map[mesh.NodeID]bool{}, gone: func(mesh.NodeID) bool { return false }}
	var nodes []mesh.Node
	for id := range mesh.NodeID(1000) {
		nodes = append(nodes, mesh.Node{Record: mesh.Record{ID: id + 1, Name: "n"}, Status: mesh.Alive})
	}
	w.look(nodes, time.Now())
	b.ReportAllocs()
	for b.Loop() {
		w.look(nodes, time.Now())
	}
}

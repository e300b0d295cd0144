// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/bench"
	"github.com/weftnet/weft/mesh"
)

// stuckNetwork opens sockets to which nobody gets through, and counts them.
type stuckNetwork struct {
	mu   sync.Mutex
	open int
}

func (s *stuckNetwork) socket(on netip.Addr) *stuckSocket {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	return &stuckSocket{net: s, addr: on, closed: make(chan struct{})}
}

func (s *stuckNetwork) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

func (s *stuckNetwork) Listen(_ context.Context, on netip.Addr) (net.Listener, error) {
	return s.socket(on), nil
}

func (s *stuckNetwork) ListenPacket(_ context.Context, on netip.Addr) (bench.PacketConn, error) {
	return stuckPackets{s.socket(on)}, nil
}

func (s *stuckNetwork) Dial(ctx context.Context, _ netip.Addr, _ netip.AddrPort) (net.Conn, error) {
	<-ctx.Done()
	return nil, errors.New("no answer")
}

type stuckSocket struct {
	net    *stuckNetwork
	addr   netip.Addr
	closed chan struct{}
}

func (s *stuckSocket) Accept() (net.Conn, error) { <-s.closed; return nil, net.ErrClosed }
func (s *stuckSocket) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.addr, 4000))
}

func (s *stuckSocket) Close() error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	s.net.open--
	close(s.closed)
	return nil
}

type stuckPackets struct{ *stuckSocket }

func (s stuckPackets) LocalAddr() net.Addr { return s.Addr() }
func (s stuckPackets) ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error) {
	<-s.closed
	return 0, netip.AddrPort{}, net.ErrClosed
}

func (s stuckPackets) WriteToUDPAddrPort(b []byte, _ netip.AddrPort) (int, error) { return len(b), nil }

// benchCluster is three nodes that are ready, with sockets that lead nowhere.
func benchCluster(t *testing.T) (c *cluster, over *stuckNetwork) {
	t.Helper()
	c, over = newCluster(t, 3), &stuckNetwork{}
	for i, m := range c.machines {
		m.over = over
		var peers []string
		if i > 0 {
			peers = []string{"n1"}
		}
		c.start(m, func(cfg *Config) { cfg.NoBench = i == 2 }, peers...)
		c.ready(m)
	}
	for _, m := range c.machines {
		c.eventually(10*time.Second, "the others known to "+m.name, func() bool {
			known := 0
			for _, r := range m.service().(*Node).engines().mesh.Nodes() {
				if len(r.Features) > 0 && r.Status <= mesh.Alive {
					known++
				}
			}
			return known == 3
		})
	}
	return c, over
}

// refuses checks what m says to the wish to measure the way to a node.
func refuses(t *testing.T, m *machine, r api.BenchRequest, want string) {
	t.Helper()
	_, err := m.service().Bench(t.Context(), r, func(api.BenchProgress) {})
	if err == nil || err.Error() != want {
		t.Errorf("%s to %s:\ngot  %v\nwant %s", m.name, r.Node, err, want)
	}
}

func TestBenchRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, over := benchCluster(t)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		refuses(t, n1, api.BenchRequest{Node: "n4"}, `there is no node "n4"; the others are n2, n3`)
		refuses(t, n1, api.BenchRequest{Node: "n1"}, "n1 is this node; name another one: n2, n3")
		refuses(t, n1, api.BenchRequest{Node: "n2", Time: time.Minute}, "--time 1m0s is out of range; give 1s to 30s")
		refuses(t, n1, api.BenchRequest{Node: "n2", Streams: 33}, "--streams 33 is out of range; give 1 to 32")
		refuses(t, n1, api.BenchRequest{Node: "n2", Bytes: 5}, "--max-bytes 5 is out of range; give 1048576 (1M) to 1099511627776 (1T)")
		refuses(t, n1, api.BenchRequest{Node: "n3"},
			"node n3 was launched with --no-bench and lets nobody measure the way to it; measure from there, or launch it without the flag")
		// It may measure itself, though; where packets do not get through, it is said.
		start := time.Now()
		addr := n1.service().Status().Addresses[0]
		refuses(t, n3, api.BenchRequest{Node: "n1"}, fmt.Sprintf("measuring the way to node n1: %v cannot be reached by TCP over the overlay: no answer; "+
			"look at weft peers, and for a firewall on that node that drops it", addr))
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("it took %v", took)
		}
		time.Sleep(time.Second)

		// A node that does not know the request, and one that does not answer.
		old := n2.service().(*Node).engines().mesh
		features := func(m *machine) string {
			nodes := m.service().(*Node).engines().mesh.Nodes()
			to, err := findNode(nodes, "n2")
			return fmt.Sprint(to.Features, err)
		}
		if err := old.SetRecord(func(r *mesh.Record) { r.Features = nil }); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, "an older n2", func() bool { return strings.Contains(features(n1), "upgrade") })
		refuses(t, n1, api.BenchRequest{Node: "n2"}, "node n2 (version test) does not know measurements yet; upgrade it")
		if err := old.SetRecord(func(r *mesh.Record) { r.Features = []string{featureBench} }); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, "a newer n2", func() bool { return strings.HasSuffix(features(n1), "<nil>") })
		n2.net.Dark(true)
		start = time.Now()
		refuses(t, n1, api.BenchRequest{Node: "n2"}, "node n2 did not answer within 5s; see weft peers for how it is, and its log")
		if took := time.Since(start); took != answerTime {
			t.Errorf("it took %v", took)
		}
		c.eventually(time.Minute, "n2 failed", func() bool {
			_, err := n1.service().Bench(t.Context(), api.BenchRequest{Node: "n2"}, nil)
			return strings.HasPrefix(err.Error(), "node n2 is failed since ") && strings.HasSuffix(err.Error(), "; only a node that is alive can be measured with")
		})
		n2.net.Dark(false)
		time.Sleep(20 * time.Second) // requests that still wait may come
		if n := over.count(); n != 0 {
			t.Errorf("%d sockets are open", n)
		}
	})
}

func TestBenchOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, over := benchCluster(t)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		begin := func(ctx context.Context) <-chan error {
			done := make(chan error, 1)
			go func() {
				_, err := n1.service().Bench(ctx, api.BenchRequest{Node: "n2"}, func(api.BenchProgress) {})
				done <- err
			}()
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := begin(ctx)
		since := time.Now()
		c.eventually(time.Second, "the measurement begun", func() bool { return over.count() == 3 })
		time.Sleep(2*time.Second - time.Since(since))
		at := since.Format(time.TimeOnly)
		refuses(t, n1, api.BenchRequest{Node: "n3"}, "busy: node n1 is measuring with node n2 since "+at+" (2s ago); try again when that is done")
		refuses(t, n2, api.BenchRequest{Node: "n3"}, "busy: node n2 is measuring with node n1 since "+at+" (2s ago); try again when that is done")
		refuses(t, n3, api.BenchRequest{Node: "n1"}, "busy: node n1 is measuring with node n2 since "+at+" (2s ago); try again when that is done")
		refuses(t, n3, api.BenchRequest{Node: "n2"}, "busy: node n2 is measuring with node n1 since "+at+" (2s ago); try again when that is done")
		cancel()
		if err := <-done; !errors.Is(err, errInterrupted) {
			t.Errorf("interrupted: %v", err)
		}
		time.Sleep(5 * time.Second) // n2 waits as long for a first connection
		if n := over.count(); n != 0 {
			t.Errorf("%d sockets are open after the interruption", n)
		}
		// Both are free again; and a node that stops ends its measurement at once.
		done = begin(t.Context())
		c.eventually(time.Second, "another one begun", func() bool { return over.count() == 3 })
		before := time.Now()
		if err := n1.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(before); took > 4*time.Second {
			t.Errorf("the node took %v to stop", took)
		}
		if err := <-done; err == nil || err.Error() != "measuring the way to node n2: node n1 stops" {
			t.Errorf("its measurement ended with %v", err)
		}
		if err := n2.stop(); err != nil {
			t.Error(err)
		}
		if n := over.count(); n != 0 {
			t.Errorf("%d sockets are open after both have stopped", n)
		}
	})
}

// Requests by which a member would make a node send to others than itself, and
// such that make no sense, open nothing.
func TestBenchRequestsOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, over := benchCluster(t)
		n1, n2 := c.machines[0].service().(*Node), c.machines[1].service().(*Node)
		ask := bench.Message{Session: 7, Secret: bench.Secret{1}, From: n1.Status().Addresses[0], Params: bench.Params{}.Defaults()}
		for name, change := range map[string]func(*bench.Message){
			"another node's address": func(m *bench.Message) { m.From = n2.Status().Addresses[0] },
			"not of the overlay":     func(m *bench.Message) { m.From = netip.MustParseAddr("192.0.2.1") },
			"endless":                func(m *bench.Message) { m.Params.Time = 24 * time.Hour },
			"too many streams":       func(m *bench.Message) { m.Params.Streams = 1000 },
			"an answer":              func(m *bench.Message) { *m = bench.Message{Session: 7, Answer: true, Code: bench.Busy} },
		} {
			m := ask
			change(&m)
			b, err := m.Encode()
			if err != nil {
				t.Fatal(err)
			}
			n2.engines().benches.take(n1.state.identity.ID, b)
			if n := over.count(); n != 0 {
				t.Errorf("%s: %d sockets were opened", name, n)
			}
		}
		n2.engines().benches.take(n1.state.identity.ID, []byte("bench!"))
		b, err := ask.Encode()
		if err != nil {
			t.Fatal(err)
		}
		n2.engines().benches.take(n1.state.identity.ID, b) // a good one, for comparison
		if n := over.count(); n != 2 {
			t.Errorf("%d sockets were opened, want 2", n)
		}
		time.Sleep(6 * time.Second)
		if n := over.count(); n != 0 {
			t.Errorf("%d sockets are still open", n)
		}
	})
}

func TestFindNode(t *testing.T) {
	node := func(id mesh.NodeID, name string, s mesh.Status) mesh.Node {
		return mesh.Node{Record: mesh.Record{ID: id, Name: name, Features: []string{featureBench}}, Status: s}
	}
	nodes := []mesh.Node{
		node(0x1100, "n1", mesh.Self), node(0x1<<60, "n2", mesh.Alive), node(0x12<<56, "n3", mesh.Alive),
		node(0x2<<60, "twin", mesh.Alive), node(0x3<<60, "twin", mesh.Failed), node(0x4<<60, "gone", mesh.Left),
		node(0x5<<60, "", mesh.Alive), node(0x6<<60, "12", mesh.Alive),
	}
	for _, c := range []struct{ what, name, err string }{
		{"n2", "n2", ""},
		{"120", "n3", ""},
		{"12", "12", ""}, // a name comes before the beginning of an id
		{"5", "", ""},
		{"1", "", `"1" may be each of 2 nodes; give the NodeID of one: 1000000000000000 (n2), 1200000000000000 (n3)`},
		{"twin", "", `"twin" may be each of 2 nodes; give the NodeID of one: 2000000000000000 (twin), 3000000000000000 (twin)`},
		{"3", "", "node twin is failed since 0001-01-01 00:00:00; only a node that is alive can be measured with"},
		{"gone", "", `there is no node "gone"; the others are 12, 5000000000000000, n2, n3, twin, twin`},
		{"4", "", `there is no node "4"; the others are 12, 5000000000000000, n2, n3, twin, twin`},
		{"", "", `there is no node ""; the others are 12, 5000000000000000, n2, n3, twin, twin`},
		{"0000", "", "n1 is this node; name another one: 12, 5000000000000000, n2, n3, twin, twin"},
	} {
		m, err := findNode(nodes, c.what)
		if c.err == "" && (err != nil || m.Name != c.name) || c.err != "" && (err == nil || err.Error() != c.err) {
			t.Errorf("%q:\ngot  %s, %v\nwant %s%s", c.what, m.Name, err, c.name, c.err)
		}
	}
	if _, err := findNode(nodes[:1], "n2"); err == nil || err.Error() != "this node is alone in its mesh; there is nobody to measure with" {
		t.Errorf("alone: %v", err)
	}
}

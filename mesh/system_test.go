// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// udp is the router's part on a real socket: a packet begins with its sender.
type udp struct {
	id   NodeID
	mu   sync.Mutex
	conn *net.UDPConn
}

func (u *udp) Examine(NodeID) {}

func (u *udp) SendControl(b []byte, to Addr) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn == nil {
		return net.ErrClosed
	}
	_, err := u.conn.WriteToUDPAddrPort(append(binary.BigEndian.AppendUint64(nil, uint64(u.id)), b...), to.Addr)
	return err
}

// TestSystemNetwork runs two nodes on real sockets of the loopback device, and leaves
// no goroutine behind.
func TestSystemNetwork(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	loop := netip.MustParseAddr("127.0.0.1")
	var nodes []*Mesh
	var stop []func()
	for i := range 2 {
		u := &udp{id: testIdentity(i + 1).ID()}
		cfg := Config{
			Identity: testIdentity(i + 1), Name: fmt.Sprint("n", i+1), Keys: testKeys(1), Universe: testUniverse(1), Advertise: loop, Packets: u,
			Tuning: Tuning{ProbeInterval: 200 * time.Millisecond, ProbeTimeout: 100 * time.Millisecond, GossipInterval: 20 * time.Millisecond},
		}
		if i > 0 {
			cfg.Targets = []string{fmt.Sprintf("localhost:%d", nodes[0].Port())}
		}
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (SystemNetwork{}).Listen(m.Port()); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "--port") {
			t.Errorf("a port taken: %v", err)
		}
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loop, m.Port())))
		if err != nil {
			t.Fatal(err)
		}
		u.mu.Lock()
		u.conn = conn
		u.mu.Unlock()
		read := make(chan struct{})
		go func() {
			defer close(read)
			b := make([]byte, 65536)
			for {
				n, from, err := conn.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				m.Deliver(b[8:n], Addr{Node: NodeID(binary.BigEndian.Uint64(b)), Addr: from}, time.Now())
			}
		}()
		ran := make(chan error, 1)
		go func() { ran <- m.Run(context.Background()) }()
		nodes = append(nodes, m)
		stop = append(stop, func() {
			if err := m.Stop(context.Background(), false); err != nil {
				t.Error(err)
			}
			if err := <-ran; err != nil {
				t.Error(err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			<-read
		})
	}
	until(t, "the two see each other", func() bool {
		return len(nodes[0].Nodes()) == 2 && nodes[0].Nodes()[1].Status == Alive && nodes[1].Nodes()[0].Status == Alive
	})
	h, err := Probe(t.Context(), netip.AddrPortFrom(loop, nodes[0].Port()), testKeys(1), testIdentity(7))
	if err != nil || h.ID != testIdentity(1).ID() || h.Universe.ID != testUniverse(1).ID {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := Probe(t.Context(), netip.AddrPortFrom(loop, nodes[0].Port()), testKeys(2), testIdentity(7)); !errors.Is(err, ErrWrongToken) {
		t.Error(err)
	}
	stop[0]()
	until(t, "it is known to have stopped", func() bool { return nodes[1].Nodes()[0].Status == Stopped })
	if _, err := Probe(t.Context(), netip.AddrPortFrom(loop, nodes[0].Port()), testKeys(1), testIdentity(7)); !errors.Is(err, errRefused) {
		t.Error(err)
	}
	stop[1]()
	until(t, "no goroutine is left", func() bool { return goleak.Find(ignore) == nil })
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func TestEgress(t *testing.T) {
	a, err := egress([]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil || a != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("towards the loopback: %v, %v", a, err)
	}
	if a, err = egress(nil); err == nil && (!a.IsGlobalUnicast() || a.IsLoopback() || a.Is4In6()) {
		t.Errorf("towards anywhere: %v", a)
	} else if err != nil && !strings.Contains(err.Error(), "--advertise") {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{
		Identity: testIdentity(1), Name: "n", Keys: testKeys(1), Universe: testUniverse(1), Advertise: netip.MustParseAddr("127.0.0.1"), Packets: &udp{},
	}
	for want, f := range map[string]func(*Config){
		"no identity":     func(c *Config) { c.Identity = Identity{} },
		"--name":          func(c *Config) { c.Name = "" },
		"token":           func(c *Config) { c.Keys.Hello = [32]byte{} },
		"gossip packets":  func(c *Config) { c.Packets = nil },
		"ranges":          func(c *Config) { c.Universe.Seed = make([]byte, maxSeed+1) },
		"a reserve":       func(c *Config) { c.Universe.Reserve = "\n" },
		"--peer":          func(c *Config) { c.Targets = []string{"n1:x"} },
		"--advertise":     func(c *Config) { c.Advertise = netip.MustParseAddr("224.0.0.1") },
		"another address": func(c *Config) { c.Advertise = netip.IPv4Unspecified() },
		"printable bytes": func(c *Config) { c.Name = "\n" },
		"there is no key": func(c *Config) { c.Keys = Keys{} },
	} {
		cfg := good
		f(&cfg)
		m, err := New(cfg)
		if err == nil {
			_ = m.Stop(t.Context(), false)
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", want, err)
		}
	}
	m, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	m.Register("nodes", &bag{})
	if err := m.Run(t.Context()); err == nil {
		t.Error("a taken name")
	}
	if err := m.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", good.Keys, good.Keys, good.Keys, good.Keys); strings.Contains(s, "1") {
		t.Errorf("the keys are printed: %s", s)
	}
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// firstPort is where first packets go, to containers and from them.
const firstPort = 7100

// A gate counts what comes of first packets.
type gate struct {
	from, to    atomic.Int64 // datagrams of containers, and to them
	connections atomic.Int64 // of containers
	tried       atomic.Int64 // datagrams that containers' kernels took
	early       atomic.Int64 // of those, before ADD had returned
}

// watch counts what comes to a namespace until the test ends.
func (g *gate) watch(t *testing.T, n *lab.Namespace) {
	t.Helper()
	var u *net.UDPConn
	var l net.Listener
	if err := n.Do(func() (err error) {
		if u, err = net.ListenUDP("udp", &net.UDPAddr{Port: firstPort}); err != nil {
			return err
		}
		l, err = net.Listen("tcp", fmt.Sprint(":", firstPort))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() { count(u, &g.from) })
	work.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				g.connections.Add(1)
				_ = c.Close()
			}
		}
	})
	t.Cleanup(func() {
		_, _ = u.Close(), l.Close()
		work.Wait()
	})
}

func count(u *net.UDPConn, n *atomic.Int64) {
	buf := make([]byte, 16)
	for {
		_, err := u.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			n.Add(1)
		}
	}
}

// A barrage is datagrams from a namespace to addresses that change.
type barrage struct {
	to   sync.Map // netip.Addr -> bool
	stop chan struct{}
	work sync.WaitGroup
}

func barrageFrom(t *testing.T, ns ...*lab.Namespace) *barrage {
	t.Helper()
	f := &barrage{stop: make(chan struct{})}
	t.Cleanup(func() {
		close(f.stop)
		f.work.Wait()
	})
	for _, n := range ns {
		var u *net.UDPConn
		if err := n.Do(func() (err error) {
			u, err = net.ListenUDP("udp", nil)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		f.work.Go(func() {
			defer func() { _ = u.Close() }()
			tick := time.NewTicker(200 * time.Microsecond)
			defer tick.Stop()
			for {
				f.to.Range(func(a, _ any) bool {
					_, _ = u.WriteToUDPAddrPort([]byte("flood"), netip.AddrPortFrom(a.(netip.Addr), firstPort)) // nobody may have the address yet
					return true
				})
				select {
				case <-f.stop:
					return
				case <-tick.C:
				}
			}
		})
	}
	return f
}

// A spinner tries to send from a container from before it has an interface, as quick as it can.
type spinner struct {
	done  chan struct{}
	added atomic.Bool
	work  sync.WaitGroup
	sink  *net.UDPConn
	err   error
}

// spin begins one.
func (g *gate) spin(p *pod, to []netip.Addr) (*spinner, error) {
	s := &spinner{done: make(chan struct{})}
	if err := p.Do(func() (err error) {
		s.sink, err = net.ListenUDP("udp", &net.UDPAddr{Port: firstPort})
		return err
	}); err != nil {
		return nil, err
	}
	s.work.Go(func() { count(s.sink, &g.to) })
	started := make(chan struct{})
	s.work.Go(func() { s.err = p.Do(func() error { return g.spinning(s, to, started) }) })
	<-started
	return s, nil
}

// spinning is all that the thread in the container does.
func (g *gate) spinning(s *spinner, to []netip.Addr, started chan struct{}) error {
	begin := sync.OnceFunc(func() { close(started) })
	defer begin()
	sockets := map[bool]int{} // of IPv4
	for four, family := range map[bool]int{true: unix.AF_INET, false: unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		sockets[four] = fd
	}
	var token [8]byte
	dialing := map[netip.Addr]bool{}
	for {
		for _, a := range to {
			if unix.Sendto(sockets[a.Is4()], token[:], unix.MSG_DONTWAIT, sockaddr(a)) == nil {
				g.tried.Add(1)
				if !s.added.Load() {
					g.early.Add(1)
				}
				binary.BigEndian.PutUint64(token[:], binary.BigEndian.Uint64(token[:])+1)
				if !dialing[a] {
					dialing[a] = true
					fd, err := unix.Socket(map[bool]int{true: unix.AF_INET, false: unix.AF_INET6}[a.Is4()], unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
					if err != nil {
						return err
					}
					defer func() { _ = unix.Close(fd) }()
					_ = unix.Connect(fd, sockaddr(a)) // in progress
				}
			}
		}
		begin()
		select {
		case <-s.done:
			return nil
		default:
			runtime.Gosched()
		}
	}
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: firstPort, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: firstPort, Addr: a.As16()}
}

func (s *spinner) end() error {
	close(s.done)
	_ = s.sink.Close()
	s.work.Wait()
	return s.err
}

// start adds a container with an address that is flooded already and a program that already sends, gives both some time, and deletes it.
func (g *gate) start(c *cniHost, n *libcni.NetworkConfigList, f *barrage, id string, own, to []netip.Addr) error {
	w, err := c.TryWorkload(id)
	if err != nil {
		return err
	}
	defer w.Delete()
	p := &pod{Workload: w, RuntimeConf: libcni.RuntimeConf{
		ContainerID: id, NetNS: w.Path(), IfName: "eth0", Args: [][2]string{{"IP", fmt.Sprintf("%v,%v", own[0], own[1])}},
	}}
	s, err := g.spin(p, to)
	if err != nil {
		return err
	}
	for _, a := range own {
		f.to.Store(a, true)
		defer f.to.Delete(a)
	}
	_, err = c.tryAdd(n, p)
	s.added.Store(true)
	if err == nil {
		time.Sleep(20 * time.Millisecond)
	}
	return errors.Join(err, s.end(), c.tryDel(n, p))
}

// TestPoliciesBeforeTheFirstPacket starts containers whose program sends and connects from before there is an interface, to workloads of the same host and
// of another one, under a policy that isolates them; those flood the address that the container will have. Nothing comes through, in either
// direction. With -soak it is 1,000 containers.
func TestPoliciesBeforeTheFirstPacket(t *testing.T) {
	starts := 100
	if *soak {
		starts = 1000
	}
	m, hosts := hostsOf(t, 2)
	c := withCNI(t, hosts[0])
	near, far := hosts[0].Workload("near"), hosts[1].Workload("far")
	g := &gate{}
	for _, w := range []*lab.Workload{near, far} {
		w.Attach("--namespace", "watch")
		g.watch(t, w.Namespace)
	}
	allReach(t, patience, near, far)
	f := barrageFrom(t, near.Namespace, far.Namespace)
	to := addrs(near, far)
	network := network(t, newest, "weft", c.weftConf().with(keys{"namespace": "pods"}))
	given := 0
	own := func() []netip.Addr { // of the part of the range that the host has
		given++
		out := near.Addrs()
		for i := range out {
			for range 100 + given {
				out[i] = out[i].Next()
			}
		}
		return out
	}

	// Without policies they come through, at once. A connection whose first packet came before the interface was up tries again a second later, when its
	// container has ended, so that few begin in time: no more containers are open than are isolated then.
	nothing := func() bool { return g.from.Load() == 0 || g.connections.Load() == 0 || g.to.Load() == 0 }
	open := 0
	for ; open < 3 || open < starts && nothing(); open++ {
		if err := g.start(c, network, f, fmt.Sprint("open", open), own(), to); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("open: %d containers sent %d datagrams, %d of them before ADD returned; %d and %d connections arrived, and %d came to them",
		open, g.tried.Load(), g.early.Load(), g.from.Load(), g.connections.Load(), g.to.Load())
	if nothing() {
		t.Fatal("nothing comes through without policies either: that shows nothing")
	}

	enact(t, m.Hosts(), manifests(t, keys{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": keys{"name": "deny", "namespace": "pods"},
		"spec": keys{"podSelector": keys{}, "policyTypes": []string{"Ingress", "Egress"}},
	}), "pods/deny")
	for _, n := range []*atomic.Int64{&g.from, &g.to, &g.connections, &g.tried, &g.early} {
		n.Store(0)
	}
	var mu sync.Mutex
	next := 0
	var adding sync.WaitGroup
	began := time.Now()
	for range 2 {
		adding.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				addresses := own()
				mu.Unlock()
				if i >= starts {
					return
				}
				if err := g.start(c, network, f, fmt.Sprint("pod", i), addresses, to); err != nil {
					t.Errorf("container %d: %v", i, err)
					return
				}
			}
		})
	}
	adding.Wait()
	time.Sleep(silence)
	t.Logf("isolated: %d containers, in %v, tried to send %d datagrams, %d of them before ADD returned", starts, time.Since(began).Round(time.Second), g.tried.Load(), g.early.Load())
	if g.tried.Load() < int64(starts) {
		t.Errorf("%d containers tried to send %d datagrams: that shows nothing", starts, g.tried.Load())
	}
	if a, b, to := g.from.Load(), g.connections.Load(), g.to.Load(); a+b+to > 0 {
		t.Errorf("%d datagrams and %d connections of containers came through, and %d datagrams to them", a, b, to)
	}
}

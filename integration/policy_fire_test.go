// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

const (
	// firePort is where forbidden datagrams go.
	firePort = 7000
	// volley is how many datagrams go to each address of the target in a millisecond.
	volley = 4
	// repairTime is how long policies may be out of force after somebody took the packet filter's tables away.
	repairTime = 5 * time.Second
)

// A fire is forbidden datagrams from several namespaces to a workload, some each millisecond, each from one of many sockets as a flow of its own, and
// forbidden TCP connections.
type fire struct {
	to       *lab.Workload
	stop     chan struct{}
	workers  sync.WaitGroup
	sent     atomic.Int64
	dialed   atomic.Int64
	mu       sync.Mutex
	arrived  []time.Time // when those were sent that came
	answered []time.Time // when connections were begun that came to be
}

// openFire begins one. It ends with the test, or with cease.
func openFire(t *testing.T, to *lab.Workload, from ...*lab.Workload) *fire {
	t.Helper()
	f := &fire{to: to, stop: make(chan struct{})}
	var sink *net.UDPConn
	if err := to.Do(func() (err error) {
		sink, err = net.ListenUDP("udp", &net.UDPAddr{Port: firePort})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	cease := sync.OnceFunc(func() {
		close(f.stop)
		_ = sink.Close()
		f.workers.Wait()
	})
	t.Cleanup(cease)
	f.workers.Go(func() { f.hear(sink) })
	for _, w := range from {
		var guns []*net.UDPConn
		if err := w.Do(func() error {
			for range 32 {
				g, err := net.ListenUDP("udp", nil)
				if err != nil {
					return err
				}
				guns = append(guns, g)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		f.workers.Go(func() { f.shoot(guns) })
		f.workers.Go(func() { f.dial(w) })
	}
	return f
}

func (f *fire) hear(sink *net.UDPConn) {
	buf := make([]byte, 16)
	for {
		n, err := sink.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n == 8 {
			f.mu.Lock()
			f.arrived = append(f.arrived, time.Unix(0, int64(binary.BigEndian.Uint64(buf))))
			f.mu.Unlock()
		}
	}
}

func (f *fire) shoot(guns []*net.UDPConn) {
	defer func() {
		for _, g := range guns {
			_ = g.Close()
		}
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := 0; ; {
		for range volley {
			for _, a := range f.to.Addrs() {
				b := binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
				if _, err := guns[i%len(guns)].WriteToUDPAddrPort(b, netip.AddrPortFrom(a, firePort)); err == nil {
					f.sent.Add(1)
				}
				i++
			}
		}
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
	}
}

func (f *fire) dial(w *lab.Workload) {
	for {
		for _, a := range f.to.Addrs() {
			begun := time.Now()
			if connects(w, a, firePort) {
				f.mu.Lock()
				f.answered = append(f.answered, begun)
				f.mu.Unlock()
			}
			f.dialed.Add(1)
		}
		select {
		case <-f.stop:
			return
		default:
		}
	}
}

// hits returns what has come of what was sent since then, and when the last one of it was sent.
func (f *fire) hits(since time.Time) (datagrams, connections int, last time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, all := range [][]time.Time{f.arrived, f.answered} {
		for _, at := range all {
			if at.Before(since) {
				continue
			}
			if last.Before(at) {
				last = at
			}
			if i == 0 {
				datagrams++
			} else {
				connections++
			}
		}
	}
	return datagrams, connections, last
}

// withstands checks that nothing of what was sent since then has come.
func (f *fire) withstands(t *testing.T, what string, since time.Time) {
	t.Helper()
	if d, c, last := f.hits(since); d+c > 0 {
		t.Errorf("%s: %d datagrams and %d connections came through, the last one sent %v after it began", what, d, c, last.Sub(since))
	}
}

// otherVersion builds the binary as one of another version.
func otherVersion(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weft")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version=another", "-o", path, "./cmd/weft")
	build.Dir = ".."
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// onlyWeb isolates app=db, which app=web alone reaches.
func onlyWeb(t *testing.T) string {
	t.Helper()
	return manifests(t, keys{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": keys{"name": "only-web"},
		"spec": keys{
			"podSelector": keys{"matchLabels": keys{"app": "db"}}, "policyTypes": []string{"Ingress"},
			"ingress": []keys{{"from": []keys{{"podSelector": keys{"matchLabels": keys{"app": "web"}}}}}},
		},
	})
}

// TestPoliciesUnderFire kills, ends, restarts and replaces the daemons of both hosts under forbidden datagrams, thousands a second, and forbidden connections: none
// comes through. When somebody takes the packet filter's tables away, none does any more after the time for repairs, of flows that began before it
// either. What is allowed goes on through all of it. It is the same by kernel paths, around the hosts' stacks.
func TestPoliciesUnderFire(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"udp", "vxlan"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			var flags []string
			if path != "udp" {
				flags = []string{"--trusted-subnets", underlays, "--paths", path + ",udp"}
			}
			m, hosts := hostsOf(t, 2, flags...)
			if path != "udp" {
				onPath(t, path, hosts...)
				bypasses(t, hosts...)
			}
			underFire(t, m, hosts)
		})
	}
}

// underFire is the test on two hosts.
func underFire(t *testing.T, m *lab.Net, hosts []*lab.Host) {
	t.Helper()
	workload := func(h *lab.Host, app string) *lab.Workload {
		w := h.Workload(app)
		w.Attach("--label", "app="+app, "--name", app)
		return w
	}
	db, near, web, far := workload(hosts[0], "db"), workload(hosts[0], "near"), workload(hosts[1], "web"), workload(hosts[1], "far")
	serve(t, db, firePort)
	allReach(t, patience, db, near, web, far)
	names := enact(t, hosts, onlyWeb(t), "default/only-web")
	k, err := m.Talk(t.Context(), web.Namespace, db.Namespace, db.V4)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	f := openFire(t, db, near, far)
	ready := func(h *lab.Host) {
		t.Helper()
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
	}
	other := otherVersion(t)
	while := func(what string, do func()) {
		t.Helper()
		start := time.Now()
		do()
		time.Sleep(silence)
		f.withstands(t, what, start)
	}
	while("nothing", func() { time.Sleep(silence) })
	for _, h := range hosts {
		while("killed", func() {
			h.Kill()
			time.Sleep(silence)
		})
		while("back", func() {
			h.Relaunch()
			ready(h)
		})
		while("ended", func() {
			h.Terminate()
			time.Sleep(silence)
		})
		while("replaced by another version", func() {
			h.By(other)
			h.Relaunch()
			ready(h)
		})
		if v := ask[struct {
			Version string `json:"version"`
		}](t, h, "status").Version; v != "another" {
			t.Errorf("the version of %s is %q", h.Name(), v)
		}
	}
	dials := f.dialed.Load()

	// A packet filter that somebody empties.
	var open []time.Duration
	emptied := func(what string, empty func() error) {
		t.Helper()
		start := time.Now()
		if err := empty(); err != nil {
			t.Fatal(err)
		}
		eventually(t, repairTime, func() error {
			if _, _, last := f.hits(start); time.Since(last) < silence || time.Since(start) < 2*silence {
				return errors.New("datagrams still come through")
			}
			return nil
		})
		d, c, last := f.hits(start)
		if last.IsZero() {
			last = start
		}
		open = append(open, last.Sub(start))
		t.Logf("%s: %d datagrams and %d connections came through, the last one sent %v after it", what, d, c, last.Sub(start))
		closed := time.Now()
		time.Sleep(2 * time.Second)
		f.withstands(t, what+", and repaired", closed)
	}
	for range 3 {
		emptied("flush ruleset", hosts[0].ClearRules)
		emptied("delete table", func() error { return hosts[0].DropTable("weft-policy") })
	}
	slices.Sort(open)
	t.Logf("open after it was emptied: %v", open)
	// While the daemon is not there nobody repairs; it does when it comes.
	hosts[0].Kill()
	if err := hosts[0].ClearRules(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(silence)
	hosts[0].Relaunch()
	ready(hosts[0])
	inForce(t, hosts, names...)
	time.Sleep(time.Second) // packets on their way, and the look at connections that follows
	back := time.Now()
	time.Sleep(time.Second)
	f.withstands(t, "back after its tables were taken away", back)

	if err := k.Stop(); err != nil {
		t.Errorf("what is allowed: %v", err)
	}
	t.Logf("in %v: %d datagrams and %d connections were tried", time.Since(began).Round(time.Second), f.sent.Load(), f.dialed.Load())
	if f.sent.Load() < int64(time.Since(began)/time.Millisecond) || dials < 10 {
		t.Errorf("%d datagrams and %d connections: that shows nothing", f.sent.Load(), dials)
	}
}

// A flow is an established TCP connection, by which both ends say something all the time.
type flow struct {
	name  string
	ends  [2]net.Conn
	ended [2]atomic.Pointer[time.Time]
	errs  [2]error // of ends that have ended
	work  sync.WaitGroup
}

// flowBetween begins one. It ends with the test.
func flowBetween(t *testing.T, from, to *lab.Workload, at netip.Addr, port uint16) *flow {
	t.Helper()
	f := &flow{name: fmt.Sprintf("%s to %v", from.Name(), at)}
	var l net.Listener
	err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, port).String())
		return err
	})
	if err == nil {
		err = from.Do(func() (err error) {
			f.ends[0], err = net.DialTimeout("tcp", l.Addr().String(), patience)
			return err
		})
	}
	if err == nil {
		f.ends[1], err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	for i, c := range f.ends {
		end := func(err error) {
			now := time.Now()
			if f.ended[i].CompareAndSwap(nil, &now) {
				f.errs[i] = err
			}
		}
		f.work.Go(func() {
			buf := make([]byte, 64)
			for {
				if _, err := c.Read(buf); err != nil {
					end(err)
					return
				}
			}
		})
		f.work.Go(func() {
			for {
				if _, err := c.Write([]byte("word")); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	t.Cleanup(func() {
		for _, c := range f.ends {
			_ = c.Close()
		}
		f.work.Wait()
	})
	return f
}

// cut waits until both ends know that the flow has ended.
func (f *flow) cut(t *testing.T, since time.Time) {
	t.Helper()
	for i, end := range []string{"that began it", "that accepted it"} {
		eventually(t, repairTime, func() error {
			if f.ended[i].Load() == nil {
				return fmt.Errorf("%s: the end %s does not know that it was cut", f.name, end)
			}
			return nil
		})
		t.Logf("%s: the end %s knows after %v", f.name, end, f.ended[i].Load().Sub(since).Round(time.Millisecond))
	}
}

// TestPoliciesCutFlows forbids what is established, to workloads of the same host and of another one, by ingress and by egress: both programs learn of it, and
// what was cut does not come back. Datagrams stop, whoever sends them. What stays allowed is not cut. It is the same whichever way packets take between hosts, and whether they go around
// their stacks.
func TestPoliciesCutFlows(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"udp", "vxlan", "direct"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			if path == "udp" {
				m, hosts := hostsOf(t, 2)
				cutFlows(t, m, hosts)
				return
			}
			m, hosts := hostsOf(t, 2, "--trusted-subnets", underlays, "--paths", path+",udp")
			onPath(t, path, hosts...)
			bypasses(t, hosts...)
			cutFlows(t, m, hosts)
		})
	}
}

// cutFlows is the test on two hosts.
func cutFlows(t *testing.T, m *lab.Net, hosts []*lab.Host) {
	t.Helper()
	attached := func(h *lab.Host, app string) *lab.Workload {
		w := h.Workload(app)
		w.Attach("--label", "app="+app, "--name", app)
		return w
	}
	db, near, web, far := attached(hosts[0], "db"), attached(hosts[0], "near"), attached(hosts[1], "web"), attached(hosts[1], "far")
	allReach(t, patience, db, near, web, far)
	for _, c := range []struct{ name, text string }{
		{"only-web", onlyWeb(t)},
		{"none-but-web", manifests(t, keys{ // by the egress of the others
			"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": keys{"name": "none-but-web"},
			"spec": keys{
				"podSelector": keys{"matchExpressions": []keys{{"key": "app", "operator": "In", "values": []string{"near", "far"}}}}, "policyTypes": []string{"Egress"},
			},
		})},
	} {
		var forbidden []*flow
		for i, a := range db.Addrs() {
			forbidden = append(forbidden, flowBetween(t, near, db, a, uint16(8000+i)), flowBetween(t, far, db, a, uint16(8010+i)))
		}
		allowed := flowBetween(t, web, db, db.V4, 8020)
		talks := map[*lab.Workload]*lab.Talk{}
		for _, w := range []*lab.Workload{web, near, far} {
			k, err := m.Talk(t.Context(), w.Namespace, db.Namespace, db.V6)
			if err != nil {
				t.Fatal(err)
			}
			talks[w] = k
		}
		time.Sleep(silence)
		start := time.Now()
		enact(t, hosts, c.text, "default/"+c.name)
		for _, f := range forbidden {
			f.cut(t, start)
		}
		time.Sleep(2 * time.Second)
		still := time.Now()
		time.Sleep(2 * time.Second)
		for w, k := range talks {
			got := k.Count(still)
			if want := w == web; got.Sent == 0 || (got.Arrived > 0) != want || (got.Answered > 0) != want {
				t.Errorf("%s: datagrams of %s after they were forbidden or not: %+v", c.name, w.Name(), got)
			}
		}
		enact(t, hosts, "")
		time.Sleep(silence)
		if allowed.ended[0].Load() != nil || allowed.ended[1].Load() != nil {
			t.Errorf("%s: what is allowed was cut: %v, %v", c.name, allowed.errs[0], allowed.errs[1])
		}
		for w, k := range talks {
			if err := k.Stop(); (err == nil) != (w == web) {
				t.Errorf("%s: TCP of %s: %v", c.name, w.Name(), err)
			}
		}
	}
}

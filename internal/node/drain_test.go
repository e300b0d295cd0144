// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh/memnet"
)

// draining is a leave with --drain that runs.
type draining struct {
	told chan string
	done chan error
	end  context.CancelFunc
}

func drain(t *testing.T, m *machine) draining {
	ctx, cancel := context.WithCancel(t.Context())
	d := draining{told: make(chan string, 100), done: make(chan error, 1), end: cancel}
	svc := m.service()
	go func() {
		_, err := svc.Leave(ctx, api.LeaveRequest{Drain: true}, func(p api.LeaveProgress) { d.told <- p.Text })
		d.done <- err
	}()
	return d
}

// all are the lines told so far.
func (d draining) all() (lines []string) {
	for len(d.told) > 0 {
		lines = append(lines, <-d.told)
	}
	return lines
}

func warned(m *machine, what string) bool {
	return slices.ContainsFunc(m.service().Status().Warnings, func(w string) bool { return strings.Contains(w, what) })
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.start(n2, nil, "n1")
		c.ready(n1)
		c.ready(n2)
		a, b := c.attach(n2, "a"), c.attach(n2, "b")
		addClient(t, n2, "phone", 1)
		n2.mu.Lock()
		n2.spaces["/run/netns/new"] = "net:[new]"
		n2.mu.Unlock()
		attach := func(path string) error {
			_, err := n2.service().Attach(t.Context(), api.AttachRequest{Netns: path, IfName: "eth0"})
			return err
		}

		d := drain(t, n2)
		time.Sleep(time.Second)
		want := []string{"waiting until 2 workloads are detached (/run/netns/a, /run/netns/b) and 1 WireGuard client is removed (phone)"}
		if got := d.all(); !slices.Equal(got, want) {
			t.Errorf("told %q\nwant %q", got, want)
		}
		if !warned(n2, "this node is being drained, and is waiting until 2 workloads are detached") {
			t.Errorf("weft status does not say so: %v", n2.service().Status().Warnings)
		}
		refused := "this node is being drained to leave the mesh and takes nothing new; do this on another node, or end the drain by Ctrl-C in weft leave --drain"
		if err := attach("/run/netns/new"); err == nil || err.Error() != refused {
			t.Errorf("a new workload: %v", err)
		}
		if _, err := n2.service().WGAdd(t.Context(), api.WGAddRequest{Name: "x", PublicKey: clientKey(2).String()}); err == nil || err.Error() != refused {
			t.Errorf("a new client: %v", err)
		}
		if err := attach(a.Netns); err != nil {
			t.Errorf("a workload that is attached, asked for again: %v", err)
		}
		again := "this node is being drained already; wait for that, or end it by Ctrl-C in the other weft leave --drain"
		if _, err := n2.service().Leave(t.Context(), api.LeaveRequest{Drain: true}, untold); err == nil || err.Error() != again {
			t.Errorf("a second drain: %v", err)
		}

		d.end()
		if err := <-d.done; err == nil || err.Error() != "the drain was ended (context canceled); this node goes on as before" {
			t.Errorf("ended: %v", err)
		}
		if err := attach("/run/netns/new"); err != nil {
			t.Errorf("after the drain: %v", err)
		}
		if warned(n2, "drained") {
			t.Errorf("weft status still says so: %v", n2.service().Status().Warnings)
		}

		d = drain(t, n2)
		for _, path := range []string{"/run/netns/new", a.Netns, b.Netns} {
			time.Sleep(time.Second)
			if _, err := n2.service().Detach(t.Context(), api.DetachRequest{Netns: path, IfName: "eth0"}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if _, err := n2.service().WGRemove(api.WGRemoveRequest{Name: "phone"}); err != nil {
			t.Fatal(err)
		}
		if err := <-d.done; err != nil {
			t.Errorf("leaving: %v", err)
		}
		phone := " and 1 WireGuard client is removed (phone)"
		want = []string{
			"waiting until 3 workloads are detached (/run/netns/a, /run/netns/b, /run/netns/new)" + phone,
			"waiting until 2 workloads are detached (/run/netns/a, /run/netns/b)" + phone,
			"waiting until 1 workload is detached (/run/netns/b)" + phone,
			"waiting until 1 WireGuard client is removed (phone)",
			"giving the addresses to the other nodes",
		}
		if got := d.all(); !slices.Equal(got, want) {
			t.Errorf("told\n%q\nwant\n%q", got, want)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, "everything is n1's", func() bool {
			h := n1.service().IPAM().Holdings
			return len(h) == 1 && h[0].Node == "n1"
		})
		if p := n1.service().Peers(); len(p) != 1 || p[0].State != "left" || !p[0].Gone {
			t.Errorf("n1 lists %+v", p)
		}
	})
}

// Where nobody takes the addresses, the node takes nothing new any more, and does not say that it does.
func TestDrainWithoutHeirs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		core, logged := observer.New(zapcore.InfoLevel)
		c.start(n1, nil)
		c.start(n2, func(cfg *Config) { cfg.Log = zap.New(core) }, "n1")
		c.ready(n1)
		c.ready(n2)
		c.net.Partition([]*memnet.Host{n1.net}, []*memnet.Host{n2.net})
		stays := "the node stays, and hands out no address any more: leave again, or restart it to go on"
		if err := <-drain(t, n2).done; err == nil || !strings.HasSuffix(err.Error(), "; "+stays) {
			t.Errorf("got %v", err)
		}
		said := "leaving the mesh did not succeed; " + stays
		if logged.FilterMessageSnippet("taken again").Len() != 0 || logged.FilterMessage(said).Len() != 1 {
			t.Errorf("logged: %v", logged.All())
		}
		if !warned(n2, said) || warned(n2, "drained") {
			t.Errorf("weft status says %q", n2.service().Status().Warnings)
		}
		n2.mu.Lock()
		n2.spaces["/run/netns/new"] = "net:[new]"
		n2.mu.Unlock()
		if _, err := n2.service().Attach(t.Context(), api.AttachRequest{Netns: "/run/netns/new", IfName: "eth0"}); !errors.Is(err, ipam.ErrLeaving) {
			t.Errorf("a new workload: %v", err)
		}
		c.net.Heal()
		c.eventually(time.Minute, "n1 answers", func() bool { return n2.service().Status().Nodes.Alive == 2 })
		if err := <-drain(t, n2).done; err != nil {
			t.Errorf("leaving again: %v", err)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A daemon that is stopped does not wait for the workloads, and takes new ones when it runs again.
func TestDrainEndsWithTheDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		c.attach(n1, "a")
		d := drain(t, n1)
		time.Sleep(time.Second)
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		if err := <-d.done; err == nil || !strings.HasPrefix(err.Error(), "this node is not ready yet (stopping)") {
			t.Errorf("got %v", err)
		}
		c.start(n1, nil)
		c.ready(n1)
		c.attach(n1, "b")
	})
}

func TestDrainAndForceExcludeEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		want := "--drain waits for the workloads and --force does not; choose one of them"
		if _, err := n1.service().Leave(t.Context(), api.LeaveRequest{Drain: true, Force: true}, untold); err == nil || err.Error() != want {
			t.Errorf("got %v", err)
		}
		c.attach(n1, "a")
	})
}

func TestRemaining(t *testing.T) {
	many := []string{"1", "2", "3", "4", "5", "6", "7"}
	for _, c := range []struct {
		workloads, clients []string
		arriving           int
		want               string
	}{
		{nil, nil, 0, ""},
		{nil, nil, 1, "waiting until 1 attach has ended"},
		{nil, nil, 2, "waiting until 2 attaches have ended"},
		{many, nil, 1, "waiting until 7 workloads are detached (1, 2, 3, 4, 5, and 2 more)"},
		{nil, many[:2], 0, "waiting until 2 WireGuard clients are removed (1, 2)"},
	} {
		if got := remaining(c.workloads, c.clients, c.arriving); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

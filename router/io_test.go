// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
)

func TestControl(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		if err := a.SendControl([]byte("gossip"), router.Addr{Addr: at(2)}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := <-b.gossip; got != "node 0000000000000001, 192.0.2.1:6783: gossip" {
			t.Errorf("got %q", got)
		}
		if a.Stats().ControlTx == 0 || b.Stats().ControlRx == 0 { // and there are pings
			t.Errorf("stats %+v, %+v", a.Stats(), b.Stats())
		}
		out := a.conns[0]
		if a.control != nil {
			out = a.control
		}
		out.SetSendError(routertest.ErrUnreachable)
		if err := a.SendControl(nil, router.Addr{Addr: at(2)}); !errors.Is(err, routertest.ErrUnreachable) || !strings.HasPrefix(err.Error(), "sending a gossip packet to 192.0.2.2:6783: ") {
			t.Errorf("error %v", err)
		}
	})
}

func TestSendErrors(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		for _, c := range a.conns {
			c.SetSendError(routertest.ErrUnreachable)
		}
		for range 3 {
			a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "lost"))
		}
		a.wantDrops(map[router.Reason]uint64{router.DropSend: 3})
		if got := a.PeerStats()[0].LastError; got != "network is unreachable" {
			t.Errorf("error %q", got)
		}
		for _, c := range a.conns {
			c.SetSendError(nil)
		}
		p := udp(addr4(1, 9), addr4(2, 9), "arrives")
		a.queues[0].Inject(p)
		b.want(p)
	})
}

// A full socket holds packets back in front of the TUN queue; none is lost.
func TestFullSocket(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		for _, c := range a.conns {
			c.SetFull(true)
		}
		var all [][]byte
		for i := range 1000 {
			all = append(all, udp(addr4(1, 9), addr4(2, 9), fmt.Sprint(i)))
			a.queues[0].Inject(all[i])
		}
		// Receiving goes on.
		in := udp(addr4(2, 9), addr4(1, 9), "in")
		b.queues[0].Inject(in)
		a.want(in)
		if n := a.queues[0].Waiting(); n < 900 {
			t.Errorf("%d of 1000 packets are waiting", n)
		}
		time.Sleep(3 * time.Second)
		for _, c := range a.conns {
			c.SetFull(false)
		}
		b.want(all...)
		drops := a.drops()
		delete(drops, router.DropSend) // answers to pings, which need not leave
		if len(drops) > 0 {
			t.Errorf("drops %v", drops)
		}
	})
}

func TestWriteErrors(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		for _, q := range b.queues {
			q.SetWriteError(errors.New("device is down"))
		}
		for range 3000 {
			a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "lost"))
			synctest.Wait()
		}
		b.wantDrops(map[router.Reason]uint64{router.DropWrite: 3000})
		for _, q := range b.queues {
			q.SetWriteError(nil)
		}
		p := udp(addr4(1, 9), addr4(2, 9), "arrives")
		a.queues[0].Inject(p)
		b.want(p)
	})
}

func TestRunEndsWithWhatItNeeds(t *testing.T) {
	for name, closeIt := range map[string]func(*host) error{
		"queue": func(h *host) error { return h.queues[len(h.queues)-1].Close() },
		"conn":  func(h *host) error { return h.conns[len(h.conns)-1].Close() },
	} {
		for _, s := range shapes {
			synctest.Test(t, func(t *testing.T) {
				a := newHost(t, routertest.NewNet(1), 1, s)
				a.start()
				synctest.Wait()
				if err := closeIt(a); err != nil {
					t.Fatal(err)
				}
				err := <-a.ended
				if !errors.Is(err, os.ErrClosed) || !strings.HasPrefix(err.Error(), fmt.Sprintf("router shard %d: ", s.shards-1)) {
					t.Errorf("%s of %v: Run ended with %v", name, s, err)
				}
				a.cancel()
				if err := a.Run(t.Context()); err == nil || err.Error() != "router: Run was called twice" {
					t.Errorf("second Run: %v", err)
				}
			})
		}
	}
}

func TestNewErrors(t *testing.T) {
	net := routertest.NewNet(1)
	q, c := routertest.NewQueue(false), net.Listen(at(1))
	for _, x := range []struct {
		config router.Config
		want   string
	}{
		{router.Config{}, "router: 0 TUN queues and 0 UDP sockets: there must be one of each per shard"},
		{router.Config{TUN: []router.Queue{q}}, "router: 1 TUN queues and 0 UDP sockets: there must be one of each per shard"},
		{router.Config{TUN: []router.Queue{q}, Conns: []router.Conn{c}}, "router: queues and conns without descriptors need a Config.Poll"},
	} {
		if _, err := router.New(x.config); err == nil || err.Error() != x.want {
			t.Errorf("error %v, want %s", err, x.want)
		}
	}
}

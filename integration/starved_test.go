// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestStopped stops a daemon by a signal, as a host does that has no time for it, and lets it go on. Nobody takes another one for failed
// by that, least of all the one that was stopped, and all is as before.
func TestStopped(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 5)
	hosts := m.Hosts()
	allReach(t, patience, m.Workloads...)
	calmFrom := steady(t, hosts...)
	all := talk(t, m.Lab, pairs(m.Workloads[:4]...)...)
	victim := hosts[4]
	var not [][2]*lab.Host // what may have been seen: the others of the victim
	for _, h := range hosts[:4] {
		not = append(not, [2]*lab.Host{h, victim})
	}
	since := time.Now()
	for _, d := range []time.Duration{3 * time.Second, 20 * time.Second, 5 * time.Second} {
		victim.Freeze()
		time.Sleep(d)
		victim.Thaw()
		start := time.Now()
		eventually(t, patience, func() error { return seenAlive(hosts...) })
		allReach(t, patience, m.Workloads...)
		t.Logf("after it was stopped for %v: all is well after %v", d, time.Since(start).Round(time.Millisecond))
		calmFrom.still(t, hosts, not...)
	}
	all.within(t, "among those that were not stopped", since, time.Second, hosts...)
	all.stop(t)
	// Again and again, as on a host that swaps.
	start := time.Now()
	for time.Since(start) < patience/2 {
		victim.Freeze()
		time.Sleep(900 * time.Millisecond)
		victim.Thaw()
		time.Sleep(100 * time.Millisecond)
	}
	eventually(t, patience, func() error { return seenAlive(hosts...) })
	allReach(t, patience, m.Workloads...)
	calmFrom.still(t, hosts, not...)
}

// TestSaturated puts more on the data path than it can carry, by TCP and by UDP that never slows down, in all directions. Nobody is taken for failed,
// and what happens meanwhile becomes known.
func TestSaturated(t *testing.T) {
	m := lab.Mesh(t, 3)
	hosts := m.Hosts()
	allReach(t, patience, m.Workloads...)
	calmFrom := steady(t, hosts...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	load, stop := context.WithTimeout(ctx, patience)
	defer stop()
	var wait sync.WaitGroup
	for _, p := range pairs(m.Workloads...) {
		for _, x := range [][2]*lab.Workload{p, {p[1], p[0]}} {
			wait.Go(func() { // ends by its time
				_, _ = m.Transfer(load, x[0].Namespace, x[1].Namespace, x[1].V4, 1<<40)
			})
			wait.Go(func() {
				if err := blast(load, x[0].Namespace, netip.AddrPortFrom(x[1].V6, 9)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	time.Sleep(patience / 4)
	late := attach(t, 3, hosts...)
	start := time.Now()
	for _, w := range late {
		for _, to := range m.Workloads {
			if _, err := w.Reach(to.V4, patience); err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("new workloads are reached under load after %v", time.Since(start).Round(time.Millisecond))
	wait.Wait()
	calmFrom.still(t, hosts)
	var sent, received uint64
	for _, h := range hosts {
		for _, p := range ask[[]struct {
			Rx uint64 `json:"rx_bytes"`
			Tx uint64 `json:"tx_bytes"`
		}](t, h, "peers") {
			sent += p.Tx
			received += p.Rx
		}
	}
	t.Logf("%.1f GB were sent, %.1f GB arrived in %v", float64(sent)/1e9, float64(received)/1e9, patience)
	if received < 100<<20 {
		t.Errorf("%d bytes are no load", received)
	}
}

// blast sends datagrams as fast as it can until the context ends.
func blast(ctx context.Context, from *lab.Namespace, to netip.AddrPort) error {
	var conn *net.UDPConn
	err := from.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		return fmt.Errorf("blast: %w", err)
	}
	defer func() { _ = conn.Close() }()
	b := make([]byte, 1200)
	for ctx.Err() == nil {
		_, _ = conn.Write(b) // nobody listens there, and the buffer may be full
	}
	return nil
}

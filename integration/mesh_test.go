// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// joined is how long after the last launch all workloads may need to reach each other.
const joined = 5 * time.Second

// TestAnyOrder starts three daemons by hand, without waiting for one another, in different orders.
func TestAnyOrder(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			l := lab.New(t)
			lan := l.Switch("lan")
			var hosts []*lab.Host
			for i := range 3 {
				hosts = append(hosts, l.Host(fmt.Sprintf("host%d", i+1), lan))
			}
			secret := token(t, hosts[0])
			for _, i := range order {
				var peers []*lab.Host
				if i > 0 {
					peers = hosts[:1]
				}
				hosts[i].Join(secret, peers, "--range", lab.DefaultRange)
				time.Sleep(silence) // somebody types
			}
			last := time.Now().Add(-silence)
			var workloads []*lab.Workload
			for _, h := range hosts {
				if err := h.WaitReady(patience); err != nil {
					t.Fatal(err)
				}
				w := h.Workload("w")
				w.Attach()
				workloads = append(workloads, w)
			}
			allReach(t, joined-time.Since(last), workloads...)
			distinct(t, addrs(workloads...))
			for _, h := range hosts {
				if s := ask[status](t, h, "status"); s.Nodes.Total != 3 || s.Nodes.Alive != 3 || !s.Ready || s.Workloads != 1 {
					t.Errorf("status of %s: %+v", h.Name(), s)
				}
			}
		})
	}
}

// TestSeed starts three daemons that share a list of names, partitioned, and joins them later.
func TestSeed(t *testing.T) {
	l := lab.New(t)
	lan := l.Switch("lan")
	var hosts []*lab.Host
	for i := range 3 {
		hosts = append(hosts, l.Host(fmt.Sprintf("host%d", i+1), lan))
	}
	secret := token(t, hosts[0])
	lan.Partition([]*lab.Link{hosts[0].Link()}, []*lab.Link{hosts[1].Link()}, []*lab.Link{hosts[2].Link()})
	var workloads []*lab.Workload
	for _, h := range hosts {
		h.Join(secret, hosts, "--seed", "host1,host2,host3", "--range", lab.DefaultRange)
	}
	for _, h := range hosts {
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		w := h.Workload("w")
		w.Attach()
		workloads = append(workloads, w)
	}
	distinct(t, addrs(workloads...))
	lan.Heal()
	allReach(t, patience, workloads...)
}

// TestGigabyte moves 1 GiB between hosts and compares checksums.
func TestGigabyte(t *testing.T) {
	m := lab.Mesh(t, 2)
	a, b := m.Workloads[0], m.Workloads[1]
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	got, err := m.TransferSum(ctx, a.Namespace, b.Namespace, b.V4, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("1 GiB over v4 in %v (%.2f Gb/s), SHA-256 %s", got.Duration.Round(time.Millisecond), got.BitsPerSecond()/1e9, got.Checksum)
	if got, err = m.TransferSum(ctx, b.Namespace, a.Namespace, a.V6, 64<<20); err != nil {
		t.Fatal(err)
	}
	t.Logf("64 MiB over v6 the other way in %v (%.2f Gb/s)", got.Duration.Round(time.Millisecond), got.BitsPerSecond()/1e9)
}

// TestFamilies runs meshes of one family each, over underlays of one family each.
func TestFamilies(t *testing.T) {
	for _, tt := range []struct {
		name, universe string
		host           lab.HostOption
		addresses      int
	}{
		{"v4 over v6", "10.32.0.0/12", lab.OnlyV6, 1},
		{"v6 over v4", "fd77:6566:7400::/64", lab.OnlyV4, 1},
		{"both over v6", lab.DefaultRange, lab.OnlyV6, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := lab.Mesh(t, 2, lab.Flags("--range", tt.universe), lab.Hosts(tt.host))
			for _, w := range m.Workloads {
				if len(w.Addrs()) != tt.addresses {
					t.Errorf("%s got %v", w.Name(), w.Addrs())
				}
			}
			allReach(t, patience, m.Workloads...)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			a, b := m.Workloads[0], m.Workloads[1]
			if _, err := m.Transfer(ctx, a.Namespace, b.Namespace, b.Addrs()[0], 16<<20); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHostsReachWorkloads checks node to pod and pod to node, on the same host and across.
func TestHostsReachWorkloads(t *testing.T) {
	m := lab.Mesh(t, 2)
	allReach(t, patience, m.Workloads...)
	for _, h := range m.Hosts() {
		for _, w := range m.Workloads {
			for _, a := range w.Addrs() {
				if _, err := h.Reach(a, patience); err != nil {
					t.Error(err)
				}
			}
			for _, a := range ask[status](t, h, "status").Addresses {
				if _, err := w.Reach(a, patience); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// TestPacketSizes sends packets up to the MTU of the overlay, which follows from that of the links below, and one byte more.
func TestPacketSizes(t *testing.T) {
	for _, mtu := range []int{1500, 1400, 9000} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			m := lab.Mesh(t, 2, lab.Hosts(lab.MTU(mtu)))
			allReach(t, patience, m.Workloads...)
			a, b := m.Workloads[0], m.Workloads[1]
			inner := ask[status](t, m.Hosts()[0], "status").MTU
			if inner <= mtu-120 || inner >= mtu {
				t.Errorf("the MTU of the overlay is %d, below it is %d", inner, mtu)
			}
			for _, to := range b.Addrs() {
				if _, err := a.Ping(lab.Ping{To: to, Size: inner, DontFragment: true}); err != nil {
					t.Error(err)
				}
				if _, err := a.Ping(lab.Ping{To: to, Size: inner + 1, DontFragment: true, Timeout: silence}); err == nil {
					t.Errorf("a packet of %d bytes went through to %v", inner+1, to)
				}
				if _, err := a.Ping(lab.Ping{To: to, Size: 5000}); err != nil {
					t.Errorf("fragmented: %v", err)
				}
			}
		})
	}
}

// TestOutside lets workloads talk to a host that is not in the mesh, with and without masquerade.
func TestOutside(t *testing.T) {
	for _, masquerade := range []bool{true, false} {
		t.Run(fmt.Sprintf("masquerade=%v", masquerade), func(t *testing.T) {
			var flags []string
			if !masquerade {
				flags = []string{"--no-masquerade"}
			}
			m := lab.Mesh(t, 1, lab.Flags(flags...))
			outside := m.Host("outside", m.Segment)
			seen := m.Capture(outside.Namespace, "eth0", 0)
			w := m.Workloads[0]
			for _, to := range []netip.Addr{outside.Link().V4(), outside.Link().V6()} {
				if !masquerade { // the answers do not find the way back
					unreachable(t, w.Namespace, to)
				} else if _, err := w.Reach(to, patience); err != nil {
					t.Error(err)
				}
			}
			seen.Stop()
			if n := seen.Count(w.V4.AsSlice()) + seen.Count(w.V6.AsSlice()); (n == 0) != masquerade {
				t.Errorf("%d frames outside hold the workload's own addresses", n)
			}
		})
	}
}

// TestLeaveAndReset takes a node out for good: its addresses go to the others, and nothing of Weft stays on the host.
func TestLeaveAndReset(t *testing.T) {
	l := lab.New(t)
	lan := l.Switch("lan")
	a, b := l.Host("a", lan), l.Host("b", lan)
	before := snapshot(t, b.Namespace)
	a.Launch("--range", lab.DefaultRange)
	if err := a.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	b.Join(a.Token(), []*lab.Host{a}, "--range", lab.DefaultRange)
	if err := b.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	w := b.Workload("w")
	empty := snapshot(t, w.Namespace)
	w.Attach()
	w.Detach()
	same(t, "detached workload", empty, snapshot(t, w.Namespace))
	if r := b.Weft("leave"); r.Code != 0 {
		t.Fatalf("leave: %+v", r)
	}
	if code, err := b.Daemon().Wait(patience); code != 0 || err != nil {
		t.Errorf("the daemon that left: exit code %d, %v", code, err)
	}
	eventually(t, patience, func() error {
		var total uint64
		s := ask[space](t, a, "ipam")
		for _, h := range s.Holdings {
			if h.Node == "a" {
				total = h.Slots
			}
		}
		if total < s.Size-2 { // the addresses of b itself and its workload may rest
			return fmt.Errorf("a holds %d of %d addresses", total, s.Size)
		}
		return nil
	})
	refused(t, b.RunLaunch("--range", lab.DefaultRange), "left", "weft reset")
	out := done(t, b.Weft("reset", "--data-dir", b.DataDir()))
	if !strings.Contains(out, "removed") {
		t.Errorf("reset says %q", out)
	}
	same(t, "host after reset", before, snapshot(t, b.Namespace))
	if left := files(t, b.DataDir()) + files(t, b.RunDir()); left != "" {
		t.Errorf("files after reset:\n%s", left)
	}
	if again := done(t, b.Weft("reset", "--data-dir", b.DataDir())); !strings.Contains(again, "nothing") {
		t.Errorf("a second reset says %q", again)
	}
}

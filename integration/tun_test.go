// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestPortable takes a host from one kind of TUN device to the other and back, under its workloads.
func TestPortable(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := lab.Mesh(t, 2, lab.Flags("--tun", "native"))
	h := m.Hosts()[1]
	allReach(t, patience, m.Workloads...)
	before := snapshot(t, h.Namespace)
	native := ask[status](t, h, "status")
	if native.TUN != "native" || !slices.Contains(native.Offloads, "tso") {
		t.Errorf("status %+v", native)
	}
	for _, tt := range []struct{ tun, shards string }{{"portable", "1"}, {"portable", "2"}, {"native", "2"}} {
		if code := h.Terminate(); code != 0 {
			t.Errorf("exit code %d after SIGTERM", code)
		}
		h.Launch("--range", lab.DefaultRange, "--tun", tt.tun, "--shards", tt.shards)
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		s := ask[status](t, h, "status")
		if s.TUN != tt.tun || slices.Contains(s.Offloads, "tso") != (tt.tun == "native") || slices.Contains(s.Offloads, "uso") && tt.tun == "portable" {
			t.Errorf("launched with %+v, status %+v", tt, s)
		}
		if said := done(t, h.Weft("status")); !strings.Contains(said, "weft0 ("+tt.tun+"), MTU ") || !strings.Contains(said, ", "+tt.shards+" shard(s)") {
			t.Errorf("launched with %+v, status\n%s", tt, said)
		}
		allReach(t, patience, m.Workloads...)
		for _, d := range [][2]*lab.Workload{{m.Workloads[0], m.Workloads[1]}, {m.Workloads[1], m.Workloads[0]}} {
			if _, err := m.TransferSum(ctx, d[0].Namespace, d[1].Namespace, d[1].V4, 16<<20); err != nil {
				t.Error(err)
			}
		}
		same(t, "host with a "+tt.tun+" device", before, snapshot(t, h.Namespace))
	}
}

// TestOldKernel launches where the kernel has no multi-queue TUN devices.
func TestOldKernel(t *testing.T) {
	m := lab.Mesh(t, 1)
	h := m.Host("old", m.Segment)
	launchWithout(t, h, withoutQueues)
	before := snapshot(t, h.Namespace)
	refusedLaunch(t, h.RunLaunch("--tun", "native"),
		"creating weft0: this kernel has no multi-queue TUN devices, as Linux 3.8 and later have; --tun portable does without")
	same(t, "the host", before, snapshot(t, h.Namespace))
	h.Join(m.Token, m.Hosts()[:1], "--shards", "3")
	for launch := range 2 {
		if launch > 0 { // and takes over the device of the first
			h.Kill()
			h.Relaunch()
		}
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		if s := ask[status](t, h, "status"); s.TUN != "portable" || s.Shards != 1 {
			t.Errorf("status %+v", s)
		}
		w := m.Workloads[0]
		if _, err := w.Reach(ask[status](t, h, "status").Addresses[0], patience); err != nil {
			t.Error(err)
		}
	}
	for _, line := range []string{"the TUN device is the portable one, which is slower", "there are fewer shards than wanted"} {
		if n := strings.Count(h.Log(), line); n != 2 {
			t.Errorf("the log says %q %d times in two launches:\n%s", line, n, h.Log())
		}
	}
}

// TestDeviceDeleted takes the device away from a daemon, which ends and says so in one line.
func TestDeviceDeleted(t *testing.T) {
	for _, flags := range [][]string{{"--shards", "4"}, {"--shards", "2", "--tun", "portable"}} {
		m := lab.Mesh(t, 1, lab.Flags(flags...))
		h := m.Hosts()[0]
		link, err := h.Netlink().LinkByName("weft0")
		if err == nil {
			err = h.Netlink().LinkDel(link)
		}
		if err != nil {
			t.Fatal(err)
		}
		code, err := h.Daemon().Wait(patience)
		if err != nil || code != 1 {
			t.Errorf("%v: exit code %d, %v", flags, code, err)
		}
		var said []string
		for line := range strings.Lines(h.Log()) {
			if strings.HasPrefix(line, "weft: ") {
				said = append(said, line)
			}
		}
		if len(said) != 1 || !strings.HasPrefix(said[0], "weft: the router ended: router shard ") ||
			!strings.HasSuffix(said[0], ": weft0 was deleted while in use: start again to make a new one\n") {
			t.Errorf("%v: the daemon says %q", flags, said)
		}
		h.Relaunch()
		if err := h.WaitReady(patience); err != nil {
			t.Error(err)
		}
	}
}

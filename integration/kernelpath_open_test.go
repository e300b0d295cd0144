// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestPlaintextOnlyBetweenTheTrusting captures all that goes over the underlay of a mesh of three, of which two trust each other, from the first packet
// on: during the start, switches of paths, failures of kernel paths, a crash, a restart, a stop and a reset. Only the two can be read, and only
// what they say to each other.
func TestPlaintextOnlyBetweenTheTrusting(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	hosts := []*lab.Host{l.Host("one", lan), l.Host("two", lan), l.Host("three", lan)}
	one, two, three := hosts[0], hosts[1], hosts[2]
	var wires []*lab.Capture
	began := time.Now()
	for _, h := range hosts {
		wires = append(wires, l.Capture(h.Namespace, h.Link().Device(), 512<<20))
	}
	trusts := func(h *lab.Host) []string {
		return []string{"--trusted-subnets", fmt.Sprintf("%v/32,%v/128", h.Link().V4(), h.Link().V6())}
	}
	flags := [][]string{trusts(two), trusts(one), {"--trusted-subnets", underlays}} // nobody trusts the third
	workloads := launchedEach(t, hosts, func(i int) []string { return flags[i] })
	talk(t, l, pairs(workloads...)...) // to the end
	onPath(t, "direct", one, two)
	seen := &readable{t: t, wires: wires, began: began, workloads: workloads}
	for _, h := range hosts {
		seen.macs = append(seen.macs, h.Link().MAC())
	}

	seen.phase("start", lab.Bare)
	for _, path := range []string{"vxlan", "udp", "direct", "udp", "vxlan"} {
		take(t, path, one, two)
		reachesBy(t, path, one, two)
		reachesBy(t, path, two, one)
		time.Sleep(silence)
	}
	// The third one's users may want what they will.
	done(t, three.Weft("path", one.Name(), "direct"))
	done(t, one.Weft("path", three.Name(), "vxlan"))
	time.Sleep(time.Second)
	seen.phase("switches", lab.Tunnelled, lab.Bare)

	lan.Block(one.Link(), two.Link(), lab.UDP(vxlanPort))
	reachesBy(t, "udp", one, two)
	flushRoutes(t, two)
	if err := one.Netlink().LinkDel(link(t, one.Namespace, "weft-vx4")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	lan.Heal()
	onPath(t, "vxlan", one, two)
	seen.phase("fallback", lab.Tunnelled)

	for _, h := range []*lab.Host{one, three} {
		h.Kill()
	}
	time.Sleep(2 * time.Second)
	seen.phase("crash", lab.Tunnelled)
	for _, h := range []*lab.Host{one, three} {
		h.Relaunch()
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
	}
	allReach(t, patience, workloads...)
	onPath(t, "vxlan", one, two)
	seen.phase("restart", lab.Tunnelled)

	done(t, one.Weft("stop", "--keep-traffic"))
	time.Sleep(time.Second)
	one.Relaunch()
	if err := one.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	onPath(t, "vxlan", one, two)
	done(t, two.Weft("stop"))
	time.Sleep(2 * time.Second)
	done(t, one.Weft("stop"))
	seen.phase("stop", lab.Tunnelled)
	// When nobody is there, nothing goes anywhere.
	time.Sleep(2 * time.Second)
	seen.phase("after the stop")
	done(t, two.Weft("reset", "--data-dir", two.DataDir()))
	time.Sleep(time.Second)
	seen.phase("after a reset")
	for _, h := range hosts {
		if h.Running() {
			h.Terminate()
		}
	}
	for _, c := range wires {
		c.Stop()
		if c.Missed() != 0 {
			t.Errorf("%d frames were not recorded", c.Missed())
		}
	}
}

// readable is what can be read on the underlay, phase by phase.
type readable struct {
	t         *testing.T
	wires     []*lab.Capture     // of all hosts' links
	macs      []net.HardwareAddr // of these
	began     time.Time          // the phase
	workloads []*lab.Workload    // one of each host; the first two trust each other
}

// phase ends one: what could be read in it was between the two that trust each other and about them alone; and in these ways it could.
func (r *readable) phase(name string, want ...lab.Openness) {
	r.t.Helper()
	until := time.Now()
	count := map[lab.Openness]int{}
	wrong := 0
	for i, c := range r.wires {
		for _, x := range c.Crossings(r.began, until, overlay(), weftPort) {
			if from := r.host(x.From); from >= 0 && from != i {
				continue // was seen when it was sent
			}
			count[x.Openness]++
			if r.harmless(x) {
				continue
			}
			if wrong++; wrong <= 5 {
				r.t.Errorf("%s: %v from %s to %s, outside %v, inside %v: %x", name, x.Openness, r.who(x.From), r.who(x.To), x.Outer, x.Inner, x.Data[:min(len(x.Data), 120)])
			}
		}
	}
	r.t.Logf("%s, %v: %v; %d wrong", name, until.Sub(r.began).Round(time.Millisecond), count, wrong)
	for _, o := range want {
		if count[o] < 10 {
			r.t.Errorf("%s: %d frames are %v: this shows nothing", name, count[o], o)
		}
	}
	r.began = until
}

// host finds the host with a hardware address, -1 if there is none.
func (r *readable) host(mac net.HardwareAddr) int {
	return slices.IndexFunc(r.macs, func(m net.HardwareAddr) bool { return bytes.Equal(m, mac) })
}

// who names the host with a hardware address, else the address: the switch's own is the gateway.
func (r *readable) who(mac net.HardwareAddr) string {
	if i := r.host(mac); i >= 0 {
		return r.workloads[i].Host().Name()
	}
	return mac.String()
}

// harmless reports whether a frame tells nothing, or it to whom it may.
func (r *readable) harmless(x lab.Crossing) bool {
	if x.Openness == lab.Bare || x.Openness == lab.Tunnelled {
		from, to := r.host(x.From), r.host(x.To)
		return (from == 0 && to == 1 || from == 1 && to == 0) && r.ofTheirs(x.Inner[0]) && r.ofTheirs(x.Inner[1])
	}
	// Whatever it is, sixteen bytes of an address do not stand in it by chance.
	for _, w := range r.workloads {
		if bytes.Contains(x.Data, w.V6.AsSlice()) {
			return false
		}
	}
	return true
}

// ofTheirs reports whether an address is not the third host's workload's. The hosts' own probe the paths.
func (r *readable) ofTheirs(a netip.Addr) bool {
	return r.workloads[2].V4 != a && r.workloads[2].V6 != a
}

// TestNothingOpenWithoutTrust captures a mesh that was told of no trust, with kernel paths allowed and demanded.
func TestNothingOpenWithoutTrust(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	hosts := []*lab.Host{l.Host("one", lan), l.Host("two", lan)}
	var wires []*lab.Capture
	for _, h := range hosts {
		wires = append(wires, l.Capture(h.Namespace, h.Link().Device(), 0))
	}
	workloads := launchedEach(t, hosts, func(int) []string { return []string{"--paths", "direct,vxlan,udp"} })
	all := talk(t, l, bothWays(workloads...)...)
	for _, path := range []string{"direct", "vxlan"} {
		for _, p := range eachOther(hosts) {
			refused(t, p[0].Weft("path", p[1].Name(), path), "--trusted-subnets")
		}
		time.Sleep(time.Second)
	}
	hosts[0].Kill()
	time.Sleep(time.Second)
	hosts[0].Relaunch()
	if err := hosts[0].WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	allReach(t, patience, workloads...)
	for _, h := range hosts {
		if found := kernelObjects(t, h); len(found) > 0 {
			t.Errorf("%s has kernel paths: %q", h.Name(), found)
		}
	}
	all.stop(t)
	for _, h := range hosts {
		h.Terminate()
	}
	for _, c := range wires {
		c.Stop()
		sealed := 0
		for _, x := range c.Crossings(time.Time{}, time.Time{}, overlay(), weftPort) {
			switch x.Openness {
			case lab.Sealed:
				sealed++
			case lab.Bare, lab.Tunnelled:
				t.Errorf("%v from %v to %v", x.Openness, x.Inner[0], x.Inner[1])
			}
		}
		if sealed < 100 || c.Missed() != 0 {
			t.Errorf("%d frames are sealed, %d were not recorded: this shows nothing", sealed, c.Missed())
		}
		noPlaintext(t, c, []netip.Addr{workloads[0].V6, workloads[1].V6})
	}
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// behindRouters builds two hosts, each on a switch of its own, and a router between them, that form a mesh with the flags; the workloads are attached.
func behindRouters(t *testing.T, option lab.HostOption, flags ...string) *pathLab {
	t.Helper()
	l := &pathLab{Lab: lab.New(t)}
	left, middle, right := l.Switch("left"), l.Switch("middle"), l.Switch("right")
	r1, r2 := l.Router("r1", left, middle), l.Router("r2", middle, right)
	r1.Route(right, r2, middle)
	l.hops, l.routes = []*lab.Link{r1.Link(middle), r2.Link(middle)}, []*lab.Router{r1, r2}
	l.a, l.b = l.Host("a", left, option), l.Host("b", right, option)
	ends := launched(t, []*lab.Host{l.a, l.b}, first([]*lab.Host{l.a}), append([]string{"--trusted-subnets", underlays}, flags...)...)
	l.w1, l.w2 = ends[0], ends[1]
	return l
}

// bothFamilies changes nothing of a host.
func bothFamilies() lab.HostOption { return lab.MTU(0) }

// TestKernelPaths has nodes that trust each other find the best path by themselves: on one switch the direct one, behind routers VXLAN, over each family
// of the underlay. Both families of the overlay go by it, at its full size, and a superpacket crosses as one.
func TestKernelPaths(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, path string
		mtu        int
		routed     bool
		option     lab.HostOption
		flags      []string
	}{
		{"direct", "direct", 1500, false, bothFamilies(), nil},
		{"direct over v4 alone", "vxlan", 1450, false, lab.OnlyV4, nil}, // nothing carries v6 of the overlay without a tunnel
		{"direct over v6 alone", "direct", 1500, false, lab.OnlyV6, nil},
		{"vxlan", "vxlan", 1450, true, lab.OnlyV4, nil},
		{"vxlan over v6", "vxlan", 1430, true, lab.OnlyV6, nil},
		{"vxlan for want of direct", "vxlan", 1450, false, lab.OnlyV4, []string{"--paths", "vxlan,udp"}},
		{"vxlan of another number", "vxlan", 1450, true, lab.OnlyV4, []string{"--vxlan-vni", "77"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var l *lab.Lab
			var hosts []*lab.Host
			var ends []*lab.Workload
			if tt.routed {
				p := behindRouters(t, tt.option, tt.flags...)
				l, hosts, ends = p.Lab, []*lab.Host{p.a, p.b}, []*lab.Workload{p.w1, p.w2}
			} else {
				m := lab.Mesh(t, 2, kernelFlags(tt.flags...), lab.Hosts(tt.option))
				l, hosts, ends = m.Lab, m.Hosts(), m.Workloads
			}
			onPath(t, tt.path, hosts...)
			allReach(t, patience, ends...)
			passes(t, ends[0], ends[1], tt.mtu)
			passes(t, ends[1], ends[0], tt.mtu)
			before := link(t, hosts[0].Namespace, "weft0").Attrs().Statistics.TxPackets
			moves(t, l, ends[0], ends[1], 8<<20)
			if n := link(t, hosts[0].Namespace, "weft0").Attrs().Statistics.TxPackets - before; n > 20 {
				t.Errorf("%d packets went through the daemon", n)
			}
			superpackets(t, l, hosts, ends)
			for _, p := range eachOther(hosts) {
				row := reachesBy(t, tt.path, p[0], p[1])
				if !strings.Contains(row.Kernel.Why, fmt.Sprintf("packets of %d bytes pass", tt.mtu)) {
					t.Errorf("%s explains %s to %s as %q", p[0].Name(), tt.path, p[1].Name(), row.Kernel.Why)
				}
			}
		})
	}
}

// superpackets moves data and looks at the packets that the far workload gets: as large as the near one has made them.
func superpackets(t *testing.T, l *lab.Lab, hosts []*lab.Host, ends []*lab.Workload) {
	t.Helper()
	const size, whole = 64 << 20, 8 << 10
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, a := range ends[1].Addrs() {
		below, _ := received(t, hosts[1].Namespace, "eth0")
		packets, bytes := received(t, ends[1].Namespace, "eth0")
		if _, err := l.Transfer(ctx, ends[0].Namespace, ends[1].Namespace, a, size); err != nil {
			t.Fatal(err)
		}
		crossed, _ := received(t, hosts[1].Namespace, "eth0")
		now, moved := received(t, ends[1].Namespace, "eth0")
		mean := (moved - bytes) / (now - packets)
		t.Logf("to %v: %d packets of %d bytes on average, %d on the underlay", a, now-packets, mean, crossed-below)
		if mean < whole {
			t.Errorf("packets to %v have %d bytes on average when they arrive", a, mean)
		}
		if crossed-below > (now-packets)*3/2+1000 {
			t.Errorf("%d packets crossed the underlay to become %d", crossed-below, now-packets)
		}
	}
}

// TestKernelPathConsent has three nodes of which only one pair trusts each other, in all the ways in which trust can be lacking, and tells why.
func TestKernelPathConsent(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	hosts := []*lab.Host{l.Host("one", lan), l.Host("two", lan), l.Host("gullible", lan), l.Host("wary", lan)}
	only := func(of ...*lab.Host) string {
		var all []string
		for _, h := range of {
			all = append(all, h.Link().V4().String()+"/32", h.Link().V6().String()+"/128")
		}
		return strings.Join(all, ",")
	}
	trust := []string{only(hosts[0], hosts[1]), only(hosts[0], hosts[1]), underlays, ""} // those of gullible are never returned
	workloads := launchedEach(t, hosts, func(i int) []string {
		if trust[i] == "" {
			return nil
		}
		return []string{"--trusted-subnets", trust[i]}
	})
	allReach(t, patience, workloads...)
	onPath(t, "direct", hosts[:2]...)
	for _, p := range [][2]*lab.Host{{hosts[0], hosts[2]}, {hosts[2], hosts[0]}, {hosts[2], hosts[3]}, {hosts[3], hosts[2]}, {hosts[3], hosts[0]}} {
		row := staysOn(t, "udp", p[0], p[1], time.Second)
		if p[0] != hosts[3] && !strings.Contains(row.Kernel.Why, "trust") { // the wary one has nothing to explain
			t.Errorf("%s explains udp to %s as %q", p[0].Name(), p[1].Name(), row.Kernel.Why)
		}
	}
	for _, h := range hosts[2:] {
		for _, line := range snapshot(t, h.Namespace) {
			if strings.Contains(line, "via 192.168.") && strings.Contains(line, fmt.Sprintf("protocol %d", routeProtocol)) {
				t.Errorf("%s has %s", h.Name(), line)
			}
		}
	}
}

// launchedEach is launched with flags for each host, which all join by the first one.
func launchedEach(t *testing.T, hosts []*lab.Host, flags func(i int) []string) []*lab.Workload {
	t.Helper()
	var secret string
	for i, h := range hosts {
		all := append([]string{"--range", lab.DefaultRange}, flags(i)...)
		if i == 0 {
			h.Launch(all...)
		} else {
			h.Join(secret, hosts[:1], all...)
		}
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			secret = h.Token()
		}
	}
	return attach(t, len(hosts), hosts...)
}

// TestPathsFlag limits and forces what nodes may use.
func TestPathsFlag(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		paths [2]string
		want  string // path, "" for none
	}{
		{"udp alone", [2]string{"udp", "direct,vxlan,udp"}, "udp"},
		{"vxlan and udp on one side", [2]string{"vxlan,udp", "direct,vxlan,udp"}, "vxlan"},
		{"nothing in common but udp", [2]string{"vxlan,udp", "direct,udp"}, "udp"},
		{"vxlan and nothing else", [2]string{"vxlan", "vxlan"}, "vxlan"},
		{"direct and nothing else", [2]string{"direct", "direct"}, "direct"},
		{"nothing in common", [2]string{"vxlan", "direct"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			lan := l.Switch("lan")
			hosts := []*lab.Host{l.Host("a", lan), l.Host("b", lan)}
			ends := launchedEach(t, hosts, func(i int) []string { return []string{"--trusted-subnets", underlays, "--paths", tt.paths[i]} })
			if tt.want == "" {
				time.Sleep(3 * time.Second) // in which a path would be found
				for _, a := range ends[1].Addrs() {
					unreachable(t, ends[0].Namespace, a)
				}
				return
			}
			onPath(t, tt.want, hosts...)
			allReach(t, patience, ends...)
			staysOn(t, tt.want, hosts[0], hosts[1], time.Second)
		})
	}
	t.Run("usage", func(t *testing.T) {
		t.Parallel()
		h := lab.New(t)
		one := h.Host("one", h.Switch("lan"))
		for _, flags := range [][]string{
			{"--paths", "pigeon"},
			{"--paths", ""},
			{"--trusted-subnets", "192.168.0.0/33"},
			{"--trusted-subnets", "here"},
			{"--vxlan-vni", "0"},
			{"--vxlan-vni", "16777216"},
			{"--encryption", "maybe"},
		} {
			r := one.RunLaunch(flags...)
			if r.Code == 0 || !strings.Contains(r.Stderr, flags[0]) {
				t.Errorf("%v: exit code %d, %q", flags, r.Code, r.Stderr)
			}
		}
	})
}

// TestPathOrder takes paths on the user's order, one peer at a time, and keeps them over a restart.
func TestPathOrder(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 3, kernelFlags())
	hosts := m.Hosts()
	onPath(t, "direct", hosts...)
	done(t, hosts[0].Weft("path", hosts[1].Name(), "vxlan"))
	reachesBy(t, "vxlan", hosts[0], hosts[1])
	staysOn(t, "direct", hosts[0], hosts[2], time.Second)
	staysOn(t, "direct", hosts[1], hosts[0], time.Second) // each side has its own order
	done(t, hosts[0].Weft("path", hosts[2].Name(), "udp"))
	reachesBy(t, "udp", hosts[0], hosts[2])
	allReach(t, patience, m.Workloads...)
	if code := hosts[0].Terminate(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	hosts[0].Relaunch()
	if err := hosts[0].WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	reachesBy(t, "vxlan", hosts[0], hosts[1])
	staysOn(t, "udp", hosts[0], hosts[2], 2*time.Second)
	take(t, "auto", hosts...)
	onPath(t, "direct", hosts...)
	refused(t, hosts[0].Weft("path", "nobody", "udp"), "nobody")
	if r := hosts[0].Weft("path", hosts[1].Name(), "pigeon"); r.Code == 0 || !strings.Contains(r.Stderr, "pigeon") {
		t.Errorf("exit code %d, %q", r.Code, r.Stderr)
	}
}

// TestEncryptionOff founds a mesh without encryption: nobody has to trust anybody, and everybody is told.
func TestEncryptionOff(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	hosts := []*lab.Host{l.Host("founder", lan), l.Host("joiner", lan), l.Host("refused", lan)}
	hosts[0].Launch("--range", lab.DefaultRange, "--encryption", "off")
	if err := hosts[0].WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	secret := hosts[0].Token()
	file := hosts[2].File("token", secret+"\n", 0o600)
	refusedLaunch(t, hosts[2].RunLaunch("--token-file", file, "--peer", hosts[0].Link().V4().String(), "--range", lab.DefaultRange, "--encryption", "on"), "encryption")
	hosts[1].Join(secret, hosts[:1], "--range", lab.DefaultRange)
	if err := hosts[1].WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	hosts = hosts[:2]
	ends := attach(t, 2, hosts...)
	onPath(t, "direct", hosts...)
	allReach(t, patience, ends...)
	for _, h := range hosts {
		if s := done(t, h.Weft("status")); !strings.Contains(s, "plaintext") {
			t.Errorf("the status of %s does not say that packets travel in plaintext:\n%s", h.Name(), s)
		}
	}
	if !strings.Contains(hosts[1].Log(), "encryption") {
		t.Errorf("the joiner was not warned:\n%s", hosts[1].Log())
	}
	passes(t, ends[0], ends[1], 1500)
	// It stays so, whoever is there.
	hosts[0].Terminate()
	hosts[0].Launch("--range", lab.DefaultRange)
	if err := hosts[0].WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	onPath(t, "direct", hosts...)
}

// TestKernelPathsEnd stops, kills, resets and leaves: nothing remains of kernel paths but what was asked for.
func TestKernelPathsEnd(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 2, kernelFlags(), lab.Hosts(oneFamily("direct")))
	hosts := m.Hosts()
	onPath(t, "direct", hosts...)
	allReach(t, patience, m.Workloads...)
	a := hosts[0]
	if len(kernelObjects(t, a)) == 0 {
		t.Fatal("no objects of kernel paths are found: this test shows nothing")
	}
	again := func() {
		t.Helper()
		a.Relaunch()
		if err := a.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		onPath(t, "direct", hosts...)
		allReach(t, patience, m.Workloads...)
	}
	gone := func(how string) {
		t.Helper()
		if left := kernelObjects(t, a); len(left) != 0 {
			t.Errorf("after %s:\n%s", how, strings.Join(left, "\n"))
		}
	}
	done(t, a.Weft("stop"))
	gone("weft stop")
	again()
	before := settled(t, a.Namespace)
	a.Terminate()
	gone("SIGTERM")
	again()
	same(t, "the host when it is up again", before, settled(t, a.Namespace))

	talking := talk(t, m.Lab, [2]*lab.Workload{m.Workloads[0], m.Workloads[1]})
	kept := kernelObjects(t, a)
	stopped := time.Now()
	if out := done(t, a.Weft("stop", "--keep-traffic")); !strings.Contains(out, "kernel") {
		t.Errorf("it says %q", out)
	}
	if left := kernelObjects(t, a); !slices.Equal(left, kept) {
		t.Errorf("after weft stop --keep-traffic: %v", diff(kept, left))
	}
	talking.whole(t, "while nobody is there", stopped)
	again()
	talking.whole(t, "when it is there again", stopped)
	talking.stop(t)

	// Without trust, nothing of an earlier run is left to carry anything.
	a.Kill()
	a.Launch("--range", lab.DefaultRange)
	if err := a.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	gone("a start without trust")
	allReach(t, patience, m.Workloads...)
	reachesBy(t, "udp", hosts[1], a)
	a.Terminate()
	a.Launch("--range", lab.DefaultRange, "--trusted-subnets", underlays)
	if err := a.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	onPath(t, "direct", hosts...)
	a.Kill() // so that there is something to remove
	m.Workloads[0].Delete()
	done(t, a.Weft("reset", "--data-dir", a.DataDir()))
	gone("weft reset")
	done(t, hosts[1].Weft("leave", "--force"))
	if left := kernelObjects(t, hosts[1]); len(left) != 0 {
		t.Errorf("after weft leave:\n%s", strings.Join(left, "\n"))
	}
}

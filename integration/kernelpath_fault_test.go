// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// broken is two hosts that trust each other, traffic between them by a kernel path, and something that happens to the path.
type broken struct {
	t      *testing.T
	lab    *lab.Lab
	lan    *lab.Segment // both hosts' switch, nil behind routers
	routed *pathLab     // nil on a switch
	hosts  []*lab.Host
	ends   []*lab.Workload
	path   string
	short  talks
	long   talks // packets of the path's full size
}

// breakable sets it up.
func breakable(t *testing.T, path string, routed bool) *broken {
	t.Helper()
	b := &broken{t: t, path: path}
	mtu := 1450
	if routed {
		b.routed = behindRouters(t, lab.OnlyV4)
		b.lab, b.hosts, b.ends = b.routed.Lab, []*lab.Host{b.routed.a, b.routed.b}, []*lab.Workload{b.routed.w1, b.routed.w2}
	} else {
		flags := []string{}
		if path == "vxlan" {
			flags = append(flags, "--paths", "vxlan,udp")
		} else {
			mtu = 1500
		}
		m := lab.Mesh(t, 2, kernelFlags(flags...), lab.Hosts(oneFamily(path)))
		b.lab, b.lan, b.hosts, b.ends = m.Lab, m.Segment, m.Hosts(), m.Workloads
	}
	onPath(t, path, b.hosts...)
	b.short = talk(t, b.lab, bothWays(b.ends...)...)
	b.long = talkOf(t, b.lab, longest(mtu), bothWays(b.ends...)...)
	time.Sleep(time.Second) // in which the path is noticed to carry traffic
	return b
}

// oneFamily lets hosts have addresses of one family only, so that what they have to reach each other by a path is always the same.
func oneFamily(path string) lab.HostOption {
	if path == "vxlan" {
		return lab.OnlyV4
	}
	return lab.OnlyV6
}

// happens lets something happen, and checks that traffic, short and long, stops for no longer than it may.
func (b *broken) happens(what string, f func()) (since time.Time) {
	b.t.Helper()
	since = time.Now()
	f()
	all := talks{}
	for _, some := range []talks{b.short, b.long} {
		for name, k := range some {
			all[name] = k
		}
	}
	time.Sleep(time.Until(since.Add(2 * fallback)))
	longest, which := all.outage(since)
	b.t.Logf("%s: no traffic for %v at most, from %s", what, longest.Round(time.Millisecond), which)
	if longest > fallback {
		b.t.Errorf("%s: no traffic from %s for %v, more than %v", what, which, longest.Round(time.Millisecond), fallback)
		paths(b.t, since, b.hosts)
	}
	return since
}

// leaves waits until a host no longer uses the path, and checks that the reason is told, by peers and by an event, with these words.
func (b *broken) leaves(from, to *lab.Host, since time.Time, words ...string) {
	b.t.Helper()
	row := reachesBy(b.t, "udp", from, to)
	for _, w := range words {
		if !strings.Contains(row.Kernel.Why, w) {
			b.t.Errorf("%s explains udp to %s as %q, which lacks %q", from.Name(), to.Name(), row.Kernel.Why, w)
		}
	}
	saysEvent(b.t, from, since, append([]string{"path", to.Name(), "udp"}, words...)...)
	for line := range strings.Lines(done(b.t, from.Weft("peers"))) {
		if strings.HasPrefix(line, to.Name()+" ") && (len(words) > 0 && !strings.Contains(line, words[0])) {
			b.t.Errorf("the table on %s says %q", from.Name(), line)
		}
	}
}

// returns waits until both use the path again, and checks that traffic went on meanwhile.
func (b *broken) returns(since time.Time) {
	b.t.Helper()
	onPath(b.t, b.path, b.hosts...)
	b.t.Logf("the path is used again after %v", time.Since(since).Round(time.Millisecond))
	time.Sleep(time.Second)
	for _, some := range []talks{b.short, b.long} {
		if d, which := some.outage(since); d > time.Second {
			b.t.Errorf("no traffic from %s for %v when the path is used again", which, d.Round(time.Millisecond))
		}
	}
}

// over checks that no connection broke.
func (b *broken) over() {
	b.t.Helper()
	b.short.stop(b.t)
	b.long.stop(b.t)
}

// TestVXLANBlocked drops VXLAN on the way, in one direction and in both.
func TestVXLANBlocked(t *testing.T) {
	t.Parallel()
	for _, both := range []bool{false, true} {
		t.Run(map[bool]string{false: "one direction", true: "both"}[both], func(t *testing.T) {
			t.Parallel()
			b := breakable(t, "vxlan", false)
			h, other := b.hosts[0], b.hosts[1]
			since := b.happens("VXLAN is dropped", func() {
				b.lan.Block(h.Link(), other.Link(), lab.UDP(vxlanPort))
				if both {
					b.lan.Block(other.Link(), h.Link(), lab.UDP(vxlanPort))
				}
			})
			b.leaves(h, other, since, "no answer", "vxlan", fmt.Sprint(vxlanPort))
			if both {
				b.leaves(other, h, since, "no answer", "vxlan", fmt.Sprint(vxlanPort))
			} else {
				staysOn(t, "vxlan", other, h, time.Second) // its direction is not harmed
			}
			healed := time.Now()
			b.lan.Heal()
			b.returns(healed)
			b.over()
		})
	}
}

// TestDirectBlocked drops what goes by the direct path, and nothing else; VXLAN is next.
func TestDirectBlocked(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 2, kernelFlags())
	b := &broken{t: t, path: "direct", lab: m.Lab, lan: m.Segment, hosts: m.Hosts(), ends: m.Workloads}
	onPath(t, "direct", b.hosts...)
	b.short, b.long = talk(t, b.lab, bothWays(b.ends...)...), talkOf(t, b.lab, longest(1450), bothWays(b.ends...)...)
	time.Sleep(time.Second)
	h, other := b.hosts[0], b.hosts[1]
	since := b.happens("packets of the overlay are dropped", func() {
		for _, p := range overlay() {
			b.lan.BlockTo(h.Link(), other.Link(), p)
		}
	})
	row := reachesBy(t, "vxlan", h, other)
	if !strings.Contains(row.Kernel.Why, "direct") {
		t.Errorf("%s explains vxlan as %q", h.Name(), row.Kernel.Why)
	}
	saysEvent(t, h, since, "path", other.Name(), "vxlan", "no answer by direct")
	healed := time.Now()
	b.lan.Heal()
	b.returns(healed)
	b.over()
}

// TestKernelPathMTU narrows the way between two hosts, of which nobody tells them: a little, so that the sealed path is not harmed, and by more.
func TestKernelPathMTU(t *testing.T) {
	t.Parallel()
	for _, narrow := range []int{1470, 1400} {
		t.Run(fmt.Sprint(narrow), func(t *testing.T) {
			t.Parallel()
			b := breakable(t, "vxlan", true)
			for _, r := range b.routed.routes {
				r.KeepQuiet()
			}
			since := b.happens(fmt.Sprintf("the way narrows to %d bytes", narrow), func() { b.routed.setHop(narrow) })
			b.leaves(b.hosts[0], b.hosts[1], since, "packets of 1450 bytes", "vxlan")
			b.leaves(b.hosts[1], b.hosts[0], since, "packets of 1450 bytes", "vxlan")
			healed := time.Now()
			b.routed.setHop(1500)
			b.returns(healed)
			b.over()
		})
	}
}

// TestKernelPathTampered lets somebody take away what kernel paths consist of. Traffic goes on, what is missing is put back, and both are told.
func TestKernelPathTampered(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"vxlan", "direct"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			b := breakable(t, path, false)
			h := b.hosts[0]
			before := settled(t, h.Namespace)
			check := func(what string, f func(), words ...string) {
				t.Helper()
				since := b.happens(what, f)
				saysEvent(t, h, since, words...)
				eventually(t, patience, func() error {
					if d := diff(before, settled(t, h.Namespace)); len(d) > 0 {
						return fmt.Errorf("%s: %v", what, d)
					}
					return nil
				})
				onPath(t, path, b.hosts...)
			}
			check("its routes are deleted", func() { flushRoutes(t, h) }, "route")
			check("its rules are deleted", func() { flushRules(t, h) }, "rule")
			check("all nftables are flushed", func() {
				if err := h.ClearRules(); err != nil {
					t.Fatal(err)
				}
			}, "table")
			if path == "direct" {
				b.over()
				return
			}
			const device = "weft-vx4"
			check("the device is set down", func() {
				if err := h.Netlink().LinkSetDown(link(t, h.Namespace, device)); err != nil {
					t.Fatal(err)
				}
			}, device)
			check("its forwarding entries and neighbours are deleted", func() { flushNeighbours(t, h, device) }, device)
			check("the device is deleted", func() {
				if err := h.Netlink().LinkDel(link(t, h.Namespace, device)); err != nil {
					t.Fatal(err)
				}
			}, device)
			b.over()
		})
	}
}

// flushRules deletes the rules of kernel paths.
func flushRules(t *testing.T, h *lab.Host) {
	t.Helper()
	gone := 0
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := h.Netlink().RuleList(family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.Table != 8701 && r.Table != 8702 {
				continue
			}
			r.Family = family
			if err := h.Netlink().RuleDel(&r); err != nil {
				t.Fatalf("%v: %v", r, err)
			}
			gone++
		}
	}
	if gone == 0 {
		t.Fatalf("%s has no rules of kernel paths", h.Name())
	}
}

// flushNeighbours deletes a device's forwarding entries and neighbours, permanent or not.
func flushNeighbours(t *testing.T, h *lab.Host, device string) {
	t.Helper()
	gone := 0
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6, unix.AF_BRIDGE} {
		all, err := h.Netlink().NeighList(link(t, h.Namespace, device).Attrs().Index, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range all {
			if n.State&netlink.NUD_PERMANENT == 0 {
				continue
			}
			n.Family = family
			if err := h.Netlink().NeighDel(&n); err != nil {
				t.Fatalf("%v: %v", n, err)
			}
			gone++
		}
	}
	if gone < 2 {
		t.Fatalf("%s has %d neighbours and forwarding entries", device, gone)
	}
}

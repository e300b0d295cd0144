// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

const (
	// underlays are the networks of the lab, as hosts trust them.
	underlays = "192.168.0.0/16,2001:db8::/32"
	// vxlanPort is where VXLAN goes to: the port of the mesh and one.
	vxlanPort = weftPort + 1
	// proven is how long a node may need from its start until it has found and proven the best path.
	proven = 30 * time.Second
	// fallback is how long traffic may stop when a kernel path breaks.
	fallback = 2 * time.Second
	// routeProtocol marks the routes of kernel paths.
	routeProtocol = 88
)

// kernelFlags let all hosts trust the whole network below them.
func kernelFlags(more ...string) lab.MeshOption {
	return lab.Flags(append([]string{"--trusted-subnets", underlays}, more...)...)
}

// kernelRow is what the tests read of a row of `weft peers --json` about kernel paths.
type kernelRow struct {
	Name   string `json:"name"`
	Path   string `json:"path"`
	Kernel struct {
		Want  string `json:"want"`
		Path  string `json:"path"`
		Why   string `json:"why"`
		Kinds []struct {
			Kind  string `json:"kind"`
			State string `json:"state"`
			Why   string `json:"why"`
			MTU   int    `json:"mtu"`
		} `json:"kinds"`
	} `json:"kernel"`
}

// kernelPeer returns what a host's daemon says of the path to another one.
func kernelPeer(h, to *lab.Host) (kernelRow, error) {
	rows, err := tell[[]kernelRow](h, "peers")
	if err != nil {
		return kernelRow{}, err
	}
	for _, r := range rows {
		if r.Name == to.Name() {
			return r, nil
		}
	}
	return kernelRow{}, fmt.Errorf("%s does not know %s", h.Name(), to.Name())
}

// onPath waits until each of the hosts reaches each other one by that path.
func onPath(t *testing.T, path string, hosts ...*lab.Host) {
	t.Helper()
	for _, p := range eachOther(hosts) {
		reachesBy(t, path, p[0], p[1])
	}
}

// reachesBy waits until a host reaches another one by that path, and returns what is said of it.
func reachesBy(t *testing.T, path string, h, to *lab.Host) (row kernelRow) {
	t.Helper()
	eventually(t, proven, func() (err error) {
		if row, err = kernelPeer(h, to); err == nil && row.Path != path {
			err = fmt.Errorf("%s reaches %s by %s (%+v), not by %s", h.Name(), to.Name(), row.Path, row.Kernel, path)
		}
		return err
	})
	return row
}

// staysOn checks for a while that a host reaches another one by that path.
func staysOn(t *testing.T, path string, h, to *lab.Host, length time.Duration) (row kernelRow) {
	t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var err error
		if row, err = kernelPeer(h, to); err != nil {
			t.Fatal(err)
		}
		if row.Path != path {
			t.Fatalf("%s reaches %s by %s (%+v), not by %s", h.Name(), to.Name(), row.Path, row.Kernel, path)
		}
	}
	return row
}

// eachOther are all pairs of the hosts, in both directions.
func eachOther(hosts []*lab.Host) (out [][2]*lab.Host) {
	for _, a := range hosts {
		for _, b := range hosts {
			if a != b {
				out = append(out, [2]*lab.Host{a, b})
			}
		}
	}
	return out
}

// bothWays are all pairs of the workloads, in both directions.
func bothWays(workloads ...*lab.Workload) (out [][2]*lab.Workload) {
	for _, p := range pairs(workloads...) {
		out = append(out, p, [2]*lab.Workload{p[1], p[0]})
	}
	return out
}

// take makes hosts take a path to each other, on the user's order.
func take(t *testing.T, path string, hosts ...*lab.Host) {
	t.Helper()
	for _, p := range eachOther(hosts) {
		done(t, p[0].Weft("path", p[1].Name(), path))
	}
}

// says waits until an event of a host since then has all of the words, in what it says or why, and returns it.
func saysEvent(t *testing.T, h *lab.Host, since time.Time, words ...string) (found event) {
	t.Helper()
	eventually(t, patience, func() error {
		all, err := tell[[]event](h, "events")
		if err != nil {
			return err
		}
		for _, e := range all {
			text := strings.Join([]string{e.Kind, e.Node, e.Text, e.Cause}, " ")
			if e.Time.After(since) && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) }) {
				found = e
				return nil
			}
		}
		return fmt.Errorf("no event of %s since %v has all of %q: %+v", h.Name(), since, words, all)
	})
	return found
}

// link returns a device of the host.
func link(t *testing.T, n *lab.Namespace, name string) netlink.Link {
	t.Helper()
	l, err := n.Netlink().LinkByName(name)
	if err != nil {
		t.Fatalf("%s of %s: %v", name, n.Name(), err)
	}
	return l
}

// kernelObjects returns what of a snapshot is of kernel paths.
func kernelObjects(t *testing.T, h *lab.Host) (found []string) {
	t.Helper()
	ours := regexp.MustCompile(fmt.Sprintf(`weft-vx|protocol %d|table 870[12]|8701|8702`, routeProtocol))
	for _, line := range snapshot(t, h.Namespace) {
		if ours.MatchString(line) {
			found = append(found, line)
		}
	}
	return found
}

// flushRoutes deletes the routes of kernel paths from all tables, as root on a host can.
func flushRoutes(t *testing.T, h *lab.Host) {
	t.Helper()
	gone := 0
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := h.Netlink().RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.Protocol != routeProtocol {
				continue
			}
			if err := h.Netlink().RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Fatalf("%v: %v", r, err)
			}
			gone++
		}
	}
	if gone == 0 {
		t.Fatalf("%s has no routes of kernel paths", h.Name())
	}
}

// longest is the size of datagrams that fill packets of an MTU, of both families.
func longest(mtu int) int { return mtu - 40 - 8 }

// talkOf begins conversations of datagrams of a size, from the first to the second workload of each pair, by all addresses.
func talkOf(t *testing.T, l *lab.Lab, size int, pairs ...[2]*lab.Workload) talks {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all := talks{}
	for _, p := range pairs {
		for _, a := range p[1].Addrs() {
			if _, err := p[0].Reach(a, patience); err != nil {
				t.Fatal(err)
			}
			k, err := l.TalkOf(ctx, p[0].Namespace, p[1].Namespace, a, size)
			if err != nil {
				t.Fatal(err)
			}
			all[fmt.Sprintf("%s to %v of %s, %d bytes", p[0].Name(), a, p[1].Name(), size)] = k
		}
	}
	return all
}

// count sums up what became of the datagrams of all of them since then.
func (k talks) count(since time.Time) (sum lab.Count) {
	for _, one := range k {
		c := one.Count(since)
		sum.Sent += c.Sent
		sum.Arrived += c.Arrived
		sum.Answered += c.Answered
		sum.Copies += c.Copies
	}
	return sum
}

// whole checks that none of the datagrams since then was lost, on the way there or back.
func (k talks) whole(t *testing.T, what string, since time.Time) {
	t.Helper()
	time.Sleep(1500 * time.Millisecond) // those of the last second are not counted
	for name, one := range k {
		if c := one.Count(since); c.Sent == 0 || c.Answered != c.Sent {
			t.Errorf("%s: %s: %+v: not all was answered", what, name, c)
		}
	}
	t.Logf("%s: %+v", what, k.count(since))
}

// shuttle is transfers over TCP that follow one another, each byte of which is compared, until they are ended.
type shuttle struct {
	stop  context.CancelFunc
	work  sync.WaitGroup
	mu    sync.Mutex
	bytes int64
	times int
	errs  []error
}

// startShuttle moves size bytes at a time from the first to the second workload of each pair, by turns by all its addresses.
func startShuttle(t *testing.T, l *lab.Lab, size int64, pairs ...[2]*lab.Workload) *shuttle {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &shuttle{stop: cancel}
	for _, p := range pairs {
		s.work.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				addr := p[1].Addrs()[i%len(p[1].Addrs())]
				limit, done := context.WithTimeout(t.Context(), time.Minute) // what has begun may end
				_, err := l.Transfer(limit, p[0].Namespace, p[1].Namespace, addr, size)
				done()
				s.mu.Lock()
				s.times++
				if s.bytes += size; err != nil {
					s.errs = append(s.errs, err)
				}
				s.mu.Unlock()
			}
		})
	}
	return s
}

// end ends it, and returns how much was moved.
func (s *shuttle) end(t *testing.T) (bytes int64, times int) {
	t.Helper()
	s.stop()
	s.work.Wait()
	for _, err := range s.errs {
		t.Error(err)
	}
	return s.bytes, s.times
}

// passes checks that a packet of a size passes from one workload to another one by all its addresses, unfragmented, and one of a byte more does not.
func passes(t *testing.T, from, to *lab.Workload, size int) {
	t.Helper()
	for _, a := range to.Addrs() {
		if _, err := from.Ping(lab.Ping{To: a, Size: size, DontFragment: true}); err != nil {
			t.Errorf("a packet of %d bytes: %v", size, err)
		}
		if _, err := from.Ping(lab.Ping{To: a, Size: size + 1, DontFragment: true, Timeout: silence}); err == nil {
			t.Errorf("a packet of %d bytes passes from %s to %v, too", size+1, from.Name(), a)
		}
	}
}

// received is what a device has received so far.
func received(t *testing.T, n *lab.Namespace, device string) (packets, bytes uint64) {
	t.Helper()
	s := link(t, n, device).Attrs().Statistics
	return s.RxPackets, s.RxBytes
}

// overlay are the addresses of the mesh.
func overlay() []netip.Prefix { return lab.Overlay(lab.DefaultRange) }

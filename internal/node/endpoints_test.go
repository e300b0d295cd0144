// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/mesh"
)

func addrList(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func apList(list ...string) (out []netip.AddrPort) {
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func TestEndpoints(t *testing.T) {
	link := func(best string, all ...string) hostnet.Link {
		return hostnet.Link{Addr: netip.MustParseAddr(best), Addrs: addrList(all...)}
	}
	var many, far []string
	for i := range 20 {
		many, far = append(many, fmt.Sprint("192.0.2.", i+1)), append(far, fmt.Sprint("203.0.113.1:", 1000+i))
	}
	for _, c := range []struct {
		what string
		link hostnet.Link
		seen reach
		want string
	}{
		{"one address", link("192.0.2.1", "192.0.2.1"), reach{}, "192.0.2.1:6783"},
		{"several", link("192.0.2.1", "192.0.2.1", "192.0.2.9", "2001:db8::1"), reach{}, "192.0.2.1:6783 192.0.2.9:6783 [2001:db8::1]:6783"},
		{"advertised, of a NAT's", link("203.0.113.1", "10.0.0.5"), reach{}, "203.0.113.1:6783 10.0.0.5:6783"},
		{"seen by others", link("10.0.0.5", "10.0.0.5"), reach{observed: apList("203.0.113.1:40001", "10.0.0.5:6783", "203.0.113.1:40000", "[2001:db8::5]:7")}, "10.0.0.5:6783 203.0.113.1:40000 203.0.113.1:40001 [2001:db8::5]:7"},
		{"each time another port", link("10.0.0.5", "10.0.0.5"), reach{observed: apList("203.0.113.1:40001"), symmetric: true}, "10.0.0.5:6783"},
		{"nonsense", link("10.0.0.5", "10.0.0.5"), reach{observed: apList("127.0.0.1:5", "203.0.113.1:0", "[fe80::1]:6783", "0.0.0.0:1")}, "10.0.0.5:6783"},
		{"too many", link("192.0.2.1", many...), reach{observed: apList("203.0.113.1:1")}, "192.0.2.1:6783 192.0.2.2:6783 192.0.2.3:6783 192.0.2.4:6783 192.0.2.5:6783 192.0.2.6:6783 192.0.2.7:6783 192.0.2.8:6783 192.0.2.9:6783 192.0.2.10:6783 192.0.2.11:6783 192.0.2.12:6783 192.0.2.13:6783 192.0.2.14:6783 192.0.2.15:6783 203.0.113.1:1"},
		{"too many seen", link("10.0.0.5", "10.0.0.5"), reach{observed: apList(far...)}, "10.0.0.5:6783 " + strings.Join(far[:15], " ")},
		{"nowhere", hostnet.Link{}, reach{}, ""},
	} {
		var w whereabouts
		w.set(c.link)
		w.see(c.seen, time.Now())
		if got := strings.Join(strings.Fields(strings.Trim(fmt.Sprint(w.endpoints(6783)), "[]")), " "); got != strings.Trim(c.want, "[]") {
			t.Errorf("%s:\ngot  %s\nwant %s", c.what, got, c.want)
		}
	}
}

// A NAT that changes its mind all the time changes the record now and then only.
func TestSeenAddressesDoNotChurn(t *testing.T) {
	var w whereabouts
	now, changes, last := time.Now(), 0, ""
	for i := range 600 {
		again := w.see(reach{observed: apList(fmt.Sprint("203.0.113.1:", 1000+i))}, now)
		if got := fmt.Sprint(w.endpoints(6783)); got != last {
			last = got
			changes++
		} else if again <= 0 || again > seenGap {
			t.Fatalf("held back, and to be looked at again after %v", again)
		}
		now = now.Add(100 * time.Millisecond)
	}
	if changes != 6 {
		t.Errorf("%d changes in a minute", changes)
	}
	if again := w.see(reach{}, now); again != 0 || len(w.endpoints(6783)) != 0 {
		t.Errorf("after the last: %v, %v", w.endpoints(6783), again)
	}
}

// Who still sees the node at an address that its host had does not bring it back into the record.
func TestPastAddressesAreNotSeen(t *testing.T) {
	var w whereabouts
	at := func(addrs ...string) hostnet.Link {
		return hostnet.Link{Addr: netip.MustParseAddr(addrs[0]), Addrs: addrList(addrs...)}
	}
	expect := func(want string) {
		t.Helper()
		w.see(reach{observed: apList("192.0.2.1:6783", "203.0.113.9:40000")}, time.Now())
		if got := strings.Join(texts(w.endpoints(6783)), " "); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	w.set(at("192.0.2.1"))
	expect("192.0.2.1:6783 203.0.113.9:40000")
	w.set(at("192.0.2.77"))
	w.seenAt = time.Time{}
	expect("192.0.2.77:6783 203.0.113.9:40000")
	w.set(at("192.0.2.1"))
	w.seenAt = time.Time{}
	expect("192.0.2.1:6783 203.0.113.9:40000")
	for i := range 1000 {
		w.set(at(fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)))
	}
	if n := len(w.past); n != maxPast || w.past[n-1] != netip.MustParseAddr("10.0.3.249") {
		t.Errorf("%d addresses are remembered, the last %v", n, w.past[n-1])
	}
}

// A host that gets another address says so at once, and says no more than what has changed.
func TestRecordFollowsTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		n1.rewired = newSignal()
		n2.interfaces = addrList("10.0.0.5") // behind a NAT
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, func(cfg *Config) { cfg.Advertise, cfg.NoRelay = n2.addr, true }, "n1")
		c.ready(n2)
		// what the other's router is told of a node
		known := func(at *machine, name string) (eps []netip.AddrPort, noRelay bool, links []uint64) {
			at.mu.Lock()
			p := at.carrier
			at.mu.Unlock()
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, peer := range p.peers {
				if peer.Name == name {
					return peer.Endpoints, peer.NoRelay, peer.Links
				}
			}
			return nil, false, nil
		}
		c.eventually(10*time.Second, "n2 is known", func() bool {
			eps, _, _ := known(n1, "n2")
			return slices.Contains(eps, netip.MustParseAddrPort("10.0.0.5:6783"))
		})
		eps, noRelay, _ := known(n1, "n2")
		if !noRelay || eps[0] != netip.AddrPortFrom(n2.addr, 6783) {
			t.Errorf("n2 is known at %v, no relay: %v", eps, noRelay)
		}
		if _, noRelay, _ := known(n2, "n1"); noRelay {
			t.Error("n1 does not relay")
		}

		n1.mu.Lock()
		n1.interfaces = addrList("192.0.2.77", "2001:db8::77")
		n1.mu.Unlock()
		n1.rewired.raise()
		began := time.Now()
		c.eventually(2*time.Second, "n1 is known where it is now", func() bool {
			eps, _, _ := known(n2, "n1")
			return slices.Contains(eps, netip.MustParseAddrPort("192.0.2.77:6783")) && slices.Contains(eps, netip.MustParseAddrPort("[2001:db8::77]:6783"))
		})
		t.Logf("known after %v", time.Since(began))
		c.eventually(time.Minute, "an event", func() bool {
			return count(n1.happened(), "path this node is reached at 192.0.2.77 2001:db8::77: the addresses of the host have changed") == 1
		})

		n1.carrier.mu.Lock()
		n1.carrier.reached = reach{observed: apList("198.51.100.4:4444"), links: []mesh.NodeID{n2.id(t)}}
		n1.carrier.mu.Unlock()
		n1.carrier.config.onReach()
		c.eventually(2*time.Second, "others know at which address n2 sees n1", func() bool {
			eps, _, links := known(n2, "n1")
			return slices.Contains(eps, netip.MustParseAddrPort("198.51.100.4:4444")) && len(links) == 1 && links[0] == uint64(n2.id(t))
		})

		// Looking again finds the same, and says nothing.
		seq := n2.seqOf(t, "n1")
		for range 20 {
			n1.rewired.raise()
			n1.carrier.config.onReach()
			time.Sleep(10 * time.Second)
		}
		if got := n2.seqOf(t, "n1"); got != seq {
			t.Errorf("the record went from %d to %d without a reason", seq, got)
		}
		n1.mu.Lock()
		n1.unplugged = true
		n1.mu.Unlock()
		n1.rewired.raise()
		c.eventually(10*time.Second, "a warning", func() bool {
			return slices.ContainsFunc(n1.service().Status().Warnings, func(w string) bool { return strings.HasPrefix(w, "no interface of this host is up") })
		})
		n1.mu.Lock()
		n1.unplugged = false
		n1.mu.Unlock()
		c.eventually(time.Minute, "no warning, though nobody says that the network is back", func() bool { return len(n1.service().Status().Warnings) == 0 })
		if got := n2.seqOf(t, "n1"); got != seq {
			t.Errorf("the record went from %d to %d, while the host had no network", seq, got)
		}
	})
}

// node is the node that runs on m.
func (m *machine) node(t *testing.T) *Node {
	t.Helper()
	n, ok := m.service().(*Node)
	if !ok {
		t.Fatalf("%T is no node", m.service())
	}
	return n
}

func (m *machine) id(t *testing.T) mesh.NodeID { return m.node(t).state.identity.ID }

// seqOf returns the number of a node's record that m has.
func (m *machine) seqOf(t *testing.T, name string) uint64 {
	for _, x := range m.node(t).engines().mesh.Nodes() {
		if x.Name == name {
			return x.Seq
		}
	}
	t.Fatalf("%s does not know %s", m.name, name)
	return 0
}

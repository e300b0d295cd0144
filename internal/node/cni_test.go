// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netns"
)

// request is what the runtime of m asks for a container, whose namespace is made.
func request(m *machine, container string) cni.Request {
	path := "/run/netns/" + container
	m.mu.Lock()
	m.spaces[path] = netns.ID("net:[" + m.name + container + "]")
	m.mu.Unlock()
	return cni.Request{Key: cni.Key{ContainerID: container, IfName: "eth0"}, Network: "net1", Netns: path}
}

func release(r cni.Request) cni.Release {
	return cni.Release{Key: r.Key, Network: r.Network, Netns: r.Netns}
}

// add has the runtime of m attach what it asks for.
func (c *cluster) add(m *machine, r cni.Request) cni.Attachment {
	c.t.Helper()
	a, err := m.service().CNIAttach(c.t.Context(), r)
	if err != nil {
		c.t.Fatalf("%s: adding %s: %v", m.name, r.ContainerID, err)
	}
	return a
}

func (c *cluster) del(m *machine, r cni.Release) {
	c.t.Helper()
	if err := m.service().CNIDetach(c.t.Context(), r); err != nil {
		c.t.Fatalf("%s: deleting %+v: %v", m.name, r, err)
	}
}

// one starts a cluster of one node.
func one(t *testing.T) (*cluster, *machine) {
	t.Helper()
	c := newCluster(t, 1)
	c.start(c.machines[0], nil)
	c.ready(c.machines[0])
	return c, c.machines[0]
}

// refused checks an error that a runtime gets.
func refused(t *testing.T, err error, code uint, msg, details string) {
	t.Helper()
	var got *cni.Error
	if !errors.As(err, &got) {
		t.Errorf("got %v, want code %d: %s; %s", err, code, msg, details)
		return
	}
	if want := (cni.Error{Code: code, Msg: msg, Details: details}); *got != want {
		t.Errorf("got  %d %q, %q\nwant %d %q, %q", got.Code, got.Msg, got.Details, want.Code, want.Msg, want.Details)
	}
}

func TestCNIGivesWhatIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		host := n1.service().Status().Addresses
		r := request(n1, "c1")
		r.IPs = []netip.Addr{netip.MustParseAddr("fd00::77"), netip.MustParseAddr("10.32.0.119")}
		r.MAC, r.MTU, r.Pod = "0A:58:0a:20:00:77", 1300, cni.Pod{Namespace: "shop", Name: "till", UID: "u-1"}
		got := c.add(n1, r)
		hostMAC, _ := hostnet.MACs(hostnet.Workload{ID: "cni/c1/eth0"})
		want := cni.Attachment{
			HostIf: hostnet.HostIf("cni/c1/eth0"), HostMAC: hostMAC.String(), MAC: "0a:58:0a:20:00:77", MTU: 1300,
			Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.119"), netip.MustParseAddr("fd00::77")},
			Routes: []cni.Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: host[0]},
				{Dst: netip.MustParsePrefix("::/0"), GW: host[1]},
			},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if again := c.add(n1, r); !reflect.DeepEqual(again, want) {
			t.Errorf("asked again: %+v", again)
		}
		shown := n1.service().Workloads()
		if len(shown) != 1 {
			t.Fatalf("shown are %+v", shown)
		}
		origin := api.CNIOrigin{Network: "net1", ContainerID: "c1", PodNamespace: "shop", PodName: "till", PodUID: "u-1"}
		if w := shown[0]; w.ID != "cni/c1/eth0" || w.CNI == nil || *w.CNI != origin || w.HostIf != want.HostIf || w.State != "up" {
			t.Errorf("shown is %+v, %+v", w, w.CNI)
		}
		c.del(n1, release(r))
		c.del(n1, release(r)) // what is gone is no error
		if got := owners(n1); !slices.Equal(got, []string{hostOwner}) || len(n1.host.up) != 0 {
			t.Errorf("left are %v, %v", got, n1.host.up)
		}
	})
}

func TestCNIAddressesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		r := request(n1, "c1")
		r.AddressesOnly = true
		got := c.add(n1, r)
		if got.HostIf+got.HostMAC+got.MAC != "" || len(got.Addresses) != 2 || len(got.Routes) != 2 {
			t.Errorf("got %+v", got)
		}
		if want := []netip.Prefix{netip.MustParsePrefix("10.32.0.0/16"), netip.MustParsePrefix("fd00::/112")}; !slices.Equal(got.Universe, want) {
			t.Errorf("they are in %v", got.Universe)
		}
		if w := n1.service().Workloads()[0]; !w.AddressesOnly || w.HostIf != "" {
			t.Errorf("shown is %+v", w)
		}
		// Nobody but the runtime knows whether they are in use, whatever becomes of the namespace.
		n1.vanish(api.Workload{Netns: r.Netns}, true, false)
		time.Sleep(2 * repairInterval)
		if g, err := n1.service().GC(api.GCRequest{}); err != nil || len(g.Garbage) != 0 {
			t.Errorf("gc: %+v, %v", g, err)
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil)
		c.ready(n1)
		if again := c.add(n1, r); !reflect.DeepEqual(again, got) {
			t.Errorf("asked again: %+v", again)
		}
		c.del(n1, release(r))
		if got := owners(n1); !slices.Equal(got, []string{hostOwner}) {
			t.Errorf("left are %v", got)
		}
	})
}

func TestCNIRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		was := request(n1, "c1")
		was.IPs, was.MAC = []netip.Addr{netip.MustParseAddr("10.32.0.9")}, "0a:58:0a:20:00:09"
		c.add(n1, was)
		only := request(n1, "c2")
		only.AddressesOnly = true
		c.add(n1, only)
		before := owners(n1)
		const first = "eth0 of container c1 is attached already, "
		for _, x := range []struct {
			from         cni.Request
			change       func(*cni.Request)
			code         uint
			msg, details string
		}{
			{was, func(r *cni.Request) { r.Network = "net2" }, cni.CodeFailed, first + "for network net1", "delete that first"},
			{was, func(r *cni.Request) { r.IPs = nil }, cni.CodeFailed, first + "with other addresses wanted", "delete that first"},
			{was, func(r *cni.Request) { r.MAC = "" }, cni.CodeFailed, first + "with another hardware address wanted", "delete that first"},
			{was, func(r *cni.Request) { r.MTU = 1300 }, cni.CodeFailed, first + "with an MTU of 1408", "delete that first"},
			{was, func(r *cni.Request) { r.AddressesOnly = true }, cni.CodeFailed, first + "with an interface", "delete that first"},
			{only, func(r *cni.Request) { r.AddressesOnly = false }, cni.CodeFailed, "eth0 of container c2 is attached already, with addresses only", "delete that first"},
			{was, func(r *cni.Request) { r.ContainerID = "a/b" }, cni.CodeEnvironment, `"a/b" is no ID of a container`, "it has 1 to 128 bytes, and none of them is a slash"},
			{was, func(r *cni.Request) { r.ContainerID = "" }, cni.CodeEnvironment, `"" is no ID of a container`, "it has 1 to 128 bytes, and none of them is a slash"},
			{was, func(r *cni.Request) { r.IfName = "a/b" }, cni.CodeEnvironment, `"a/b" is no name for an interface`, "use 1 to 15 letters, digits, '-', '.' and '_'"},
			{was, func(r *cni.Request) { r.Network = "" }, cni.CodeConfig, "the network has no name", "give the configuration one"},
			{was, func(r *cni.Request) { r.Pod.Name = "\x1b[2J" }, cni.CodeEnvironment, `"\x1b[2J" is no pod's name`, "it has at most 253 bytes, all printable"},
			{was, func(r *cni.Request) { r.Network = strings.Repeat("n", 254) }, cni.CodeConfig, `"` + strings.Repeat("n", 40) + `" is no name of the network`, "it has at most 253 bytes, all printable"},
			{was, func(r *cni.Request) { r.MAC = "hello" }, cni.CodeEnvironment, `"hello" is no hardware address`, "give one as 0a:58:0a:20:00:05"},
			{was, func(r *cni.Request) { r.Netns = "/proc/self/ns/net" }, cni.CodeEnvironment, "/proc/self/ns/net is the host's own network namespace, which needs no attaching", "give that of a workload"},
			{was, func(r *cni.Request) { r.Netns = "/run/netns/none" }, cni.CodeEnvironment, "/run/netns/none is no network namespace", "give the path of a network namespace that the daemon can open"},
			{was, func(r *cni.Request) {
				r.ContainerID, r.IPs = "c3", []netip.Addr{netip.MustParseAddr("10.32.0.9")}
			}, cni.CodeFailed, "address 10.32.0.9 is in use by workload cni/c1/eth0 on this node", "detach it first or choose another"},
			{was, func(r *cni.Request) {
				r.ContainerID, r.IPs = "c3", []netip.Addr{netip.MustParseAddr("192.0.2.9")}
			}, cni.CodeFailed, "address 192.0.2.9 lies outside the mesh's range 10.32.0.0/16,fd00::/112", "choose one inside it"},
			{was, func(r *cni.Request) {
				r.ContainerID, r.IPs = "c3", []netip.Addr{netip.MustParseAddr("10.32.1.3"), netip.MustParseAddr("fd00::7")}
			}, cni.CodeFailed, "10.32.1.3 and fd00::7 cannot be had together: whoever has 10.32.1.3 has fd00::103", "ask for these two, or for one"},
		} {
			r := x.from
			x.change(&r)
			_, err := n1.service().CNIAttach(t.Context(), r)
			refused(t, err, x.code, x.msg, x.details)
		}
		if after := owners(n1); !slices.Equal(after, before) {
			t.Errorf("before there were %v, and after it %v", before, after)
		}
		// The runtime deletes what it was refused, which is not what another network has.
		c.del(n1, cni.Release{Key: was.Key, Network: "net2"})
		if after := owners(n1); !slices.Equal(after, before) {
			t.Errorf("another network's delete left %v", after)
		}
	})
}

// The same container in another namespace keeps its addresses.
func TestCNIContainerInAnotherNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		r := request(n1, "c1")
		got := c.add(n1, r)
		moved := r
		moved.Netns = request(n1, "again").Netns
		if again := c.add(n1, moved); !reflect.DeepEqual(again, got) {
			t.Errorf("got %+v and then %+v", got, again)
		}
		if up := n1.host.up["cni/c1/eth0"]; up.Netns != moved.Netns || len(n1.host.up) != 1 {
			t.Errorf("attached is %+v", n1.host.up)
		}
		n1.vanish(api.Workload{Netns: r.Netns}, true, false)
		time.Sleep(2 * repairInterval)
		if w := n1.service().Workloads(); len(w) != 1 || w[0].Netns != moved.Netns {
			t.Errorf("shown are %+v", w)
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil)
		c.ready(n1)
		if w := n1.service().Workloads(); len(w) != 1 || w[0].Netns != moved.Netns {
			t.Errorf("after a restart: %+v", w)
		}
	})
}

func TestCNIAtomic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		r := request(n1, "c1")
		for range 2 {
			n1.host.mu.Lock()
			n1.host.fail = errors.New("no more interfaces; buy some")
			n1.host.mu.Unlock()
			before := owners(n1)
			_, err := n1.service().CNIAttach(t.Context(), r)
			refused(t, err, cni.CodeFailed, "no more interfaces", "buy some")
			if after := owners(n1); !slices.Equal(before, after) {
				t.Errorf("before there were %v, after it %v", before, after)
			}
			n1.host.mu.Lock()
			n1.host.fail = nil
			n1.host.mu.Unlock()
			c.add(n1, r) // what was there before stays
		}
	})
}

func TestCNIGC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		byHand := c.attach(n1, "byhand")
		var keep []cni.Key
		var left []string
		for i := range 10 {
			r := request(n1, fmt.Sprint("c", i))
			if i >= 8 {
				r.Network = "net2"
			}
			r.AddressesOnly = i%2 == 1
			c.add(n1, r)
			if i < 3 {
				keep = append(keep, r.Key)
			}
			if i < 3 || i >= 8 {
				left = append(left, keyID(r.Key))
			}
		}
		coming := n1.service().(*Node).engines().workloads.expect(&arrival{record: workload{ID: "cni/c5/eth0"}, giveUp: func() {}}) // it is being attached again
		left = append(left, "cni/c5/eth0", hostOwner, byHand.ID)
		slices.Sort(left)
		keep = append(keep, cni.Key{ContainerID: "unheard", IfName: "eth0"})
		c.del(n1, cni.Release{Network: "net1", Valid: keep})
		coming()
		if now := owners(n1); !slices.Equal(now, left) {
			t.Errorf("left are %v, want %v", now, left)
		}
		if up := len(n1.host.up); up != len(left)-1 {
			t.Errorf("%d are up", up)
		}
		c.del(n1, cni.Release{Network: "net1"})
		if now, want := owners(n1), []string{"cni/c8/eth0", "cni/c9/eth0", hostOwner, byHand.ID}; !slices.Equal(now, want) {
			t.Errorf("left are %v, want %v", now, want)
		}
	})
}

// What was deleted while there was no daemon is detached when there is one, before anything else is attached under the same key.
func TestCNIBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		run := n1.dir + ".run"
		a, b, d := request(n1, "a"), request(n1, "b"), request(n1, "d")
		for _, r := range []cni.Request{a, b, d} {
			c.add(n1, r)
		}
		kept := cni.NewBacklog(run)
		put := func(r cni.Request) {
			t.Helper()
			if err := kept.Put(release(r)); err != nil {
				t.Fatal(err)
			}
		}
		empty := func() {
			t.Helper()
			if l, err := os.ReadDir(filepath.Join(run, "cni")); len(l) > 0 {
				t.Errorf("the backlog still has %v, %v", l, err)
			}
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		put(a)
		c.start(n1, nil)
		c.ready(n1)
		if now, want := owners(n1), []string{"cni/b/eth0", "cni/d/eth0", hostOwner}; !slices.Equal(now, want) {
			t.Errorf("after the start there are %v", now)
		}
		empty()
		put(b)
		c.add(n1, b)
		time.Sleep(2 * repairInterval)
		put(d)
		time.Sleep(2 * repairInterval)
		if now, want := owners(n1), []string{"cni/b/eth0", hostOwner}; !slices.Equal(now, want) {
			t.Errorf("in the end there are %v", now)
		}
		empty()
	})
}

// What could not be detached yet is not attached: it would be taken away again.
func TestCNIBacklogThatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n1 := one(t)
		a, b := request(n1, "a"), request(n1, "b")
		c.add(n1, a)
		n1.host.mu.Lock()
		n1.host.stuck = map[string]error{"cni/a/eth0": errors.New("device or resource busy")}
		n1.host.mu.Unlock()
		if err := cni.NewBacklog(n1.dir + ".run").Put(release(a)); err != nil {
			t.Fatal(err)
		}
		_, err := n1.service().CNIAttach(t.Context(), a)
		refused(t, err, cni.CodeTryLater, "what was deleted before could not be detached yet: device or resource busy", "try again")
		c.add(n1, b) // others are not concerned
		if want := "not all that was deleted while no daemon ran could be detached: device or resource busy"; !warned(n1, want) {
			t.Errorf("warnings: %q", n1.service().Status().Warnings)
		}
		n1.host.mu.Lock()
		n1.host.stuck = nil
		n1.host.mu.Unlock()
		c.add(n1, a)
		if l := n1.service().Status().Warnings; len(l) != 0 {
			t.Errorf("warnings: %q", l)
		}
	})
}

// A node that waits for its mesh attaches nothing, and keeps in mind what is deleted.
func TestCNIBeforeReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, nil, "n1")
		c.ready(n2)
		r := request(n2, "c1")
		c.add(n2, r)
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		n2.mu.Lock()
		n2.unplugged = true
		n2.mu.Unlock()
		c.start(n2, nil, "n1")
		time.Sleep(time.Second)
		begun := time.Now()
		_, err := n2.service().CNIAttach(t.Context(), r)
		refused(t, err, cni.CodeTryLater, "this node is not ready yet (starting: "+hostnet.ErrNoNetwork.Error()+")", "try again when weft status says ready")
		if d := time.Since(begun); d < readyPatience || d > readyPatience+time.Second {
			t.Errorf("it took %v", d)
		}
		c.del(n2, release(r))
		time.AfterFunc(time.Second, func() {
			n2.mu.Lock()
			n2.unplugged = false
			n2.mu.Unlock()
		})
		other := request(n2, "c2")
		c.add(n2, other) // which waits for it
		if now, want := owners(n2), []string{"cni/c2/eth0", hostOwner}; !slices.Equal(now, want) {
			t.Errorf("there are %v", now)
		}
	})
}

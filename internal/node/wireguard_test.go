// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/mesh/memnet"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

// clientKey is the public key of the i-th client.
func clientKey(i byte) session.PublicKey { return session.PrivateKey{0: 8, 1: i, 31: 64}.Public() }

func addClient(t *testing.T, m *machine, name string, i byte) api.WGAdded {
	t.Helper()
	a, err := m.service().WGAdd(t.Context(), api.WGAddRequest{Name: name, PublicKey: clientKey(i).String()})
	if err != nil {
		t.Fatalf("%s: adding %s: %v", m.name, name, err)
	}
	return a
}

// externals are the clients that the data path of m has.
func (m *machine) externals() (list []router.Peer) {
	m.mu.Lock()
	p := m.carrier
	m.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, peer := range p.peers {
		if peer.External {
			list = append(list, peer)
		}
	}
	return list
}

// listed are the clients that m tells of.
func listed(m *machine) []api.WGClient {
	list, err := m.service().WGClients()
	if err != nil {
		m.t.Error(err)
	}
	return list
}

func owners(m *machine) (list []string) {
	for _, a := range m.service().IPAM().Allocations {
		list = append(list, a.Owner)
	}
	slices.Sort(list)
	return list
}

func TestWireGuardClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.start(n2, nil, "n1")
		c.ready(n1)
		c.ready(n2)
		w := c.attach(n2, "w")
		phone, laptop := addClient(t, n2, "phone", 1), addClient(t, n2, "laptop", 2)
		if phone.MTU != 1280 || phone.Endpoint != "192.0.2.2:6783" || len(phone.Addresses) != 2 || phone.NodeKey == "" ||
			!reflect.DeepEqual(phone.Universe, []netip.Prefix{netip.MustParsePrefix("10.32.0.0/16"), netip.MustParsePrefix("fd00::/112")}) {
			t.Errorf("the phone is told %+v", phone)
		}
		c.distinct()
		if phone.PresharedKey == laptop.PresharedKey {
			t.Error("two clients share a key")
		}
		check := func(when string, want ...api.WGAdded) {
			t.Helper()
			got := n2.externals()
			if len(got) != len(want) {
				t.Fatalf("%s: the data path has %d clients: %+v", when, len(got), got)
			}
			for _, x := range want {
				i := slices.IndexFunc(got, func(p router.Peer) bool { return p.Name == x.Name })
				if i < 0 {
					t.Fatalf("%s: the data path lacks %s", when, x.Name)
				}
				p := got[i]
				prefixes := []netip.Prefix{netip.PrefixFrom(x.Addresses[0], 32), netip.PrefixFrom(x.Addresses[1], 128)}
				if p.Suite != session.WireGuard || p.MTU != 1280 || !slices.Equal(p.Prefixes, prefixes) ||
					base64.StdEncoding.EncodeToString(p.Preshared[:]) != x.PresharedKey || p.Preshared == session.PresharedKey(c.tokenKeys().Preshared) {
					t.Errorf("%s: the data path has %+v, want %+v", when, p, x)
				}
				for _, a := range x.Addresses {
					if !n1.routed(a, n2) {
						t.Errorf("%s: n1 does not send what is for %v to n2", when, a)
					}
				}
			}
		}
		check("added", phone, laptop)
		list := listed(n2)
		if len(list) != 2 || list[0].Name != "laptop" || list[1].PublicKey != clientKey(1).String() || !slices.Equal(list[1].Addresses, phone.Addresses) ||
			list[1].State != "idle" || len(listed(n1)) != 0 || len(n2.service().Peers()) != 1 {
			t.Errorf("listed: %+v", list)
		}
		time.Sleep(2 * repairInterval)
		if got, want := owners(n2), []string{hostOwner, w.ID, "wg:laptop", "wg:phone"}; !slices.Equal(got, want) {
			t.Errorf("allocated to %v, want %v", got, want)
		}

		// Where it was last heard from outlives the daemon, and so does all else.
		heard := netip.MustParseAddrPort("198.51.100.7:40000")
		n2.carrier.mu.Lock()
		n2.carrier.stats = []router.PeerStats{{Key: clientKey(1), Endpoint: heard, Heard: true, State: router.Established, RxBytes: 7}}
		n2.carrier.mu.Unlock()
		time.Sleep(2 * rememberInterval)
		if l := listed(n2)[1]; l.State != "established" || l.Endpoint != heard.String() || l.RxBytes != 7 {
			t.Errorf("listed: %+v", l)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n2, nil, "n1")
		c.ready(n2)
		check("after the restart", phone, laptop)
		for _, p := range n2.externals() {
			if want := p.Name == "phone"; want != slices.Equal(p.Endpoints, []netip.AddrPort{heard}) {
				t.Errorf("%s is looked for at %v", p.Name, p.Endpoints)
			}
		}

		_, err := n2.service().Leave(t.Context(), api.LeaveRequest{}, untold)
		if err == nil || !strings.HasPrefix(err.Error(), "1 workloads are attached") {
			t.Errorf("leaving: %v", err)
		}
		if _, err := n2.service().Detach(t.Context(), api.DetachRequest{Netns: w.Netns, IfName: "eth0"}); err != nil {
			t.Fatal(err)
		}
		_, err = n2.service().Leave(t.Context(), api.LeaveRequest{}, untold)
		want := "2 WireGuard clients join by this node (laptop, phone); remove them (weft wg remove), or leave with --force: they are cut off then, and another node gets their addresses"
		if err == nil || err.Error() != want {
			t.Errorf("leaving:\ngot  %v\nwant %s", err, want)
		}

		res, err := n2.service().WGRemove(api.WGRemoveRequest{Name: "phone"})
		if err != nil || !slices.Equal(res.Released, phone.Addresses) {
			t.Errorf("removed: %+v, %v", res, err)
		}
		check("after the removal", laptop)
		if got, want := owners(n2), []string{hostOwner, "wg:laptop"}; !slices.Equal(got, want) {
			t.Errorf("allocated to %v, want %v", got, want)
		}
		if s := n2.service().IPAM(); s.Quarantined != 2 { // the workload's, too
			t.Errorf("%d addresses rest", s.Quarantined)
		}
		if again := addClient(t, n2, "phone", 1); again.Addresses[0] == phone.Addresses[0] || again.PresharedKey == phone.PresharedKey {
			t.Errorf("added again, it has %+v", again)
		}
		if left, err := n2.service().Leave(t.Context(), api.LeaveRequest{Force: true}, untold); err != nil || len(left.Kept) < 2 || !strings.Contains(strings.Join(left.Kept, "\n"), "of wg:laptop") {
			t.Errorf("left by force: %+v, %v", left, err)
		}
	})
}

func TestWireGuardRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		n1.unplugged = true
		c.start(n1, nil)
		c.eventually(time.Second, "n1 answering", func() bool { return n1.service() != nil })
		_, err := n1.service().WGAdd(t.Context(), api.WGAddRequest{Name: "a", PublicKey: clientKey(1).String()})
		if err == nil || !strings.HasPrefix(err.Error(), "this node is not ready yet (starting") {
			t.Errorf("before it is ready: %v", err)
		}
		if l, err := n1.service().WGClients(); l != nil || err == nil || !strings.HasPrefix(err.Error(), "this node is not ready yet (starting") {
			t.Errorf("before it is ready: %v, %v", l, err)
		}
		n1.mu.Lock()
		n1.unplugged, n1.nowhere = false, true
		n1.mu.Unlock()
		c.ready(n1)
		_, err = n1.service().WGAdd(t.Context(), api.WGAddRequest{Name: "a", PublicKey: clientKey(1).String()})
		if want := "this node knows no address at which clients could reach it; give the one that they see, with --endpoint HOST[:PORT]"; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		for given, want := range map[string]string{
			"vpn.example.org": "vpn.example.org:6783", "203.0.113.7:51820": "203.0.113.7:51820", "2001:db8::7": "[2001:db8::7]:6783", "[2001:db8::7]:99": "[2001:db8::7]:99",
		} {
			a, err := n1.service().WGAdd(t.Context(), api.WGAddRequest{Name: "a", PublicKey: clientKey(1).String(), Endpoint: given})
			if err != nil || a.Endpoint != want || len(a.Warnings) != 0 {
				t.Errorf("%s: %s %v %v, want %s", given, a.Endpoint, a.Warnings, err, want)
			}
			if _, err := n1.service().WGRemove(api.WGRemoveRequest{Name: "a", PublicKey: clientKey(1).String()}); err != nil {
				t.Error(err)
			}
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		n1.nowhere = false
		n1.addr = netip.MustParseAddr("192.168.7.1")
		c.start(n1, nil)
		c.ready(n1)
		if a := addClient(t, n1, "taken", 1); len(a.Warnings) != 1 ||
			a.Warnings[0] != "192.168.7.1 is a private address: clients beyond this network do not reach it; for those give the one that they see, with --endpoint HOST[:PORT]" {
			t.Errorf("a private address is given without a warning: %+v", a)
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		n1.addr = netip.MustParseAddr("192.0.2.1")
		c.start(n1, nil)
		c.start(n2, nil, "n1")
		c.ready(n1)
		c.ready(n2)
		n2key := nodeKey(n2)
		before := owners(n1)
		key := clientKey(2).String()
		for _, r := range []struct {
			add  api.WGAddRequest
			want string
		}{
			{api.WGAddRequest{Name: "taken", PublicKey: key}, "there is a WireGuard client taken already; choose another name, or remove that one by: weft wg remove taken"},
			{api.WGAddRequest{Name: "other", PublicKey: clientKey(1).String()}, "public key " + clientKey(1).String() + " is that of the WireGuard client taken already; every client needs a key of its own"},
			{api.WGAddRequest{Name: "", PublicKey: key}, `name "" is no name for a WireGuard client; use letters, digits, '-', '.' and '_', at most 63 of them, and begin with a letter or a digit`},
			{api.WGAddRequest{Name: "my phone", PublicKey: key}, `name "my phone" is no name for a WireGuard client; use letters, digits, '-', '.' and '_', at most 63 of them, and begin with a letter or a digit`},
			{api.WGAddRequest{Name: "-q", PublicKey: key}, `name "-q" is no name for a WireGuard client; use letters, digits, '-', '.' and '_', at most 63 of them, and begin with a letter or a digit`},
			{api.WGAddRequest{Name: strings.Repeat("x", 64), PublicKey: key}, `name "` + strings.Repeat("x", 64) + `" is no name for a WireGuard client; use letters, digits, '-', '.' and '_', at most 63 of them, and begin with a letter or a digit`},
			{api.WGAddRequest{Name: "other", PublicKey: "secret"}, "\"secret\" is not a public key: want 44 characters of base64 for 32 bytes, as `wg pubkey` prints it"},
			{api.WGAddRequest{Name: "other", PublicKey: nodeKey(n1)}, "public key " + nodeKey(n1) + " is that of node n1; a client needs one of its own"},
			{api.WGAddRequest{Name: "other", PublicKey: n2key}, "public key " + n2key + " is that of node n2; a client needs one of its own"},
			{api.WGAddRequest{Name: "other", PublicKey: key, Endpoint: "a:b:c:"}, `--endpoint "a:b:c:" is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:6783`},
			{api.WGAddRequest{Name: "other", PublicKey: key, Endpoint: "vpn.example.org\nPostUp=evil"}, `--endpoint "vpn.example.org\nPostUp=evil" is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:6783`},
		} {
			if _, err := n1.service().WGAdd(t.Context(), r.add); err == nil || err.Error() != r.want {
				t.Errorf("got  %v\nwant %s", err, r.want)
			}
		}
		for _, r := range []struct {
			remove api.WGRemoveRequest
			want   string
		}{
			{api.WGRemoveRequest{Name: "nobody"}, `there is no WireGuard client "nobody" on this node; see: weft wg list`},
			{api.WGRemoveRequest{Name: "taken", PublicKey: key}, "the WireGuard client taken has another key; see: weft wg list"},
			{api.WGRemoveRequest{Name: "taken", PublicKey: "x"}, "not a public key: want 44 characters of base64 for 32 bytes"},
		} {
			if _, err := n1.service().WGRemove(r.remove); err == nil || err.Error() != r.want {
				t.Errorf("got  %v\nwant %s", err, r.want)
			}
		}
		if got := owners(n1); !slices.Equal(got, before) || len(listed(n1)) != 1 || len(n1.externals()) != 1 {
			t.Errorf("what was refused has left %v", got)
		}
	})
}

// Whatever goes wrong in between, a client is there as a whole or not at all.
func TestWireGuardIsAtomic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		addClient(t, n1, "phone", 1)
		same := func(when string) {
			t.Helper()
			if got, want := owners(n1), []string{hostOwner, "wg:phone"}; !slices.Equal(got, want) {
				t.Errorf("%s: allocated to %v, want %v", when, got, want)
			}
			if l, x := listed(n1), n1.externals(); len(l) != 1 || len(x) != 1 || x[0].Name != "phone" {
				t.Errorf("%s: clients %+v, in the data path %+v", when, l, x)
			}
		}
		refuse := func(err error) {
			n1.carrier.mu.Lock()
			defer n1.carrier.mu.Unlock()
			n1.carrier.refuse = err
		}
		add := api.WGAddRequest{Name: "laptop", PublicKey: clientKey(2).String()}
		full := errors.New("no room")
		refuse(full)
		if _, err := n1.service().WGAdd(t.Context(), add); !errors.Is(err, full) {
			t.Errorf("got %v", err)
		}
		refuse(nil)
		same("after the data path's refusal")
		gone, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("hung up"))
		if _, err := n1.service().WGAdd(gone, add); err == nil || err.Error() != "the WireGuard client laptop was not added: hung up" {
			t.Errorf("the asker had gone: %v", err)
		}
		same("after the asker had gone")
		asks, cancel := context.WithCancelCause(t.Context())
		refuse(nil)
		n1.carrier.mu.Lock()
		n1.carrier.told = func() { cancel(errors.New("hung up")) }
		n1.carrier.mu.Unlock()
		if _, err := n1.service().WGAdd(asks, add); err == nil || err.Error() != "the WireGuard client laptop was not added: hung up" {
			t.Errorf("the asker had gone: %v", err)
		}
		same("after the asker had gone at the last moment")

		// A client is removed for good even if the data path is stubborn: it is cut off when that is possible, or by a restart.
		addClient(t, n1, "tablet", 3)
		refuse(full)
		want := "the WireGuard client tablet is removed, but not cut off yet: no room; that is tried again every second"
		for range 2 {
			if _, err := n1.service().WGRemove(api.WGRemoveRequest{Name: "tablet", PublicKey: clientKey(3).String()}); err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		}
		time.Sleep(repairInterval + rememberInterval)
		if got := owners(n1); !slices.Contains(got, "wg:tablet") {
			t.Error("the address of a client that is not cut off is free")
		}
		if w := n1.service().Status().Warnings; !slices.Contains(w, want) {
			t.Errorf("warnings: %q", w)
		}
		if _, err := n1.service().WGAdd(t.Context(), api.WGAddRequest{Name: "tablet", PublicKey: clientKey(4).String()}); err == nil {
			t.Error("its name is free")
		}
		refuse(nil)
		time.Sleep(2 * rememberInterval)
		same("after the data path has come round")
		if w := n1.service().Status().Warnings; slices.Contains(w, want) {
			t.Errorf("warnings: %q", w)
		}
		// A crash between the address and the record.
		n, ok := n1.service().(*Node)
		if !ok {
			t.Fatalf("%T", n1.service())
		}
		if _, err := n.engines().alloc.Allocate(t.Context(), "wg:ghost"); err != nil {
			t.Fatal(err)
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil)
		c.ready(n1)
		same("after a crash in between")
		// Two at once get one name once, and any number of names an address each.
		results := make(chan error, 10)
		for i := range 10 {
			go func() {
				_, err := n1.service().WGAdd(t.Context(), api.WGAddRequest{Name: "same", PublicKey: clientKey(byte(10 + i)).String()})
				results <- err
			}()
		}
		good := 0
		for range 10 {
			if err := <-results; err == nil {
				good++
			}
		}
		if good != 1 || len(listed(n1)) != 2 || len(n1.externals()) != 2 {
			t.Errorf("one name was given %d times: %v", good, owners(n1))
		}
	})
}

// A client that waits for its addresses is seen by who leaves, and removed by whom it is not for.
func TestWireGuardRemovedWhileAdded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, func(cfg *Config) { cfg.Range, cfg.RangeGiven = "10.32.0.0/28,fd00::/124", true })
		c.start(n2, nil, "n1")
		c.ready(n1)
		c.ready(n2)
		c.net.Partition([]*memnet.Host{n2.net})
		n, ok := n2.service().(*Node)
		if !ok {
			t.Fatalf("%T", n2.service())
		}
		fillUp(t, n)
		before := owners(n2)
		for _, key := range []string{clientKey(1).String(), ""} {
			result := make(chan error, 1)
			go func() {
				_, err := n.WGAdd(t.Context(), api.WGAddRequest{Name: "phone", PublicKey: clientKey(1).String()})
				result <- err
			}()
			time.Sleep(time.Second)
			select {
			case err := <-result:
				t.Fatalf("it does not wait: %v", err)
			default:
			}
			if got := n.engines().clients.names(); !slices.Equal(got, []string{"phone"}) || len(listed(n2)) != 0 {
				t.Errorf("clients that are or come: %v", got)
			}
			if _, err := n.Leave(t.Context(), api.LeaveRequest{}, untold); err == nil || !strings.HasPrefix(err.Error(), "1 WireGuard clients join by this node (phone); ") {
				t.Errorf("leaving: %v", err)
			}
			if _, err := n.WGRemove(api.WGRemoveRequest{Name: "phone", PublicKey: clientKey(2).String()}); err == nil || err.Error() != "the WireGuard client phone has another key; see: weft wg list" {
				t.Errorf("got %v", err)
			}
			if _, err := n.WGRemove(api.WGRemoveRequest{Name: "phone", PublicKey: key}); err != nil {
				t.Error(err)
			}
			if err := <-result; !errors.Is(err, errRemoved) {
				t.Errorf("got %v", err)
			}
			if got := owners(n2); !slices.Equal(got, before) || len(n.engines().clients.names()) != 0 {
				t.Errorf("allocated to %v, want %v", got, before)
			}
		}
	})
}

// fillUp takes all addresses of a node that cannot get more.
func fillUp(t *testing.T, n *Node) {
	t.Helper()
	for i := range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := n.engines().alloc.Allocate(ctx, fmt.Sprintf("w%d", i))
		cancel()
		if err != nil {
			return
		}
	}
	t.Fatal("the node does not run out of addresses")
}

func TestClientsAreNoNodes(t *testing.T) {
	node := router.Peer{Key: clientKey(1), Name: "n2"}
	other := router.Peer{Key: clientKey(2), Name: "n3"}
	phone := router.Peer{Key: clientKey(1), Name: "phone", External: true}
	all, warning := withClients([]router.Peer{node, other}, []router.Peer{phone})
	if !reflect.DeepEqual(all, []router.Peer{other, phone}) {
		t.Errorf("got %+v", all)
	}
	if want := "node n2 has the key of the WireGuard client phone and is not connected; remove the client (weft wg remove phone), or reset that node"; warning != want {
		t.Errorf("got  %s\nwant %s", warning, want)
	}
	if all, warning := withClients([]router.Peer{other}, []router.Peer{phone}); len(all) != 2 || warning != "" {
		t.Errorf("got %+v, %s", all, warning)
	}
}

// nodeKey is the public key of the node on m.
func nodeKey(m *machine) string {
	n, ok := m.service().(*Node)
	if !ok {
		return ""
	}
	return n.state.identity.key().Public().String()
}

// tokenKeys are the keys that the cluster's token gives.
func (c *cluster) tokenKeys() token.Keys {
	c.t.Helper()
	k, err := c.token.Keys()
	if err != nil {
		c.t.Fatal(err)
	}
	return k
}

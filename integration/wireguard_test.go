// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/integration/lab"
)

// wgRow is a row of `weft wg list --json`.
type wgRow struct {
	Name          string       `json:"name"`
	PublicKey     string       `json:"public_key"`
	Addresses     []netip.Addr `json:"addresses"`
	State         string       `json:"state"`
	Endpoint      string       `json:"endpoint"`
	LastHandshake *time.Time   `json:"last_handshake"`
	RxBytes       uint64       `json:"rx_bytes"`
	TxBytes       uint64       `json:"tx_bytes"`
}

// remembered is how long the daemon may take to have on disk where a client is.
const remembered = 2 * time.Second

// TestWireGuardClients lets three stock clients join by two nodes of three, and through what befalls clients.
func TestWireGuardClients(t *testing.T) {
	m := lab.Mesh(t, 3)
	nodes := slices.Clone(m.Hosts())
	one, two := nodes[0], nodes[1]
	outside := func(name string) *lab.Host { return m.Host(name, m.Segment) }

	// One by the tool wg, where the machine has it, and the file that weft wrote.
	_, err := exec.LookPath("wg")
	byTool := err == nil
	if !byTool {
		t.Log("there is no program wg here: all clients are configured by wireguard-go's own protocol")
	}
	file := filepath.Join(t.TempDir(), "phone.conf")
	r := one.Weft("wg", "add", "phone", "--output", file)
	if r.Code != 0 || !strings.Contains(r.Stderr, "is a private address") {
		t.Fatalf("exit code %d, stderr %q", r.Code, r.Stderr)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := outside("phone")
	phone := joinWG(t, at.Namespace, string(text), byTool)
	if want := one.Link().V4().String() + ":6783"; phone.conf["Peer.Endpoint"] != want {
		t.Errorf("the endpoint is %s, want %s", phone.conf["Peer.Endpoint"], want)
	}
	add := func(h *lab.Host, name string, flags ...string) *wgClient {
		t.Helper()
		return joinWG(t, outside(name).Namespace, done(t, h.Weft(append([]string{"wg", "add", name}, flags...)...)), false)
	}
	laptop := add(one, "laptop", "--endpoint", one.Link().V4().String())
	office := add(two, "office", "--endpoint", two.Link().V6().String()) // joins over IPv6
	clients := []*wgClient{phone, laptop, office}

	// Everybody reaches everybody, and the nodes themselves.
	reach := func(from *lab.Namespace, to ...netip.Addr) {
		t.Helper()
		for _, a := range to {
			if _, err := from.Reach(a, patience); err != nil {
				t.Error(err)
			}
		}
	}
	everybody := func() {
		t.Helper()
		for _, c := range clients { // a node does not know where a client is before it calls
			for _, w := range m.Workloads {
				reach(c.Namespace, w.Addrs()...)
			}
		}
		for _, c := range clients {
			for _, h := range nodes {
				reach(c.Namespace, ask[status](t, h, "status").Addresses...)
				reach(h.Namespace, c.all()...)
			}
			for _, w := range m.Workloads {
				reach(w.Namespace, c.all()...)
			}
			for _, other := range clients {
				if other != c {
					reach(c.Namespace, other.all()...)
				}
			}
		}
	}
	everybody()
	distinct(t, slices.Concat(addrs(m.Workloads...), phone.all(), laptop.all(), office.all()))
	if t.Failed() {
		t.FailNow()
	}

	// TCP, whose segments the clients' MTU makes shorter than the nodes', in all directions.
	leaks := m.Capture(one.Namespace, one.Link().Device(), 0)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	transfer := func(from, to *lab.Namespace, addr netip.Addr) {
		t.Helper()
		if _, err := m.TransferSum(ctx, from, to, addr, 4<<20); err != nil {
			t.Error(err)
		}
	}
	for _, w := range m.Workloads {
		for i, a := range w.Addrs() {
			transfer(phone.Namespace, w.Namespace, a)
			transfer(w.Namespace, laptop.Namespace, laptop.all()[i])
		}
	}
	transfer(phone.Namespace, office.Namespace, office.v4)
	transfer(laptop.Namespace, phone.Namespace, phone.v6)
	leaks.Stop()
	if n := leaks.Count([]byte(m.Marker())); n != 0 {
		t.Errorf("%d frames on the underlay hold the payload in clear", n)
	}
	// What is too long is refused with what fits, which the sender's kernel then knows.
	far := m.Workloads[2]
	for i, a := range phone.all() {
		eventually(t, patience, func() error {
			_, err := far.Ping(lab.Ping{To: a, Size: 1400, DontFragment: true, Timeout: silence})
			if err == nil {
				t.Fatalf("a packet of 1400 bytes reaches a client whose MTU is 1280")
			}
			if !strings.Contains(err.Error(), "message too long") {
				return err
			}
			return nil
		})
		reach(far.Namespace, a)
		if _, err := far.Ping(lab.Ping{To: a, Size: 1280, DontFragment: true}); err != nil {
			t.Errorf("family %d: %v", i, err)
		}
	}

	// Nobody speaks for another.
	victim := m.Workloads[1].V4
	dev, err := phone.Netlink().LinkByName(phone.device)
	if err != nil {
		t.Fatal(err)
	}
	stolen := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(victim, 32))}
	if err := phone.Netlink().AddrAdd(dev, stolen); err != nil {
		t.Fatal(err)
	}
	before := drops(t, one)["source"]
	if _, err := phone.Ping(lab.Ping{From: victim, To: m.Workloads[0].V4, Timeout: silence}); err == nil {
		t.Error("a client is answered under the address of a workload")
	}
	if n := drops(t, one)["source"] - before; n != 1 {
		t.Errorf("%d packets were dropped for their source, want 1", n)
	}
	if err := phone.Netlink().AddrDel(dev, stolen); err != nil {
		t.Fatal(err)
	}

	list := func(h *lab.Host) map[string]wgRow {
		t.Helper()
		rows := map[string]wgRow{}
		for _, r := range ask[[]wgRow](t, h, "wg", "list") {
			rows[r.Name] = r
		}
		return rows
	}
	rows := list(one)
	if l := rows["phone"]; len(rows) != 2 || l.State != "established" || l.LastHandshake == nil || !slices.Equal(l.Addresses, phone.all()) ||
		!strings.HasPrefix(l.Endpoint, at.Link().V4().String()+":") || l.RxBytes < 12<<20 || l.TxBytes < 4<<20 {
		t.Errorf("listed: %+v", rows)
	}

	// The daemon goes and comes back: it finds the clients, who have nothing to say, by itself.
	time.Sleep(remembered)
	for _, end := range []func(){one.Kill, func() { one.Terminate() }} {
		end()
		unreachable(t, far.Namespace, phone.v4)
		one.Relaunch()
		if err := one.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		reach(far.Namespace, phone.all()...)
		reach(m.Workloads[1].Namespace, laptop.all()...)
	}
	if again := list(one)["phone"]; again.PublicKey != rows["phone"].PublicKey || !slices.Equal(again.Addresses, phone.all()) {
		t.Errorf("after restarts: %+v", again)
	}

	// A client goes to another network.
	moved := netip.MustParsePrefix("192.168.1.222/24")
	eth0, err := at.Netlink().LinkByName(at.Link().Device())
	if err != nil {
		t.Fatal(err)
	}
	if err := at.Netlink().AddrDel(eth0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(at.Link().V4(), 24))}); err != nil {
		t.Fatal(err)
	}
	if err := at.Netlink().AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(moved)}); err != nil {
		t.Fatal(err)
	}
	reach(phone.Namespace, far.Addrs()...)
	reach(far.Namespace, phone.all()...)
	if l := list(one)["phone"]; !strings.HasPrefix(l.Endpoint, moved.Addr().String()+":") {
		t.Errorf("it is at %v, and listed at %s", moved, l.Endpoint)
	}

	// Removed, it is cut off at once, and nobody else is.
	done(t, one.Weft("wg", "remove", "phone"))
	for _, a := range phone.all() {
		unreachable(t, far.Namespace, a)
		unreachable(t, one.Namespace, a)
	}
	unreachable(t, phone.Namespace, far.V4)
	unreachable(t, phone.Namespace, m.Workloads[0].V6)
	clients = clients[1:]
	everybody()
	if rows := list(one); len(rows) != 1 || rows["laptop"].Name == "" {
		t.Errorf("listed: %+v", rows)
	}
	for _, a := range ask[space](t, one, "ipam").Allocations {
		if a.Owner == "wg:phone" {
			t.Errorf("the address of the removed client is still allocated: %+v", a)
		}
	}

	// Nodes with clients do not leave by accident; a reset forgets them.
	refused(t, one.Weft("wg", "remove", "phone"), `there is no WireGuard client "phone" on this node; see: weft wg list`)
	refused(t, two.Weft("wg", "add", "office"), "there is a WireGuard client office already")
	m.Workloads[1].Detach()
	refused(t, two.Weft("leave"), "1 WireGuard clients join by this node (office)", "weft wg remove")
	if out := done(t, two.Weft("leave", "--force")); !strings.Contains(out, "not given away: ") || !strings.Contains(out, " of wg:office\n") {
		t.Errorf("leaving by force says\n%s", out)
	}
	done(t, two.Weft("reset", "--data-dir", two.DataDir()))
	two.Relaunch()
	if err := two.WaitReady(time.Minute); err != nil {
		t.Fatal(err)
	}
	if rows := list(two); len(rows) != 0 {
		t.Errorf("after a reset there are %+v", rows)
	}
	unreachable(t, office.Namespace, far.V4)
}

// TestWireGuardClientBehindNAT has a client at home: it reaches the workload, and is reached, although nobody can call it before
// it has called, and so it is after a crash of the node. The mesh is one of IPv4 alone, on another port.
func TestWireGuardClientBehindNAT(t *testing.T) {
	l := lab.New(t)
	wan, home := l.Switch("wan"), l.Switch("home")
	r := l.Router("box", home, wan)
	h, client := l.Host("node", wan), l.Host("client", home)
	h.Launch("--range", "10.32.0.0/16", "--port", "7000")
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	w := h.Workload("w")
	w.Attach()
	r.NAT(wan, lab.RandomPorts)
	text := done(t, h.Weft("wg", "add", "home", "--endpoint", h.Link().V4().String(), "--keepalive", "1s"))
	c := joinWG(t, client.Namespace, text, false)
	if c.v6.IsValid() || c.conf["Peer.AllowedIPs"] != "10.32.0.0/16" || !strings.HasSuffix(c.conf["Peer.Endpoint"], ":7000") {
		t.Errorf("the configuration is\n%v", c.conf)
	}
	// It says by itself that it is there.
	if _, err := w.Reach(c.v4, patience); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Reach(w.V4, patience); err != nil {
		t.Fatal(err)
	}
	rows := ask[[]wgRow](t, h, "wg", "list")
	if len(rows) != 1 || !strings.HasPrefix(rows[0].Endpoint, r.Link(wan).V4().String()+":") {
		t.Errorf("listed: %+v", rows)
	}
	time.Sleep(remembered)
	h.Kill()
	h.Relaunch()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	took, err := w.Reach(c.v4, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("reached %v after the node is ready again", took.Round(time.Millisecond))
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/integration/lab"
)

// answers has a namespace answer every TCP connection to a port with a word, until the test ends.
func answers(t *testing.T, n *lab.Namespace, port int, word string) {
	t.Helper()
	var listener net.Listener
	err := n.Do(func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, word)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
}

// asks returns what a namespace is answered at an address.
func asks(n *lab.Namespace, to netip.AddrPort) (word string, err error) {
	err = n.Do(func() error {
		conn, err := net.DialTimeout("tcp", to.String(), time.Second)
		if err != nil {
			return err
		}
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		text, err := io.ReadAll(conn)
		word = string(text)
		return errors.Join(err, conn.Close())
	})
	return word, err
}

// TestCNIPortMap publishes ports of containers on their host by the plugin portmap, chained, and asks from another host by both families.
func TestCNIPortMap(t *testing.T) {
	t.Parallel()
	tested := false
	for backend, program := range map[string]string{"iptables": "iptables", "nftables": "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Logf("NOT TESTED: portmap by %s: %v", backend, err)
			continue
		}
		tested = true
		t.Run(backend, func(t *testing.T) {
			hosts := cniMesh(t, 2)
			h, far := hosts[0], hosts[1]
			n := network(t, newest, "weft", h.weftConf(), keys{"type": "portmap", "backend": backend, "capabilities": keys{"portMappings": true}})
			publish := func(id string, port int) *pod {
				t.Helper()
				p := h.newPod(id)
				p.CapabilityArgs = keys{"portMappings": []keys{{"hostPort": port, "containerPort": 80, "protocol": "tcp"}}}
				h.matches(p, h.add(n, p))
				answers(t, p.Namespace, 80, id)
				return p
			}
			h.del(n, publish("first", 8000)) // its tables stay
			clean := noted(t, h.Host)
			a, b := publish("a", 8001), publish("b", 8002)
			remote := far.added(far.weft(), "remote")
			at := func(n *lab.Namespace, want string, to netip.Addr, port uint16) {
				t.Helper()
				eventually(t, patience, func() error {
					word, err := asks(n, netip.AddrPortFrom(to, port))
					if err == nil && word != want {
						err = fmt.Errorf("%s asks %v, port %d, and is answered %q, want %q", n.Name(), to, port, word, want)
					}
					return err
				})
			}
			for _, to := range []netip.Addr{h.Link().V4(), h.Link().V6()} {
				at(far.Namespace, "a", to, 8001)
				at(far.Namespace, "b", to, 8002)
			}
			// Also by the host's address in the mesh, from a container on another host, and on this one.
			for _, to := range ask[status](t, h.Host, "status").Addresses {
				at(remote.Namespace, "a", to, 8001)
				at(b.Namespace, "a", to, 8001)
			}
			for _, p := range []*pod{a, b} {
				if err := h.check(n, p); err != nil {
					t.Error(err)
				}
			}
			h.del(n, a)
			if word, err := asks(far.Namespace, netip.AddrPortFrom(h.Link().V4(), 8001)); err == nil {
				t.Errorf("the port of a container that was deleted is answered: %q", word)
			}
			at(far.Namespace, "b", h.Link().V4(), 8002)
			h.del(n, b)
			clean.leaks(t)
		})
	}
	if !tested {
		t.Skip("NOT TESTED: portmap, which needs iptables or nft (Debian: apt-get install iptables nftables)")
	}
}

// TestCNIBandwidth limits what a container may send and receive by the plugin bandwidth, chained, and measures.
func TestCNIBandwidth(t *testing.T) {
	t.Parallel()
	hosts := cniMesh(t, 2)
	h := hosts[0]
	clean := noted(t, h.Host)
	const (
		in, out = 16e6, 8e6 // bit/s, of what arrives in the container and of what leaves it
		burst   = 1e6       // bit
		size    = 3 << 20   // bytes
	)
	n := network(t, newest, "weft", h.weftConf(), keys{"type": "bandwidth", "capabilities": keys{"bandwidth": true}})
	p := h.newPod("limited")
	p.CapabilityArgs = keys{"bandwidth": keys{"ingressRate": int(in), "ingressBurst": int(burst), "egressRate": int(out), "egressBurst": int(burst)}}
	r := h.add(n, p)
	if len(r.Interfaces) != 3 {
		t.Errorf("the interfaces are %v, want the two of Weft and one of the plugin bandwidth", r.Interfaces)
	}
	if err := h.check(n, p); err != nil {
		t.Error(err)
	}
	free, far := h.added(h.weft(), "free"), hosts[1].added(hosts[1].weft(), "far")
	ctx, cancel := context.WithTimeout(t.Context(), verbTimeout)
	defer cancel()
	rate := func(from, to *pod) float64 {
		t.Helper()
		if _, err := from.Reach(to.V4, patience); err != nil {
			t.Fatal(err)
		}
		x, err := (&lab.Lab{}).Transfer(ctx, from.Namespace, to.Namespace, to.V4, size)
		if err != nil {
			t.Fatal(err)
		}
		return x.BitsPerSecond()
	}
	for what, c := range map[string]struct {
		from, to *pod
		limit    float64
	}{
		"to the limited container":     {far, p, in},
		"from the limited container":   {p, far, out},
		"from its host's other to it":  {free, p, in},
		"from it to its host's other":  {p, free, out},
		"to one that is not limited":   {far, free, 0},
		"from one that is not limited": {free, far, 0},
	} {
		got := rate(c.from, c.to)
		for tries := 1; c.limit == 0 && got < 2*in && tries < 3; tries++ { // on a machine that has no time for it
			got = rate(c.from, c.to)
		}
		t.Logf("%s: %.1f Mbit/s, limit %.1f", what, got/1e6, c.limit/1e6)
		// The burst comes on top of the limit; the headers count against it.
		if c.limit != 0 && (got > 1.25*c.limit || got < 0.5*c.limit) || c.limit == 0 && got < 2*in {
			t.Errorf("%s: %.1f Mbit/s with a limit of %.1f", what, got/1e6, c.limit/1e6)
		}
	}
	h.del(n, p)
	h.del(h.weft(), free)
	clean.leaks(t)
}

// TestCNITuning has the plugin tuning change what Weft has no keys for, and CHECK find nothing wrong with that, also after the daemon was started anew.
func TestCNITuning(t *testing.T) {
	t.Parallel()
	h := cniMesh(t, 1)[0]
	clean := noted(t, h.Host)
	const length = 321 // of the queue, in packets
	var pods []*pod
	networks := map[*pod]*libcni.NetworkConfigList{}
	for _, v := range cniVersions[2:] {
		p := h.newPod("tuned-" + v)
		networks[p] = network(t, v, "weft", h.weftConf().with(keys{"mtu": 1300}), keys{
			"type": "tuning", "dataDir": h.Dir() + "/tuning", "promisc": true, "allmulti": true, "txQLen": length, "sysctl": keys{"net.core.somaxconn": "500"},
		})
		h.add(networks[p], p)
		pods = append(pods, p)
	}
	tuned := func() {
		t.Helper()
		for _, p := range pods {
			l, err := p.Netlink().LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if a := l.Attrs(); a.MTU != 1300 || a.Promisc == 0 || a.Allmulti == 0 || a.TxQLen != length {
				t.Errorf("%s: eth0 is %+v", p.ContainerID, a)
			}
			if err := h.check(networks[p], p); err != nil {
				t.Errorf("%s: CHECK: %v", p.ContainerID, err)
			}
		}
	}
	tuned()
	h.Kill()
	h.Relaunch()
	ready(t, h.Host)
	tuned()
	for _, p := range pods {
		h.del(networks[p], p)
	}
	clean.leaks(t)
}

// TestCNIChainedBehind has Weft's plugin behind another one: what that has made stays in the result, and what Weft makes is added.
func TestCNIChainedBehind(t *testing.T) {
	t.Parallel()
	h := cniMesh(t, 1)[0]
	clean := noted(t, h.Host)
	for _, v := range cniVersions[2:] {
		n := network(t, v, "weft", keys{"type": "loopback"}, h.weftConf())
		p := h.newPod("behind-" + v)
		r := h.add(n, p)
		var names []string
		for _, f := range r.Interfaces {
			names = append(names, f.Name)
		}
		if len(names) != 3 || names[0] != "lo" || names[2] != "eth0" {
			t.Fatalf("the interfaces are %v, want lo and the two of Weft", names)
		}
		for _, ip := range r.IPs {
			want := 2
			if ip.Address.IP.IsLoopback() {
				want = 0
			}
			if ip.Interface == nil || *ip.Interface != want {
				t.Errorf("%v is on interface %v, want %d", ip.Address, ip.Interface, want)
			}
		}
		if err := h.check(n, p); err != nil {
			t.Error(err)
		}
		h.del(n, p)
	}
	// What the container has of that name already stays.
	p := h.newPod("has-one")
	if err := p.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, p.Namespace)
	_, err := h.tryAdd(h.weft(), p)
	refusedBy(t, err, 100, "eth0")
	h.del(h.weft(), p)
	same(t, "the container that has an eth0", before, snapshot(t, p.Namespace))
	clean.leaks(t)
}

// TestCNITool has cnitool do each verb. It keeps results in /var/lib/cni, here in a directory of the host's.
func TestCNITool(t *testing.T) {
	t.Parallel()
	hosts := cniMesh(t, 2)
	h := hosts[0]
	far := hosts[1].added(hosts[1].weft(), "far")
	clean := noted(t, h.Host)
	dir := filepath.Join(h.Dir(), "net.d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(keys{"cniVersion": newest, "name": "weft", "plugins": []keys{h.weftConf(), {"type": "portmap", "capabilities": keys{"portMappings": true}}}})
	if err != nil {
		t.Fatal(err)
	}
	h.File("net.d/10-weft.conflist", string(text), 0o600)
	p, other := h.newPod("tool"), h.added(h.weft(), "other")
	tool := func(verb string) lab.Result {
		t.Helper()
		ctx, cancel := within()
		defer cancel()
		r, err := h.Run(ctx, lab.Command{
			Path: "/proc/self/exe", Args: []string{filepath.Join(os.Getenv(envReference), "cnitool"), verb, "weft", p.NetNS},
			Env: []string{envVarLib + "=" + dir, "NETCONFPATH=" + dir, "CNI_PATH=" + strings.Join(h.path, ":")},
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	well := func(verb string) string {
		t.Helper()
		r := tool(verb)
		if r.Code != 0 {
			t.Errorf("cnitool %s: exit code %d: %s", verb, r.Code, r.Stderr)
		}
		return r.Stdout
	}
	well("status")
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal([]byte(well("add")), &result); err != nil || len(result.IPs) != 2 {
		t.Fatalf("%v, %v", result, err)
	}
	for _, ip := range result.IPs {
		if _, err := far.Reach(ip.Address.Addr(), patience); err != nil {
			t.Error(err)
		}
	}
	well("check")
	eth0, err := p.Netlink().LinkByName("eth0")
	if err == nil {
		err = p.Netlink().LinkSetDown(eth0)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := tool("check"); r.Code == 0 || !strings.Contains(r.Stderr, "eth0") || !strings.Contains(r.Stderr, "down") {
		t.Errorf("cnitool check: exit code %d: %s, want that eth0 is down", r.Code, r.Stderr)
	}
	well("del")
	well("del")
	// It asks for GC without the list of what is valid, after it has deleted all that it knows: what it does not know stays.
	well("add")
	if r := tool("gc"); r.Code == 0 || !strings.Contains(r.Stderr, "valid-attachments") {
		t.Errorf("cnitool gc: exit code %d: %s, want that the list is missing", r.Code, r.Stderr)
	}
	if got := beyond(owners(t, h.Host), clean.owners); len(got) != 1 || got[0] != "cni/other/eth0" {
		t.Errorf("after cnitool gc there are %v, want cni/other/eth0", got)
	}
	if err := h.check(h.weft(), other); err != nil {
		t.Error(err)
	}
	h.del(h.weft(), other)
	clean.leaks(t)
	h.Kill()
	if r := tool("status"); r.Code == 0 || !strings.Contains(r.Stderr, "weft launch") {
		t.Errorf("cnitool status without a daemon: exit code %d: %s", r.Code, r.Stderr)
	}
}

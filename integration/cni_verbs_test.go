// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/integration/lab"
)

// cniMesh is a mesh of hosts with the plugins, ready, without workloads.
func cniMesh(t *testing.T, n int, o ...lab.MeshOption) []*cniHost {
	t.Helper()
	var hosts []*cniHost
	for _, h := range lab.Mesh(t, n, append([]lab.MeshOption{lab.PerHost(0)}, o...)...).Hosts() {
		hosts = append(hosts, withCNI(t, h))
	}
	return hosts
}

// matches checks a result against what the kernel has: both ends of the link, addresses, routes.
func (c *cniHost) matches(p *pod, r *types100.Result) {
	c.t.Helper()
	if len(r.Interfaces) != 2 {
		c.t.Fatalf("%d interfaces, want the two ends of a veth pair: %v", len(r.Interfaces), r)
	}
	mtu := 0
	for i, f := range r.Interfaces {
		ns, sandbox := c.Namespace, ""
		if i == 1 {
			ns, sandbox = p.Namespace, p.NetNS
		}
		link, err := ns.Netlink().LinkByName(f.Name)
		if err != nil {
			c.t.Errorf("%s on %s: %v", f.Name, ns.Name(), err)
			continue
		}
		a := link.Attrs()
		if a.HardwareAddr.String() != f.Mac || f.Mtu != 0 && a.MTU != f.Mtu || f.Sandbox != sandbox {
			c.t.Errorf("%s on %s is %v, MTU %d; the result says %v", f.Name, ns.Name(), a.HardwareAddr, a.MTU, f)
		}
		mtu = a.MTU
	}
	if want := ask[status](c.t, c.Host, "status").MTU; mtu != want {
		c.t.Errorf("MTU %d, the node has %d", mtu, want)
	}
	inside, err := p.Netlink().LinkByName(p.IfName)
	if err != nil {
		c.t.Fatal(err)
	}
	have, err := p.Netlink().AddrList(inside, netlink.FAMILY_ALL)
	if err != nil {
		c.t.Fatal(err)
	}
	var kernel, said []string
	for _, a := range have {
		if !a.IP.IsLinkLocalUnicast() {
			kernel = append(kernel, a.IPNet.String())
		}
	}
	for _, ip := range r.IPs {
		said = append(said, ip.Address.String())
		if ip.Interface == nil || *ip.Interface != 1 || ip.Gateway == nil {
			c.t.Errorf("%v is on interface %v with gateway %v, want 1 and one", ip.Address, ip.Interface, ip.Gateway)
		}
	}
	slices.Sort(kernel)
	slices.Sort(said)
	if !slices.Equal(kernel, said) {
		c.t.Errorf("the kernel has %v, the result says %v", kernel, said)
	}
	for _, route := range r.Routes {
		family := netlink.FAMILY_V4
		if route.Dst.IP.To4() == nil {
			family = netlink.FAMILY_V6
		}
		all, err := p.Netlink().RouteList(inside, family)
		if err != nil {
			c.t.Fatal(err)
		}
		if !slices.ContainsFunc(all, func(k netlink.Route) bool {
			return k.Dst != nil && k.Dst.String() == route.Dst.String() && k.Gw.Equal(route.GW)
		}) {
			c.t.Errorf("the kernel has not %v, but %v", route, all)
		}
	}
	if len(r.Routes) != len(r.IPs) {
		c.t.Errorf("%d routes for %d families", len(r.Routes), len(r.IPs))
	}
}

// rerun calls Weft's plugin with what it was called with last for a verb.
func (c *cniHost) rerun(verb string, env ...string) *call {
	c.t.Helper()
	k := c.last(weftType, verb)
	return c.raw(string(k.stdin), append([]string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + k.container, "CNI_NETNS=" + k.netns, "CNI_IFNAME=" + k.ifname}, env...)...)
}

// raw calls Weft's plugin past libcni.
func (c *cniHost) raw(stdin string, env ...string) *call {
	c.t.Helper()
	path, err := c.FindInPath(weftType, c.path)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := within()
	defer cancel()
	k, err := c.exec(ctx, path, []byte(stdin), append([]string{"CNI_PATH=" + strings.Join(c.path, ":")}, env...))
	if err != nil {
		c.t.Fatal(err)
	}
	return k
}

// TestCNIVersions has two hosts add, check and delete containers in every version of the specification, and asks for everything twice.
func TestCNIVersions(t *testing.T) {
	t.Parallel()
	hosts := cniMesh(t, 2)
	clean := []before{noted(t, hosts[0].Host), noted(t, hosts[1].Host)}
	info, err := hosts[0].lib.GetVersionInfo(context.Background(), weftType)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range cniVersions[1:] {
		if !slices.Contains(info.SupportedVersions(), v) {
			t.Errorf("VERSION does not say %s: %v", v, info.SupportedVersions())
		}
	}
	for _, v := range cniVersions {
		t.Run(v, func(t *testing.T) {
			var pods []*pod
			for _, h := range hosts {
				n := network(t, v, "weft", h.weftConf())
				p := h.newPod("c-" + v)
				h.matches(p, h.add(n, p))
				pods = append(pods, p)
				first := h.last(weftType, "ADD").stdout
				if again := h.rerun("ADD"); again.code != 0 || !bytes.Equal(again.stdout, first) {
					t.Errorf("ADD says %s, and when asked again %v", first, again)
				}
			}
			allReach(t, patience, pods[0].Workload, pods[1].Workload)
			distinct(t, addrs(pods[0].Workload, pods[1].Workload))
			for i, h := range hosts {
				n := network(t, v, "weft", h.weftConf())
				if v >= "0.4.0" {
					if err := h.check(n, pods[i]); err != nil {
						t.Error(err)
					}
				}
				h.del(n, pods[i])
				h.del(n, pods[i])
				if again := h.rerun("DEL"); again.code != 0 {
					t.Error(again)
				}
				if v >= "0.4.0" {
					k := h.rerun("CHECK")
					if k.code == 0 {
						t.Errorf("CHECK says nothing of a container that is gone: %v", k)
					}
				}
				clean[i].leaks(t)
			}
		})
	}
}

// TestCNIFamilies has containers in meshes that have one family of addresses only, also below.
func TestCNIFamilies(t *testing.T) {
	for name, c := range map[string]struct {
		space string
		host  lab.HostOption
	}{
		"v4 only": {"10.32.0.0/12", lab.OnlyV4},
		"v6 only": {"fd77:6566:7400::/64", lab.OnlyV6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hosts := cniMesh(t, 2, lab.Flags("--range", c.space), lab.Hosts(c.host))
			var pods []*pod
			for _, h := range hosts {
				p := h.newPod("pod")
				r := h.add(h.weft(), p)
				if h.matches(p, r); len(r.IPs) != 1 {
					t.Errorf("the addresses are %v, want one", r.IPs)
				}
				pods = append(pods, p)
			}
			allReach(t, patience, pods[0].Workload, pods[1].Workload)
			for i, h := range hosts {
				if err := h.check(h.weft(), pods[i]); err != nil {
					t.Error(err)
				}
				h.del(h.weft(), pods[i])
			}
		})
	}
}

// TestCNIRequests has containers with what the runtime and the configuration ask for.
func TestCNIRequests(t *testing.T) {
	t.Parallel()
	hosts := cniMesh(t, 2)
	h, far := hosts[0], hosts[1].added(hosts[1].weft(), "far")
	clean := noted(t, h.Host)
	held := ask[status](t, h.Host, "status").Addresses // of the host itself, at the beginning of what it holds
	nth := func(n int) (v4, v6 netip.Addr) {
		v4, v6 = held[0], held[1]
		for range n {
			v4, v6 = v4.Next(), v6.Next()
		}
		return v4, v6
	}
	able := h.weftConf().with(keys{"capabilities": keys{"ips": true, "mac": true}})
	n := network(t, newest, "weft", able)

	// Both families by runtimeConfig; one, of which the other follows, by args and CNI_ARGS.
	v4, v6 := nth(100)
	both := h.newPod("both")
	both.CapabilityArgs = keys{"ips": []string{v4.String() + "/12", v6.String()}, "mac": "0a:58:0a:20:00:64"}
	r := h.add(n, both)
	h.matches(both, r)
	if both.V4 != v4 || both.V6 != v6 || r.Interfaces[1].Mac != "0a:58:0a:20:00:64" {
		t.Errorf("asked for %v, %v and a hardware address, got %v", v4, v6, r)
	}
	v4, v6 = nth(101)
	one := h.newPod("one")
	h.add(network(t, newest, "weft", h.weftConf().with(keys{"args": keys{"cni": keys{"ips": []string{v6.String()}}}})), one)
	if one.V4 != v4 || one.V6 != v6 {
		t.Errorf("asked for %v, got %v and %v", v6, one.V4, one.V6)
	}
	v4, v6 = nth(102)
	byEnv := h.newPod("by-env")
	byEnv.Args = [][2]string{{"IP", v4.String()}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_INFRA_CONTAINER_ID", "by-env"}, {"IgnoreUnknown", "1"}, {"Other", "x"}}
	h.add(n, byEnv)
	if byEnv.V4 != v4 || byEnv.V6 != v6 {
		t.Errorf("asked for %v, got %v and %v", v4, byEnv.V4, byEnv.V6)
	}
	type origin struct{ Network, Container, Namespace, Pod string }
	told := map[string]origin{}
	for _, w := range ask[[]workload](t, h.Host, "ps") {
		told[w.ID] = origin{w.CNI.Network, w.CNI.ContainerID, w.CNI.PodNamespace, w.CNI.PodName}
	}
	if want := (origin{"weft", "by-env", "shop", "web-0"}); told["cni/by-env/eth0"] != want {
		t.Errorf("`weft ps` says %v, want %v of by-env", told, want)
	}
	allReach(t, patience, both.Workload, one.Workload, byEnv.Workload, far.Workload)

	// What cannot be had is refused, and changes nothing.
	refuse := func(what string, n int, caps keys, code uint, parts ...string) {
		t.Helper()
		p := h.newPod(fmt.Sprint("refused-", n))
		p.CapabilityArgs = caps
		_, err := h.tryAdd(network(t, newest, "weft", able), p)
		t.Log(what, err)
		refusedBy(t, err, code, parts...)
		h.del(network(t, newest, "weft", able), p)
		p.Delete()
	}
	taken, _ := nth(100)
	a4, _ := nth(110)
	_, b6 := nth(111)
	refuse("an address that another container has", 1, keys{"ips": []string{taken.String()}}, 100, taken.String())
	refuse("addresses that do not belong together", 2, keys{"ips": []string{a4.String(), b6.String()}}, 100, a4.String(), b6.String())
	refuse("an address outside of the range", 3, keys{"ips": []string{"192.0.2.1"}}, 100, "192.0.2.1")
	refuse("an address of the other host", 4, keys{"ips": []string{far.V4.String()}}, 100, far.V4.String())
	refuse("no hardware address", 5, keys{"mac": "0a:58:0a"}, 7, "0a:58:0a")
	refuse("a hardware address of many", 6, keys{"mac": "01:00:5e:00:00:01"}, 7, "01:00:5e:00:00:01")
	// The same container with other wishes.
	other := pod{Workload: both.Workload, RuntimeConf: both.RuntimeConf}
	other.CapabilityArgs = keys{"ips": []string{a4.String()}}
	_, err := h.tryAdd(n, &other)
	refusedBy(t, err, 100, "both", "delete")
	allReach(t, patience, both.Workload, far.Workload)

	// MTU, the name of the interface, a second one, and name servers.
	small := h.newPod("small")
	r = h.add(network(t, newest, "weft", h.weftConf().with(keys{"mtu": 1200, "dns": keys{"nameservers": []string{"10.0.0.10", "fd00::10"}, "search": []string{"example.org"}, "domain": "d", "options": []string{"ndots:5"}}})), small)
	link, err := small.Netlink().LinkByName("eth0")
	if err != nil || link.Attrs().MTU != 1200 || r.Interfaces[1].Mtu != 1200 {
		t.Errorf("asked for an MTU of 1200: %v, %v, %v", link, r, err)
	}
	if dns, err := json.Marshal(r.DNS); err != nil || string(dns) != `{"nameservers":["10.0.0.10","fd00::10"],"domain":"d","search":["example.org"],"options":["ndots:5"]}` {
		t.Errorf("the name servers are %s, %v", dns, err)
	}
	if _, err := small.Ping(lab.Ping{To: far.V4, Size: 1200, DontFragment: true}); err != nil {
		t.Error(err)
	}
	// A container has one interface of Weft, as it has one address of the mesh: a further one is refused, and the first stays as it is.
	second := &pod{Workload: both.Workload, RuntimeConf: both.RuntimeConf}
	second.IfName, second.CapabilityArgs = "net1", nil
	_, err = h.tryAdd(network(t, newest, "weft2", h.weftConf()), second)
	refusedBy(t, err, 100, "net1")
	h.del(network(t, newest, "weft2", h.weftConf()), second)
	for _, a := range both.Addrs() {
		if _, err := far.Reach(a, patience); err != nil {
			t.Error(err)
		}
	}

	// With the runtime's name of the interface missing, the configuration's counts.
	unnamed := h.newPod("unnamed")
	env := []string{"CNI_CONTAINERID=unnamed", "CNI_NETNS=" + unnamed.NetNS}
	conf, err := json.Marshal(h.weftConf().with(keys{"cniVersion": newest, "name": "weft", "ifname": "weft7"}))
	if err != nil {
		t.Fatal(err)
	}
	k := h.raw(string(conf), append(env, "CNI_COMMAND=ADD")...)
	if _, err := unnamed.Netlink().LinkByName("weft7"); err != nil || k.code != 0 {
		t.Errorf("%v: %v", k, err)
	}
	h.raw(string(conf), append(env, "CNI_COMMAND=DEL")...)
	for _, p := range []*pod{both, one, byEnv, small} {
		h.del(n, p)
	}
	clean.leaks(t)
}

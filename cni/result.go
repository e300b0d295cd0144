// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// withMTU is the first version of the specification in which interfaces have an MTU.
const withMTU = "1.1.0"

const maxWanted = 128 // addresses and routes of a CHECK

// result is what the runtime gets for a: what earlier plugins of the chain have made stays, and comes first.
func (c *call) result(r Request, a Attachment, prev *types100.Result) *types100.Result {
	out := &types100.Result{CNIVersion: current}
	if prev != nil {
		out.Interfaces, out.IPs, out.Routes, out.DNS = prev.Interfaces, prev.IPs, prev.Routes, prev.DNS
	}
	if !c.conf.dns.IsEmpty() {
		out.DNS = c.conf.dns
	}
	var index *int // of the interface in the container
	if !r.AddressesOnly {
		mtu := a.MTU
		if !since(c.version, withMTU) {
			mtu = 0
		}
		out.Interfaces = append(
			out.Interfaces,
			&types100.Interface{Name: a.HostIf, Mac: a.HostMAC, Mtu: mtu},
			&types100.Interface{Name: r.IfName, Mac: a.MAC, Mtu: mtu, Sandbox: r.Netns},
		)
		index = types100.Int(len(out.Interfaces) - 1)
	}
	for _, ip := range a.Addresses {
		out.IPs = append(out.IPs, &types100.IPConfig{Interface: index, Address: ipNet(a.prefix(ip)), Gateway: a.gateway(ip)})
	}
	for _, rt := range a.Routes {
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(rt.Dst), GW: rt.GW.AsSlice()})
	}
	return out
}

// printResult writes a result in the version that was asked for.
func (c *call) printResult(r *types100.Result) error {
	converted, err := r.GetAsVersion(c.version)
	if err != nil {
		return err
	}
	return c.print(converted)
}

// prefix is ip in its network: alone, where it is on an interface, as the kernel has it then.
func (a Attachment) prefix(ip netip.Addr) netip.Prefix {
	for _, u := range a.Universe {
		if u.Contains(ip) {
			return netip.PrefixFrom(ip, u.Bits())
		}
	}
	return netip.PrefixFrom(ip, ip.BitLen())
}

// gateway is the one of ip's family.
func (a Attachment) gateway(ip netip.Addr) net.IP {
	for _, rt := range a.Routes {
		if rt.GW.Is4() == ip.Is4() {
			return rt.GW.AsSlice()
		}
	}
	return nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// previous reads prevResult, nil if there is none. As IPAM it is another plugin's matter, but for CHECK.
func (c *call) previous() (*types100.Result, error) {
	raw, ok := c.conf.keys["prevResult"]
	if !ok || string(raw) == "null" || c.conf.addressesOnly && c.env.Getenv("CNI_COMMAND") == "ADD" {
		return nil, nil
	}
	bad := func(why string) (*types100.Result, error) {
		return nil, invalid(`"prevResult" cannot be used: `+oneLine(why), "the runtime has to give what the plugin before, or ADD, has answered, in version %s", c.version)
	}
	var keys map[string]json.RawMessage
	if json.Unmarshal(raw, &keys) != nil {
		return bad("it is no object")
	}
	has := false
	for k := range keys {
		has = has || strings.EqualFold(k, "cniVersion")
	}
	if !has { // results before 1.0.0 need not have it
		keys["cniVersion"] = json.RawMessage(`"` + c.version + `"`)
		var err error
		if raw, err = json.Marshal(keys); err != nil {
			return bad(err.Error())
		}
	}
	// The library trusts the lists: what is null in them would be its end.
	var lists struct {
		Interfaces []*struct{} `json:"interfaces"`
		IPs        []*struct {
			Address *string `json:"address"`
		} `json:"ips"`
		Routes []*struct {
			Dst *string `json:"dst"`
		} `json:"routes"`
	}
	if err := json.Unmarshal(raw, &lists); err != nil {
		return bad(mistyped(err))
	}
	for _, i := range lists.Interfaces {
		if i == nil {
			return bad("an interface is null")
		}
	}
	for _, ip := range lists.IPs {
		if ip == nil || ip.Address == nil {
			return bad("an element of ips has no address")
		}
	}
	for _, r := range lists.Routes {
		if r == nil || r.Dst == nil {
			return bad("a route has no dst")
		}
	}
	res, err := create.Create(c.version, raw)
	if err != nil {
		return bad(mistyped(err))
	}
	prev, err := types100.GetResult(res)
	if err != nil {
		return bad(err.Error())
	}
	return prev, nil
}

// mistyped tells what in a result is of another kind than it should be, without the names that it has in Go.
func mistyped(err error) string {
	var t *json.UnmarshalTypeError
	if !errors.As(err, &t) {
		return err.Error()
	}
	return "a " + t.Value + " where the specification has none: " + quoted(cmp.Or(t.Field, "result"))
}

// wanted is what prev says of the attachment that r asks for: what weft has made, and what plugins after it have made of that.
func wanted(prev *types100.Result, r CheckRequest) (a Attachment, err error) {
	index := slices.IndexFunc(prev.Interfaces, func(f *types100.Interface) bool { return f.Name == r.IfName && f.Sandbox == r.Netns })
	if index < 0 {
		return a, invalid(`"prevResult" has no interface `+quoted(r.IfName)+" in "+quoted(r.Netns), "the runtime has to give what ADD has answered for this container")
	}
	f := prev.Interfaces[index]
	m, err := net.ParseMAC(f.Mac)
	if f.Mac != "" && err != nil || f.Mtu < 0 || f.Mtu > maxMTU {
		return a, invalid(fmt.Sprintf(`"prevResult" has MAC address %s and MTU %d, which are none`, quoted(f.Mac), f.Mtu), "the runtime has to give what ADD has answered")
	}
	a.MAC, a.MTU = m.String(), f.Mtu
	if index > 0 && !r.AddressesOnly {
		if h := prev.Interfaces[index-1]; h.Sandbox == "" && badIfName(h.Name) == "" {
			a.HostIf = h.Name
		}
	}
	for _, ip := range prev.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if ok && (ip.Interface == nil || *ip.Interface == index) {
			a.Addresses = append(a.Addresses, addr.Unmap())
		}
	}
	for _, rt := range prev.Routes {
		addr, _ := netip.AddrFromSlice(rt.Dst.IP)
		gw, ok := netip.AddrFromSlice(rt.GW)
		bits, _ := rt.Dst.Mask.Size()
		if dst := netip.PrefixFrom(addr.Unmap(), bits); ok && dst.IsValid() {
			a.Routes = append(a.Routes, Route{Dst: dst, GW: gw.Unmap()})
		}
	}
	if len(a.Addresses) > maxWanted || len(a.Routes) > maxWanted {
		return a, invalid(fmt.Sprintf(`"prevResult" has %d addresses and %d routes`, len(a.Addresses), len(a.Routes)), "%d of each are the most", maxWanted)
	}
	return a, nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// kernelName is what the tables call what no plugin can do without.
const kernelName = "the kernel alone"

// kernelNode is a node without any plugin, on which the benchmark itself has the kernel make and remove what a pod needs: what that takes, and how it grows with the
// pods that are there, is in the time of every plugin.
type kernelNode struct {
	host  *lab.Host
	times cniTimes
}

// wired is the host's end of a pod's interface; nil: there is none.
type wired netlink.Link

// add gives a namespace a veth pair to the host, with one address of each family, routes both ways, and both ends up. Nothing of it is asked for twice.
func (k *kernelNode) add(ns *lab.Namespace, number int) (w wired, err error) {
	f, err := os.Open(ns.Path())
	if err != nil {
		return w, err
	}
	defer func() { _ = f.Close() }() // opened for reading
	host, pod := k.host.Netlink(), ns.Netlink()
	v := netlink.NewVeth(netlink.NewLinkAttrs())
	v.Name, v.PeerName, v.PeerNamespace = fmt.Sprintf("bare%d", number), podIf, netlink.NsFd(f.Fd())
	v.NumTxQueues, v.NumRxQueues = 1, 1
	if err := host.LinkAdd(v); err != nil {
		return w, fmt.Errorf("%s: %w", v.Name, err)
	}
	w = v
	addrs := []netip.Addr{
		netip.AddrFrom4([4]byte{10, 98, byte(number >> 8), byte(number)}),
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x98, 14: byte(number >> 8), 15: byte(number)}),
	}
	inner, err := pod.LinkByName(podIf)
	if err != nil {
		return w, err
	}
	const none = 1 // IN6_ADDR_GEN_MODE_NONE: no address of the link that nobody needs
	steps := []func() error{
		func() error { return host.LinkSetIP6AddrGenMode(v, none) },
		func() error { return host.LinkSetUp(v) },
	}
	for _, a := range addrs {
		to := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		steps = append(steps,
			func() error { return pod.AddrAdd(inner, &netlink.Addr{IPNet: to, Flags: unix.IFA_F_NODAD}) },
			func() error {
				return host.RouteAdd(&netlink.Route{LinkIndex: v.Index, Dst: to, Scope: netlink.SCOPE_LINK})
			})
	}
	steps = append(steps, func() error { return pod.LinkSetUp(inner) })
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		_, to, _ := net.ParseCIDR(all)
		steps = append(steps, func() error {
			return pod.RouteAdd(&netlink.Route{LinkIndex: inner.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK})
		})
	}
	for _, step := range append(steps, func() error { _, err := host.LinkByIndex(v.Index); return err }) { // by then it carries
		if err == nil {
			err = step()
		}
	}
	return w, err
}

func (k *kernelNode) remove(w wired) error { return k.host.Netlink().LinkDel(w) }

// comeAndGo adds a pod and removes it, and notes how long each took.
func (k *kernelNode) comeAndGo(ns *lab.Namespace, number int) error {
	begun := time.Now()
	w, err := k.add(ns, number)
	added := time.Now()
	if err == nil {
		err = k.remove(w)
	}
	k.times.add = append(k.times.add, added.Sub(begun))
	k.times.del = append(k.times.del, time.Since(added))
	return err
}

// removeAll removes pods, many at once: the kernel waits for each.
func (k *kernelNode) removeAll(pods []wired) error {
	errs := make([]error, len(pods))
	var removing sync.WaitGroup
	room := make(chan struct{}, 32)
	for i, w := range pods {
		room <- struct{}{}
		removing.Go(func() {
			errs[i] = k.remove(w)
			<-room
		})
	}
	removing.Wait()
	return errors.Join(errs...)
}

// kernelAlone has pods come and go without any plugin, on a node with as many others as the plugins have had and on one without, in turns. The pods are Weft's, which
// have nothing any more.
func (b *cniBench) kernelAlone() error {
	full := b.bare[0]
	var others []wired
	for i, p := range b.contenders[0].pods {
		w, err := full.add(p.ns, i)
		if w != nil {
			others = append(others, w)
		}
		if err != nil {
			return err
		}
	}
	for i, p := range b.contenders[0].spares {
		for j := range 2 {
			if err := b.bare[(i+j)%2].comeAndGo(p.ns, b.pods+i); err != nil {
				return err
			}
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
		}
	}
	return full.removeAll(others)
}

// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftnet/weft/router/fastpath"
)

// flow sends numbered packets from one host to another of a family, about a thousand a second, until stop is called, which fails the test
// if one of them has not arrived, or one has twice.
func flow(t *testing.T, a, b *host, v6 bool) (stop func()) {
	t.Helper()
	from, to := over4(a.n), over4(b.n)
	if v6 {
		from, to = over6(a.n), over6(b.n)
	}
	server, client := listen(t, b.ns, to, 7000), listen(t, a.ns, from, 0)
	must(t, server.SetReadBuffer(1<<20))
	must(t, server.SetDeadline(time.Time{}))
	must(t, client.SetDeadline(time.Time{}))
	var sent, got atomic.Uint64
	var seen []bool
	quit, senderDone, receiverDone := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(receiverDone)
		buf := make([]byte, 2048)
		for {
			n, err := server.Read(buf)
			if err != nil {
				return
			}
			number := int(binary.BigEndian.Uint64(buf[:n]))
			for len(seen) <= number {
				seen = append(seen, false)
			}
			if seen[number] {
				t.Errorf("packet %d came twice", number)
			}
			seen[number] = true
			got.Add(1)
		}
	}()
	go func() {
		defer close(senderDone)
		buf := make([]byte, 200)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			binary.BigEndian.PutUint64(buf, sent.Load())
			if _, err := client.WriteToUDPAddrPort(buf, netip.AddrPortFrom(to, 7000)); err != nil {
				t.Errorf("sending to %v: %v", to, err)
			}
			sent.Add(1)
		}
	}()
	for end := time.Now().Add(patience); got.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing arrives")
		}
	}
	return func() {
		t.Helper()
		close(quit)
		<-senderDone
		for end := time.Now().Add(patience); got.Load() != sent.Load() && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		_, _ = server.Close(), client.Close()
		<-receiverDone
		if got.Load() != sent.Load() {
			t.Errorf("%d of %d packets to %v arrived", got.Load(), sent.Load(), to)
		}
	}
}

// From one kernel path to another and back, and by another underlay, no packet is lost.
func TestSwitch(t *testing.T) {
	hosts := newHosts(t, 2)
	connected(t, hosts, under4, fastpath.VXLAN)
	var stops []func()
	for _, v6 := range []bool{false, true} {
		stops = append(stops, flow(t, hosts[0], hosts[1], v6), flow(t, hosts[1], hosts[0], v6))
	}
	for i := range 60 {
		h, under := hosts[i%2], under4
		if i%5 == 4 {
			under = under6
		}
		use := fastpath.Direct
		if i%4 > 1 {
			use = fastpath.VXLAN
		}
		must(t, h.Apply(h.toAll(hosts, under, use)))
		h.reconciled(t)
		time.Sleep(5 * time.Millisecond)
	}
	for _, stop := range stops {
		stop()
	}
}

// A daemon that dies leaves what it has made; the next one finds it and goes on without the loss of a packet.
func TestAdopt(t *testing.T) {
	for _, x := range []struct {
		use   fastpath.Kind
		under func(int) netip.Addr
	}{{fastpath.VXLAN, under4}, {fastpath.VXLAN, under6}, {fastpath.Direct, under4}} {
		t.Run(x.use.String(), func(t *testing.T) {
			hosts := newHosts(t, 3)
			connected(t, hosts, x.under, x.use)
			h := hosts[0]
			// One peer is reached by udp.
			d := h.toAll(hosts, x.under, x.use)
			d.Peers[1].Path = fastpath.UDP
			must(t, h.Apply(d))
			stops := []func(){flow(t, h, hosts[1], false), flow(t, hosts[1], h, true)}
			before := snapshot(t, h.ns)
			m := newMonitor(t, h.ns)

			must(t, h.Kernel.Close())
			h.Kernel = h.newKernel(t)
			asked := h.toAll(hosts, x.under, fastpath.UDP)
			found, err := h.Found(asked)
			must(t, err)
			if len(found) != 1 || found[idOf(2)] != x.use {
				t.Fatalf("found %v", found)
			}
			m.quiet(t, "Found")
			for i, p := range asked.Peers {
				asked.Peers[i].Path = found[p.ID]
			}
			must(t, h.Apply(asked))
			m.quiet(t, "adoption")
			same(t, "after adoption", before, snapshot(t, h.ns))
			h.reconciled(t)
			for _, stop := range stops {
				stop()
			}
		})
	}
}

// What an earlier run has left and is no longer wanted goes, without a word about somebody; what it has left half done is finished.
func TestAdoptOther(t *testing.T) {
	hosts := newHosts(t, 3)
	connected(t, hosts, under4, fastpath.VXLAN)
	h := hosts[0]
	k := h.newKernel(t)
	d := h.toAll(hosts[:2], under4, fastpath.Direct)
	d.MTU4, d.MTU6 = 0, 1430
	d.Peers[0].VXLAN = netip.AddrPortFrom(under6(2), testPort)
	found, err := k.Found(d)
	must(t, err)
	if len(found) != 0 { // by another device: that is not consented any more
		t.Errorf("found %v", found)
	}
	must(t, k.Apply(d))
	if got, err := k.Reconcile(); err != nil || len(got) > 0 {
		t.Error(got, err)
	}
	if got := snapshot(t, h.ns); slices.ContainsFunc(got, func(l string) bool {
		return strings.Contains(l, Device4) || strings.Contains(l, "10.35.") || strings.Contains(l, MAC(idOf(3)).String())
	}) {
		t.Errorf("left: %q", got)
	}
	// Another VNI makes the devices anew.
	other := newAt(Config{ID: idOf(1), VNI: 9, Port: testPort, Log: k.log}, h.ns)
	defer func() { must(t, other.Close()) }()
	if found, err := other.Found(d); err != nil || len(found) != 1 || found[idOf(2)] != fastpath.Direct {
		t.Error(found, err)
	}
	must(t, other.Apply(d))
	for what, change := range map[string]func(p *Peer){
		"by another interface": func(p *Peer) { p.Device = "lo" },
		"by other hops":        func(p *Peer) { p.Hop4, p.Hop6 = under4(9), under6(9) },
		"by VXLAN only":        func(p *Peer) { p.Device = "" },
		"with other prefixes":  func(p *Peer) { p.Prefixes = prefixes(9) },
	} {
		elsewhere := d
		elsewhere.Peers = slices.Clone(d.Peers)
		change(&elsewhere.Peers[0])
		if found, err := other.Found(elsewhere); err != nil || len(found) != 0 {
			t.Errorf("%s: %v, %v", what, found, err)
		}
	}
	c := other.conn
	l, _, err := c.link(Device6)
	must(t, err)
	if l.vni != 9 || !l.up || l.alias != deviceAlias {
		t.Errorf("%+v", l)
	}
}

// Remove leaves nothing, whether this run has made it or an earlier one, and takes nothing that is not Weft's.
func TestRemove(t *testing.T) {
	hosts := newHosts(t, 3)
	h := hosts[0]
	before := snapshot(t, h.ns)
	for _, fresh := range []bool{false, true} {
		must(t, h.Apply(h.toAll(hosts, under4, fastpath.VXLAN)))
		if fresh {
			must(t, h.Kernel.Close())
			h.Kernel = h.newKernel(t)
		}
		removed, err := h.Remove()
		must(t, err)
		want := []string{"4 routes of kernel paths", "3 rules for probes of kernel paths", "9 routes for probes of kernel paths", "device weft-vx4", "device weft-vx6"}
		if !slices.Equal(removed, want) {
			t.Errorf("removed %q", removed)
		}
		same(t, "after Remove", before, snapshot(t, h.ns))
		if removed, err := h.Remove(); err != nil || len(removed) > 0 {
			t.Errorf("a second Remove: %q, %v", removed, err)
		}
		h.reconciled(t)
		same(t, "after Reconcile", before, snapshot(t, h.ns))
	}
}

// A desired state without anything leaves nothing either.
func TestNothing(t *testing.T) {
	hosts := newHosts(t, 2)
	h := hosts[0]
	before := snapshot(t, h.ns)
	m := newMonitor(t, h.ns)
	must(t, h.Apply(Desired{}))
	h.reconciled(t)
	m.quiet(t, "nothing")
	must(t, h.Apply(h.toAll(hosts, under4, fastpath.Direct)))
	must(t, h.Apply(Desired{}))
	same(t, "afterwards", before, snapshot(t, h.ns))
}

// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// tunnelled sends a datagram in a tunnel of the first peer.
func (h *testHost) tunnelled(t *testing.T, mac []byte, src, victim netip.Addr, port uint16, payload string) error {
	t.Helper()
	return h.tunnelledBy(t, h.outside, mac, src, victim, port, payload)
}

// tunnelledBy is tunnelled by somebody in a namespace.
func (h *testHost) tunnelledBy(t *testing.T, by namespace, mac []byte, src, victim netip.Addr, port uint16, payload string) error {
	t.Helper()
	host := netip.MustParseAddr("192.0.2.1")
	inner := ip(src, victim, unix.IPPROTO_UDP, udp(netip.AddrPortFrom(src, 7), netip.AddrPortFrom(victim, port), []byte(payload)))
	outer := udp(netip.AddrPortFrom(peer4, 40000), netip.AddrPortFrom(host, vxlanPort), encapsulate(vxlanVNI, mac, ethertype(victim), inner))
	return sendRaw(t, by, host, ip(peer4, host, unix.IPPROTO_UDP, outer))
}

// came is the key of what came from the peer over IPv4 with an inner source.
func (h *testHost) came(t *testing.T, inner netip.Addr) element {
	t.Helper()
	key := slices.Concat(inner.AsSlice(), peer4.AsSlice())
	return element{key: string(binary.NativeEndian.AppendUint32(key, uint32(up(t, h.conn, "eth0").Attrs().Index)))}
}

// What was let in is known for a moment, nothing else is, and what is no longer a peer's is let in for that moment at most.
func TestSeenTunnels(t *testing.T) {
	h, macs, _ := newTunnelHost(t)
	w := h.attach(t, 1)
	for i, victim := range w.Addrs {
		mine, theirs := []netip.Addr{remote4, remote6}[i], []netip.Addr{remoteO4, remoteO6}[i]
		set := seenSet(false, mine.Is6()).name
		c := listen(t, w.ns(t), victim)
		must(t, h.tunnelled(t, macs[0], theirs, victim, port(c), "bad"))
		want := map[element]uint64{h.came(t, mine): 0}
		if !eventually(5*time.Second, func() bool { // its time may be over by the time it is read
			must(t, h.tunnelled(t, macs[0], mine, victim, port(c), "good"))
			if got, from := receive(t, c); got != "good" {
				t.Fatalf("%q from %v has arrived", got, from)
			}
			got, err := readSet(h.ns, set)
			must(t, err)
			if len(got) > 1 {
				t.Fatalf("set %s holds %q, want %q", set, slices.Collect(maps.Keys(got)), slices.Collect(maps.Keys(want)))
			}
			return maps.Equal(got, want)
		}) {
			t.Errorf("set %s does not hold what has come", set)
		}
		const notIts = "source is not this workload's"
		before := dropped(t, h.ns, notIts)
		must(t, h.tunnelled(t, macs[0], mine, victim, port(c), "good"))
		must(t, h.tunnelledBy(t, w.ns(t), macs[0], mine, victim, port(c), "bad")) // the same by another device
		if got, from := receive(t, c); got != "good" {
			t.Fatalf("%q from %v has arrived", got, from)
		}
		if n := dropped(t, h.ns, notIts) - before; n != 1 {
			t.Errorf("to %v: %d packets of a workload dropped, want 1", victim, n)
		}
	}

	must(t, h.SetPlain(Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices}))
	time.Sleep(seenFor + 20*time.Millisecond) // and a tick of the kernel's clock
	for i, victim := range w.Addrs {
		before := dropped(t, h.ns, notOfPeer)
		must(t, h.tunnelled(t, macs[0], []netip.Addr{remote4, remote6}[i], victim, 9, "late"))
		if n := dropped(t, h.ns, notOfPeer) - before; n != 1 {
			t.Errorf("to %v: %d packets dropped, want 1", victim, n)
		}
	}
}

// Who finds no more room among what was let in is let in all the same.
func TestSeenTunnelsFull(t *testing.T) {
	h, macs, d := newTunnelHost(t)
	w := h.attach(t, 1)
	seen := seenSet(false, false)
	conn := h.connection(t)
	set := &nftables.Set{Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}, Name: seen.name, HasTimeout: true}
	var strangers []nftables.SetElement
	for i := range uint32(seenMost) {
		strangers = append(strangers, nftables.SetElement{Key: binary.BigEndian.AppendUint32(make([]byte, 8), i), Timeout: time.Hour})
	}
	for part := range slices.Chunk(strangers, maxElements) {
		must(t, conn.SetAddElements(set, part))
	}
	must(t, conn.Flush())
	c := listen(t, w.ns(t), w.Addrs[0])
	for range 3 {
		must(t, h.tunnelled(t, macs[0], remote4, w.Addrs[0], port(c), "good"))
		if got, from := receive(t, c); got != "good" {
			t.Errorf("%q from %v has arrived", got, from)
		}
	}
	got, err := readSet(h.ns, seen.name)
	must(t, err)
	if _, there := got[h.came(t, remote4)]; there || len(got) != seenMost {
		t.Errorf("the set has %d elements, that of the peer: %v; want %d, false", len(got), there, seenMost)
	}
	if res := h.apply(t, d); len(res.Repaired) > 0 { // what is in it is nobody's business
		t.Errorf("repaired: %q", res.Repaired)
	}
}

// A workload forges no tunnel of a peer that is being heard, not even where somebody has changed the group of its interface.
func TestSeenTunnelsNotOfWorkloads(t *testing.T) {
	h, macs, _ := newTunnelHost(t)
	w, other := h.attach(t, 1), h.attach(t, 2)
	must(t, h.conn.LinkSetGroup(up(t, h.conn, HostIf(other.ID)), 0))
	c := listen(t, w.ns(t), w.Addrs[0])
	must(t, h.tunnelled(t, macs[0], remote4, w.Addrs[0], port(c), "good"))
	before := dropped(t, h.ns, "source is not this workload's")
	must(t, h.tunnelledBy(t, other.ns(t), macs[0], remote4, w.Addrs[0], port(c), "bad"))
	if n := dropped(t, h.ns, "source is not this workload's") - before; n != 1 {
		t.Errorf("%d packets dropped, want 1", n)
	}
	must(t, h.tunnelled(t, macs[0], remote4, w.Addrs[0], port(c), "good"))
	for range 2 {
		if got, from := receive(t, c); got != "good" {
			t.Errorf("%q from %v has arrived", got, from)
		}
	}
}

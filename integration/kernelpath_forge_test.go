// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// forging is a mesh whose nodes trust each other, but for one member, and a stranger on their network. The target must not get what is forged.
type forging struct {
	*lab.Lab
	t                               *testing.T
	target, peer, member, untrusted *lab.Host
	stranger                        *lab.Host
	ends                            map[*lab.Host]*lab.Workload
	heard                           map[string]*lab.Capture // at the target, by device
}

// forgeable sets it up, with the given paths.
func forgeable(t *testing.T, allowed string) *forging {
	t.Helper()
	f := &forging{Lab: lab.New(t), t: t, ends: map[*lab.Host]*lab.Workload{}, heard: map[string]*lab.Capture{}}
	lan := f.Switch("lan")
	f.target, f.peer, f.member, f.untrusted = f.Host("target", lan), f.Host("peer", lan), f.Host("member", lan), f.Host("untrusted", lan)
	f.stranger = f.Host("stranger", lan)
	hosts := []*lab.Host{f.target, f.peer, f.member, f.untrusted}
	var trusted []byte
	for _, h := range append(hosts[:3:3], f.stranger) { // the stranger's address, too, is in the network that is trusted
		trusted = fmt.Appendf(trusted, "%v/32,%v/128,", h.Link().V4(), h.Link().V6())
	}
	trusted = trusted[:len(trusted)-1]
	workloads := launchedEach(t, hosts, func(int) []string { return []string{"--trusted-subnets", string(trusted), "--paths", allowed + ",udp"} })
	for i, h := range hosts {
		f.ends[h] = workloads[i]
	}
	onPath(t, allowed, hosts[:3]...)
	allReach(t, patience, workloads...)
	f.listen("workload", f.ends[f.target].Namespace, "eth0")
	return f
}

// listen notes what arrives at a device.
func (f *forging) listen(name string, n *lab.Namespace, device string) {
	f.heard[name] = f.Capture(n, device, 0)
}

// silent checks that no datagram that says so has arrived anywhere but at a device where it may.
func (f *forging) silent(what string, but ...string) {
	f.t.Helper()
	time.Sleep(silence)
	for where, c := range f.heard {
		if n := c.Count([]byte(what)); n != 0 && !slices.Contains(but, where) {
			f.t.Errorf("%q: %d have arrived at the target's %s", what, n, where)
		}
	}
}

// arrives waits until a datagram that says so is at the workload.
func (f *forging) arrives(what string) {
	f.t.Helper()
	eventually(f.t, patience, func() error {
		if f.heard["workload"].Count([]byte(what)) == 0 {
			return fmt.Errorf("%q has not arrived: what was forged may be wrong", what)
		}
		return nil
	})
}

// whole builds a packet of either family with a UDP datagram, with all lengths and checksums as they have to be.
func whole(from, to netip.Addr, payload []byte) []byte {
	const port, udpHeader = 9, 8
	length := udpHeader + len(payload)
	transport := binary.BigEndian.AppendUint16(nil, port)
	transport = binary.BigEndian.AppendUint16(transport, port)
	transport = binary.BigEndian.AppendUint16(transport, uint16(length))
	transport = append(binary.BigEndian.AppendUint16(transport, 0), payload...)
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, unix.IPPROTO_UDP, byte(length >> 8), byte(length)})
	binary.BigEndian.PutUint16(transport[6:], checksum(append(pseudo, transport...)))
	if from.Is4() {
		head := []byte{0: 0x45, 2: byte((20 + length) >> 8), 3: byte(20 + length), 8: 64, 9: unix.IPPROTO_UDP, 19: 0}
		copy(head[12:], from.AsSlice())
		copy(head[16:], to.AsSlice())
		binary.BigEndian.PutUint16(head[10:], checksum(head))
		return append(head, transport...)
	}
	head := []byte{0: 0x60, 4: byte(length >> 8), 5: byte(length), 6: unix.IPPROTO_UDP, 7: 64, 39: 0}
	copy(head[8:], from.AsSlice())
	copy(head[24:], to.AsSlice())
	return append(head, transport...)
}

// checksum is the Internet checksum.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// ethernet puts a packet into a frame.
func ethernet(to, from net.HardwareAddr, packet []byte) []byte {
	kind := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	return append(binary.BigEndian.AppendUint16(slices.Concat(to, from), kind), packet...)
}

// tunnelled puts a frame into VXLAN (RFC 7348).
func tunnelled(vni uint32, frame []byte) []byte {
	return slices.Concat([]byte{0x08, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}, frame)
}

// utters sends one datagram from a namespace, from whatever address the kernel chooses.
func utters(t *testing.T, n *lab.Namespace, to netip.AddrPort, payload []byte) {
	t.Helper()
	err := n.Do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		_, err = c.Write(payload)
		return errors.Join(err, c.Close())
	})
	if err != nil && !errors.Is(err, unix.EPERM) { // a rule on the way out may say no at once
		t.Fatal(err)
	}
}

// puts sends one frame by a device.
func puts(t *testing.T, n *lab.Namespace, device string, frame []byte) {
	t.Helper()
	index := link(t, n, device).Attrs().Index
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return errors.Join(unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}), unix.Close(fd))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// addressOf returns an address of a workload, of a family.
func addressOf(w *lab.Workload, v6 bool) netip.Addr {
	if v6 {
		return w.V6
	}
	return w.V4
}

// TestForgedVXLAN sends VXLAN to a node from everybody who can send anything, with all kinds of sources inside. What is the sender's own arrives,
// nothing else does.
func TestForgedVXLAN(t *testing.T) {
	t.Parallel()
	const vni = 6783
	f := forgeable(t, "vxlan")
	devices := map[bool]string{false: "weft-vx4", true: "weft-vx6"}
	for _, d := range devices {
		f.listen(d, f.target.Namespace, d)
	}
	outer := func(v6 bool) netip.AddrPort {
		if v6 {
			return netip.AddrPortFrom(f.target.Link().V6(), vxlanPort)
		}
		return netip.AddrPortFrom(f.target.Link().V4(), vxlanPort)
	}
	victim := f.ends[f.target]
	hostOf := func(h *lab.Host) netip.Addr { return ask[status](t, h, "status").Addresses[0] }
	forge := func(n *lab.Namespace, over bool, at netip.AddrPort, number uint32, from, to netip.Addr, text string) {
		t.Helper()
		// The hardware address of the peer is what would be there.
		far := link(t, f.peer.Namespace, devices[over]).Attrs().HardwareAddr
		frame := ethernet(link(t, f.target.Namespace, devices[over]).Attrs().HardwareAddr, far, whole(from, to, []byte(text)))
		utters(t, n, at, tunnelled(number, frame))
	}
	for _, over := range []bool{false, true} {
		for _, inside := range []bool{false, true} {
			name := fmt.Sprintf("v6 outside %v, inside %v", over, inside)
			to, at := addressOf(victim, inside), outer(over)
			elsewhere := netip.MustParseAddr(map[bool]string{false: "198.51.100.7", true: "2001:db8:ffff::7"}[inside])
			for _, c := range []struct {
				who  string
				n    *lab.Namespace
				vni  uint32
				from netip.Addr
				to   netip.Addr
			}{
				{"a stranger, as a peer's workload", f.stranger.Namespace, vni, addressOf(f.ends[f.peer], inside), to},
				{"a stranger, as the target's own workload", f.stranger.Namespace, vni, to, to},
				{"a stranger, as somebody outside", f.stranger.Namespace, vni, elsewhere, to},
				{"a stranger, by another number", f.stranger.Namespace, vni + 1, addressOf(f.ends[f.peer], inside), to},
				{"a stranger, to the host", f.stranger.Namespace, vni, hostOf(f.peer), hostOf(f.target)},
				{"a member, as another member's workload", f.member.Namespace, vni, addressOf(f.ends[f.peer], inside), to},
				{"a member, as the target's own workload", f.member.Namespace, vni, to, to},
				{"a member, as somebody outside", f.member.Namespace, vni, elsewhere, to},
				{"a member, as another host", f.member.Namespace, vni, hostOf(f.peer), hostOf(f.target)},
				{"a member, as one that is not trusted", f.member.Namespace, vni, addressOf(f.ends[f.untrusted], inside), to},
				{"a member that is not trusted, as itself", f.untrusted.Namespace, vni, addressOf(f.ends[f.untrusted], inside), to},
				{"a peer's workload, as its host", f.ends[f.peer].Namespace, vni, addressOf(f.ends[f.peer], inside), to},
				{"a member's workload, as a peer's", f.ends[f.member].Namespace, vni, addressOf(f.ends[f.peer], inside), to},
				{"the target's workload, as a peer's", victim.Namespace, vni, addressOf(f.ends[f.peer], inside), to},
			} {
				text := fmt.Sprintf("forged by %s, %s", c.who, name)
				forge(c.n, over, at, c.vni, c.from, c.to, text)
				if c.n == victim.Namespace {
					f.silent(text, "workload") // which has sent it
					continue
				}
				f.silent(text)
			}
			text := "honest, " + name
			forge(f.peer.Namespace, over, at, vni, addressOf(f.ends[f.peer], inside), to, text)
			f.arrives(text)
		}
	}
	// By the overlay, to the host's own address on it.
	text := "forged by a peer's workload, by the overlay"
	forge(f.ends[f.peer].Namespace, false, netip.AddrPortFrom(hostOf(f.target), vxlanPort), vni, f.ends[f.peer].V4, victim.V4, text)
	f.silent(text, devices[false], devices[true]) // by which it came, as what a workload may send, and no further

	// Who has left is nobody.
	done(t, f.peer.Weft("leave", "--force"))
	eventually(t, patience, func() error {
		if row, err := kernelPeer(f.target, f.peer); err == nil && row.Path == "vxlan" {
			return fmt.Errorf("%s still reaches %s by vxlan", f.target.Name(), f.peer.Name())
		}
		return nil
	})
	source := f.ends[f.peer].V4
	for _, over := range []bool{false, true} {
		text = fmt.Sprintf("forged by one that has left, %v", over)
		frame := ethernet(link(t, f.target.Namespace, devices[over]).Attrs().HardwareAddr, net.HardwareAddr{14, 1, 2, 3, 4, 5}, whole(source, victim.V4, []byte(text)))
		utters(t, f.peer.Namespace, outer(over), tunnelled(vni, frame))
		f.silent(text)
	}
}

// TestForgedDirect sends packets of the overlay without any tunnel to a node, from everybody on its network.
func TestForgedDirect(t *testing.T) {
	t.Parallel()
	f := forgeable(t, "direct")
	victim := f.ends[f.target]
	at := f.target.Link().MAC()
	for _, inside := range []bool{false, true} {
		to := addressOf(victim, inside)
		put := func(by *lab.Host, from netip.Addr, text string) {
			t.Helper()
			puts(t, by.Namespace, by.Link().Device(), ethernet(at, by.Link().MAC(), whole(from, to, []byte(text))))
		}
		for _, c := range []struct {
			who  string
			by   *lab.Host
			from netip.Addr
		}{
			{"a stranger, as a peer's workload", f.stranger, addressOf(f.ends[f.peer], inside)},
			{"a stranger, as the target's own workload", f.stranger, to},
			{"a member, as another member's workload", f.member, addressOf(f.ends[f.peer], inside)},
			{"a member that is not trusted, as itself", f.untrusted, addressOf(f.ends[f.untrusted], inside)},
			{"a member, as one that is not trusted", f.member, addressOf(f.ends[f.untrusted], inside)},
		} {
			text := fmt.Sprintf("forged by %s, v6 %v", c.who, inside)
			put(c.by, c.from, text)
			f.silent(text)
		}
		text := fmt.Sprintf("honest, v6 %v", inside)
		put(f.peer, addressOf(f.ends[f.peer], inside), text)
		f.arrives(text)
	}
}

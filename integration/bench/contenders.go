// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/integration/lab"
)

const (
	vxlanMTU  = 1450
	vxlanPort = 4789
	wgPort    = 51820
	wgSockets = "/var/run/wireguard" // wireguard-go knows no other place

	plainName = "veth"
	vxlanName = "vxlan"
	wgName    = "wireguard-go" // what the others are compared with
)

// contender is one way from one host to the other.
type contender struct {
	name     string
	from, to *lab.Namespace
	addr     netip.Addr
	start    func() error // before each turn
	check    func() error // once it has carried a packet: is it what its name says
	stop     func()       // after it
	pids     func() []int // of the forwarding processes, both hosts'
	samples  samples
}

func nothing() error { return nil }
func noPIDs() []int  { return nil }

// summary tells what the last turn saw.
func (c *contender) summary() string {
	var out []string
	for _, m := range metrics() {
		if s := c.samples.last(m); s != "" && m.ratio {
			out = append(out, s)
		}
	}
	return strings.Join(out, "; ")
}

// names are all who can take part.
func names() []string { return append([]string{plainName, vxlanName, wgName}, weftNames()...) }

// contenders sets up those that are asked for.
func (b *bench) contenders() ([]*contender, error) {
	var all []*contender
	for _, set := range []struct {
		name string
		up   func() (*contender, error)
	}{{plainName, b.plain}, {vxlanName, b.vxlan}, {wgName, b.wireguard}} {
		if !b.competes(set.name) {
			continue
		}
		c, err := set.up()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", set.name, err)
		}
		all = append(all, c)
	}
	if !slices.ContainsFunc(weftNames(), b.competes) {
		return all, nil
	}
	if err := b.weft(); err != nil {
		return nil, err
	}
	for _, c := range b.mesh.contenders() {
		if b.competes(c.name) {
			all = append(all, c)
		}
	}
	return all, nil
}

// competes reports whether the contender is asked for.
func (b *bench) competes(name string) bool {
	return len(b.only) == 0 || slices.Contains(b.only, name)
}

func (b *bench) plain() (*contender, error) {
	return &contender{
		name: plainName, from: b.hosts[0].Namespace, to: b.hosts[1].Namespace, addr: b.hosts[1].Link().V4(),
		start: nothing, check: nothing, stop: func() {}, pids: noPIDs, samples: samples{},
	}, nil
}

// own returns the address of the i-th host in a network of a contender.
func own(network, i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, byte(network), byte(i + 1)}), 24)
}

// raise gives a device its address and sets it up.
func raise(h *lab.Host, device string, p netip.Prefix) error {
	dev, err := h.Netlink().LinkByName(device)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}
	if err := h.Netlink().AddrAdd(dev, a); err != nil {
		return err
	}
	return h.Netlink().LinkSetUp(dev)
}

func (b *bench) vxlan() (*contender, error) {
	for i, h := range b.hosts {
		dev := &netlink.Vxlan{
			LinkAttrs: netlink.NewLinkAttrs(), VxlanId: 77, Port: vxlanPort,
			SrcAddr: h.Link().V4().AsSlice(), Group: b.hosts[1-i].Link().V4().AsSlice(),
		}
		dev.Name, dev.MTU = "vxlan77", vxlanMTU
		if err := h.Netlink().LinkAdd(dev); err != nil {
			return nil, err
		}
		if err := raise(h, dev.Name, own(1, i)); err != nil {
			return nil, err
		}
	}
	return &contender{
		name: vxlanName, from: b.hosts[0].Namespace, to: b.hosts[1].Namespace, addr: own(1, 1).Addr(),
		start: nothing, check: nothing, stop: func() {}, samples: samples{}, pids: noPIDs,
	}, nil
}

// wgInterface returns the name of the i-th host's interface, and so of its socket. It is this process's alone.
func wgInterface(i int) string { return fmt.Sprintf("wb%d%c", os.Getpid(), 'a'+i) }

func wgSocket(i int) string { return filepath.Join(wgSockets, wgInterface(i)+".sock") }

// removeSockets removes what killed wireguard-go processes leave behind. Running ones end when their socket is removed.
func removeSockets() {
	for i := range hosts {
		_ = os.Remove(wgSocket(i))
	}
	_ = os.Remove(wgSockets) // fails if somebody else has a socket in it
}

func (b *bench) wireguard() (*contender, error) {
	b.Cleanup(removeSockets)
	var keys [hosts]*ecdh.PrivateKey
	var pids []int
	for i, h := range b.hosts {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
		p, err := h.Start(lab.Command{Path: b.wgBinary, Args: []string{"-f", wgInterface(i)}})
		if err != nil {
			return nil, err
		}
		pids = append(pids, p.Pid())
	}
	for i, h := range b.hosts {
		peer := 1 - i
		err := configure(wgSocket(i), fmt.Sprintf(
			"set=1\nprivate_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%v\nallowed_ip=%v/32\n\n",
			hex.EncodeToString(keys[i].Bytes()), wgPort, hex.EncodeToString(keys[peer].PublicKey().Bytes()),
			netip.AddrPortFrom(b.hosts[peer].Link().V4(), wgPort), own(2, peer).Addr()))
		if err != nil {
			return nil, err
		}
		if err := raise(h, wgInterface(i), own(2, i)); err != nil {
			return nil, err
		}
	}
	return &contender{
		name: wgName, from: b.hosts[0].Namespace, to: b.hosts[1].Namespace, addr: own(2, 1).Addr(),
		start: nothing, check: nothing, stop: func() {}, samples: samples{}, pids: func() []int { return pids },
	}, nil
}

// configure tells wireguard-go what to do, as soon as its socket is there.
func configure(socket, request string) error {
	var conn net.Conn
	var err error
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		if conn, err = net.Dial("unix", socket); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	var code int
	if _, err := fmt.Fscanf(conn, "errno=%d\n", &code); err != nil {
		return fmt.Errorf("answer of wireguard-go: %w", err)
	}
	if code != 0 {
		return fmt.Errorf("wireguard-go refuses its configuration: errno %d", code)
	}
	return nil
}

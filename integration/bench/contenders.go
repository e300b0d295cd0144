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
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/integration/lab"
)

const (
	vxlanMTU  = 1450
	vxlanPort = 4789
	wgPort    = 51820
	wgSockets = "/var/run/wireguard" // wireguard-go knows no other place
	wgName    = "wireguard-go"       // what the others are compared with
)

// contender is one way from one host to the other.
type contender struct {
	name     string
	from, to *lab.Namespace
	addr     netip.Addr
	start    func() error  // before each turn
	stop     func()        // after it
	pids     func() []int  // of the forwarding processes, both hosts'
	samples  []measurement // one per round
}

func nothing() error { return nil }
func noPIDs() []int  { return nil }

// contenders sets all of them up.
func (b *bench) contenders() ([]*contender, error) {
	one, two := b.hosts[0], b.hosts[1]
	plain := &contender{
		name: "veth, no encryption", from: one.Namespace, to: two.Namespace, addr: two.Link().V4(),
		start: nothing, stop: func() {}, pids: noPIDs,
	}
	vxlan, err := b.vxlan()
	if err != nil {
		return nil, fmt.Errorf("vxlan: %w", err)
	}
	wg, err := b.wireguard()
	if err != nil {
		return nil, fmt.Errorf("wireguard-go: %w", err)
	}
	all := []*contender{plain, vxlan, wg}
	weft, err := b.weft()
	return append(all, weft...), err
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
		name: "kernel VXLAN", from: b.hosts[0].Namespace, to: b.hosts[1].Namespace, addr: own(1, 1).Addr(),
		start: nothing, stop: func() {}, pids: noPIDs,
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
		start: nothing, stop: func() {}, pids: func() []int { return pids },
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

// weft founds the mesh. Both contenders are the same nodes and workloads, launched with different flags.
func (b *bench) weft() ([]*contender, error) {
	one, two := b.hosts[0], b.hosts[1]
	one.Launch("--range", lab.DefaultRange)
	if err := one.WaitReady(within); err != nil {
		return nil, err
	}
	two.Join(one.Token(), []*lab.Host{one}, "--range", lab.DefaultRange)
	if err := two.WaitReady(within); err != nil {
		return nil, err
	}
	from, to := one.Workload("a"), two.Workload("b")
	from.Attach()
	to.Attach()
	if _, err := from.Reach(to.V4, within); err != nil {
		return nil, err
	}
	var peers []struct {
		Suite string `json:"suite"`
	}
	if err := one.Query(&peers, "peers"); err != nil {
		return nil, err
	}
	if len(peers) != 1 {
		return nil, fmt.Errorf("weft peers lists %d nodes", len(peers))
	}
	b.suite = peers[0].Suite
	stop := func() {
		for _, h := range b.hosts {
			if h.Running() {
				h.Terminate()
			}
		}
	}
	stop()
	launched := func(name string, flags ...string) *contender {
		return &contender{
			name: name, from: from.Namespace, to: to.Namespace, addr: to.V4, stop: stop,
			start: func() error {
				for _, h := range b.hosts {
					h.Launch(append([]string{"--range", lab.DefaultRange}, flags...)...)
				}
				for _, h := range b.hosts {
					if err := h.WaitReady(within); err != nil {
						return err
					}
				}
				return nil
			},
			pids: func() []int { return []int{one.Daemon().Pid(), two.Daemon().Pid()} },
		}
	}
	return []*contender{launched("Weft"), launched("Weft --no-offload", "--no-offload")}, nil
}

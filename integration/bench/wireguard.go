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
)

const (
	wgPort    = 51820
	wgSockets = "/var/run/wireguard" // wireguard-go knows no other place
)

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

// wireguard makes the keys; each turn starts the processes anew.
func (b *bench) wireguard() (*contender, error) {
	b.Cleanup(removeSockets)
	var keys [hosts]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	run := &processes{}
	return &contender{
		name: wgName, from: b.hosts[0].Namespace, to: b.hosts[1].Namespace, addr: own(2, 1).Addr(), samples: samples{},
		kinds: without(common(), fairKind),
		start: func() error {
			for i, h := range b.hosts {
				if err := run.start(h, b.wgBinary, "-f", wgInterface(i)); err != nil {
					return err
				}
			}
			return b.connectWireguard(keys)
		},
		check: nothing, pids: run.pids,
		stop: func() {
			run.stop()
			removeSockets()
		},
	}, nil
}

// connectWireguard makes the running processes peers of each other.
func (b *bench) connectWireguard(keys [hosts]*ecdh.PrivateKey) error {
	for i, h := range b.hosts {
		peer := 1 - i
		err := configure(wgSocket(i), fmt.Sprintf(
			"set=1\nprivate_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%v\nallowed_ip=%v/32\n\n",
			hex.EncodeToString(keys[i].Bytes()), wgPort, hex.EncodeToString(keys[peer].PublicKey().Bytes()),
			netip.AddrPortFrom(b.hosts[peer].Link().V4(), wgPort), own(2, peer).Addr()))
		if err != nil {
			return err
		}
		if err := raise(h, wgInterface(i), own(2, i)); err != nil {
			return err
		}
	}
	return nil
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

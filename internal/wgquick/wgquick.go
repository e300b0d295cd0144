// SPDX-License-Identifier: Apache-2.0

// Package wgquick writes the configuration of a WireGuard client: as the file that wg-quick(8) and the WireGuard apps
// read, and as a QR code that the apps of phones read from a terminal.
//
// It does no I/O and knows nothing of Weft's engines. What it writes is a secret as a whole. cmd/weft imports it, and nothing
// else.
package wgquick

import (
	"crypto/ecdh"
	"encoding/base64"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// Config is what a client is told. Its texts must not hold line breaks.
type Config struct {
	// Comment is the first line, for people; none if it is empty.
	Comment string

	// Of the client. Without a PrivateKey there is a line to put it in, which names the PublicKey that it has to belong to.
	PrivateKey, PublicKey string
	Addresses             []netip.Addr
	DNS                   []netip.Addr
	MTU                   int // bytes; 0 leaves the choice to the client

	// Of the node.
	NodeKey, PresharedKey string
	AllowedIPs            []netip.Prefix
	Endpoint              string        // HOST:PORT
	Keepalive             time.Duration // whole seconds; 0 is none
}

// MaxKeepalive is the longest keepalive that WireGuard knows.
const MaxKeepalive = 65535 * time.Second

// Text returns the configuration as a file.
func (c Config) Text() string {
	var b strings.Builder
	line := func(key, value string) {
		if value != "" {
			b.WriteString(key + " = " + value + "\n")
		}
	}
	if c.Comment != "" {
		b.WriteString("# " + c.Comment + "\n")
	}
	b.WriteString("[Interface]\n")
	if line("PrivateKey", c.PrivateKey); c.PrivateKey == "" {
		b.WriteString("# put here the private key that belongs to the public key " + c.PublicKey + ":\n# PrivateKey = \n")
	}
	var own []netip.Prefix
	for _, a := range c.Addresses {
		own = append(own, netip.PrefixFrom(a, a.BitLen()))
	}
	line("Address", join(own))
	line("DNS", join(c.DNS))
	if c.MTU > 0 {
		line("MTU", fmt.Sprint(c.MTU))
	}
	b.WriteString("\n[Peer]\n")
	line("PublicKey", c.NodeKey)
	line("PresharedKey", c.PresharedKey)
	line("AllowedIPs", join(c.AllowedIPs))
	line("Endpoint", c.Endpoint)
	if c.Keepalive > 0 {
		line("PersistentKeepalive", fmt.Sprint(int(c.Keepalive/time.Second)))
	}
	return b.String()
}

// NewKey makes a pair of keys as `wg genkey` and `wg pubkey` do, in base64. rand must be a cryptographic source.
func NewKey(rand io.Reader) (private, public string, err error) {
	var k [32]byte
	if _, err := io.ReadFull(rand, k[:]); err != nil {
		return "", "", fmt.Errorf("making a key: %w", err)
	}
	k[0] &= 248 // RFC 7748 §5
	k[31] = k[31]&127 | 64
	key, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return "", "", fmt.Errorf("making a key: %w", err)
	}
	return base64.StdEncoding.EncodeToString(k[:]), base64.StdEncoding.EncodeToString(key.PublicKey().Bytes()), nil
}

func join[T fmt.Stringer](list []T) string {
	var s []string
	for _, v := range list {
		s = append(s, v.String())
	}
	return strings.Join(s, ", ")
}

// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// Labels of the keys that guard handshake messages (whitepaper §5.4.4, §5.4.7).
const (
	labelMAC1   = "mac1----"
	labelCookie = "cookie--"
)

// guardKeys are known to everyone who knows the public key that they are made from.
type guardKeys struct{ mac1, cookie [KeySize]byte }

func newGuardKeys(k PublicKey) guardKeys {
	return guardKeys{
		mac1:   blake2s.Sum256(append([]byte(labelMAC1), k[:]...)),
		cookie: blake2s.Sum256(append([]byte(labelCookie), k[:]...)),
	}
}

// mac is the keyed BLAKE2s of 16 bytes; key is 16 or 32 bytes long.
func mac(key, data []byte) (sum [macSize]byte, err error) {
	h, err := blake2s.New128(key)
	if err != nil {
		return sum, err
	}
	_, _ = h.Write(data) // hashes do not fail
	h.Sum(sum[:0])
	return sum, nil
}

// macIs compares in constant time.
func macIs(key, data, want []byte) bool {
	sum, err := mac(key, data)
	return err == nil && subtle.ConstantTimeCompare(sum[:], want) == 1
}

// cookieChecker is the receiver's side: it checks mac1 and mac2 of what arrives and hands out
// cookies. Safe for concurrent use.
type cookieChecker struct {
	keys guardKeys // of our own public key

	mu     sync.Mutex
	secret [KeySize]byte
	since  time.Time // zero: no secret yet
}

// checkMAC1 reports whether the sender knew our public key. msg is a whole initiation or response.
func (c *cookieChecker) checkMAC1(msg []byte) bool {
	at := len(msg) - 2*macSize
	return macIs(c.keys.mac1[:], msg[:at], msg[at:at+macSize])
}

// checkMAC2 reports whether the sender holds the cookie of its address.
func (c *cookieChecker) checkMAC2(msg []byte, from netip.AddrPort, now time.Time) bool {
	at := len(msg) - macSize
	if [macSize]byte(msg[at:]) == ([macSize]byte{}) {
		return false // what senders without a cookie write
	}
	c.mu.Lock()
	secret, fresh := c.secret, c.fresh(now)
	c.mu.Unlock()
	if !fresh {
		return false
	}
	cookie, err := mac(secret[:], addressBytes(from))
	return err == nil && macIs(cookie[:], msg[:at], msg[at:])
}

// reply appends the cookie reply to msg to out.
func (c *cookieChecker) reply(out, msg []byte, from netip.AddrPort, now time.Time, rand io.Reader) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fresh(now) {
		if _, err := io.ReadFull(rand, c.secret[:]); err != nil {
			return out, fmt.Errorf("make a cookie secret: read randomness: %w", err)
		}
		c.since = now
	}
	var nonce [chacha20poly1305.NonceSizeX]byte
	if _, err := io.ReadFull(rand, nonce[:]); err != nil {
		return out, fmt.Errorf("make a cookie nonce: read randomness: %w", err)
	}
	cookie, err := mac(c.secret[:], addressBytes(from))
	if err != nil {
		return out, err
	}
	aead, err := chacha20poly1305.NewX(c.keys.cookie[:])
	if err != nil {
		return out, err
	}
	out = appendWord(out, TypeCookie, Suite(msg[1]))
	out = append(out, msg[senderAt:senderAt+4]...)
	out = append(out, nonce[:]...)
	at := len(msg) - 2*macSize
	return aead.Seal(out, nonce[:], cookie[:], msg[at:at+macSize]), nil
}

func (c *cookieChecker) fresh(now time.Time) bool {
	return !c.since.IsZero() && within(now, c.since, CookieRefreshTime)
}

// addressBytes is what a cookie is bound to.
func addressBytes(a netip.AddrPort) []byte {
	ip := a.Addr().As16() // IPv4 and its mapped form are one address
	return binary.BigEndian.AppendUint16(ip[:], a.Port())
}

// cookieJar is the sender's side: it writes mac1 and mac2 for one peer and keeps that peer's
// cookie. The peer's lock guards it.
type cookieJar struct {
	keys guardKeys // of the peer's public key

	last    [macSize]byte // mac1 of the last handshake message
	waiting bool          // last may still be answered with a cookie
	cookie  [macSize]byte
	since   time.Time // zero: no cookie
}

// seal fills in the two last fields of an initiation or response.
func (j *cookieJar) seal(msg []byte, now time.Time) error {
	at := len(msg) - 2*macSize
	mac1, err := mac(j.keys.mac1[:], msg[:at])
	if err != nil {
		return err
	}
	copy(msg[at:], mac1[:])
	j.last, j.waiting = mac1, true
	clear(msg[at+macSize:])
	if j.since.IsZero() || !within(now, j.since, CookieRefreshTime) {
		return nil
	}
	mac2, err := mac(j.cookie[:], msg[:at+macSize])
	if err != nil {
		return err
	}
	copy(msg[at+macSize:], mac2[:])
	return nil
}

// accept takes the cookie out of a cookie reply. One reply is taken per message that we sent.
func (j *cookieJar) accept(msg []byte, now time.Time) error {
	if !j.waiting {
		return ErrReplay
	}
	aead, err := chacha20poly1305.NewX(j.keys.cookie[:])
	if err != nil {
		return err
	}
	cookie, err := aead.Open(nil, msg[cookieNonceAt:cookieSealedAt], msg[cookieSealedAt:], j.last[:])
	if err != nil {
		return ErrAuth
	}
	copy(j.cookie[:], cookie)
	j.since, j.waiting = now, false
	return nil
}

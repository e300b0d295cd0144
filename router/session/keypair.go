// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/replay"

	"github.com/weftnet/weft/router/session/aesgcm"
)

// Keypair is one session: a key for each direction. All methods are safe for concurrent use, and
// none of Seal, Open and the accessors allocates.
type Keypair struct {
	// Fixed at creation.
	peer       *Peer
	suite      Suite
	initiator  bool
	created    time.Time
	preshared  *PresharedKey // that the handshake was made with
	rekeyAfter time.Duration // age at which an initiator starts the next handshake
	local      uint32        // index that datagrams to us bear
	remote     uint32        // index that datagrams to the peer bear

	// ciphers is nil once the session is forgotten. Go gives no way to wipe the expanded keys
	// inside, so forgetting means to drop the only reference.
	ciphers atomic.Pointer[ciphers]

	counter atomic.Uint64 // next to send

	revoked time.Time // when its pre-shared key went out of use, zero: it is in use; under the peer's mu

	_      [64]byte // senders and receivers are often different threads: keep their lines apart
	mu     sync.Mutex
	window replay.Filter // counters received; under mu
}

type ciphers struct{ send, receive cipher.AEAD }

// newAEAD returns the data cipher of a suite.
func newAEAD(s Suite, key [KeySize]byte) (cipher.AEAD, error) {
	if s == WireGuard {
		return chacha20poly1305.New(key[:])
	}
	return aesgcm.New(&key)
}

// arm sets the keys of a new session.
func (k *Keypair) arm(send, receive [KeySize]byte) error {
	s, err := newAEAD(k.suite, send)
	if err != nil {
		return err
	}
	r, err := newAEAD(k.suite, receive)
	if err != nil {
		return err
	}
	k.ciphers.Store(&ciphers{send: s, receive: r})
	return nil
}

// Peer returns the peer at the other end.
func (k *Keypair) Peer() *Peer { return k.peer }

// Suite returns the suite of the session.
func (k *Keypair) Suite() Suite { return k.suite }

// Format writes what may be known of the session, and no key.
func (k *Keypair) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "session %08x/%08x %s", k.local, k.remote, k.suite)
}

// Seal appends the datagram that carries plaintext to dst and returns the longer slice: header,
// ciphertext of the plaintext padded with zeros to a multiple of Padding, tag. An empty plaintext
// is a keepalive. It allocates only if dst lacks capacity for len(plaintext) rounded up plus
// Overhead. The plaintext is copied first, so it may lie anywhere in the memory of dst; what the
// datagram covers is overwritten. It fails with ErrExpired, returning dst as it was, when the key
// is forgotten or has sealed all that it may; the age of the key is checked by [Peer.Key], not here.
func (k *Keypair) Seal(dst, plaintext []byte) ([]byte, error) { return k.SealFlags(dst, plaintext, 0) }

// SealFlags is Seal with flags for the receiver. Those of a session in suite WireGuard, which has none, must be 0: else it
// fails with ErrSuite.
func (k *Keypair) SealFlags(dst, plaintext []byte, f Flags) ([]byte, error) {
	c, n, err := k.next(f)
	if err != nil {
		return dst, err
	}
	padded := Padded(len(plaintext))
	dst = slices.Grow(dst, Overhead+padded)
	at := len(dst) + HeaderSize
	body := dst[at : at+padded]
	clear(body[copy(body, plaintext):])
	return k.seal(c, dst, body, n, f), nil
}

// SealOver is SealFlags for the first n bytes of frame, which are not copied: where they need padding, it is put behind them for
// the time of the call. frame must have Padded(n) bytes and must not overlap the memory of dst.
func (k *Keypair) SealOver(dst, frame []byte, n int, f Flags) ([]byte, error) {
	c, counter, err := k.next(f)
	if err != nil {
		return dst, err
	}
	dst = slices.Grow(dst, Overhead+Padded(n))
	frame = frame[:Padded(n)]
	if len(frame) == n {
		return k.seal(c, dst, frame, counter, f), nil
	}
	var behind [Padding]byte
	kept := copy(behind[:], frame[n:])
	clear(frame[n:])
	sealed := k.seal(c, dst, frame, counter, f)
	copy(frame[n:], behind[:kept])
	return sealed, nil
}

// next returns what the next datagram is to be sealed with, and its counter.
func (k *Keypair) next(f Flags) (*ciphers, uint64, error) {
	c := k.ciphers.Load()
	if c == nil {
		return nil, 0, ErrExpired
	}
	if f != 0 && k.suite != Weft {
		return nil, 0, ErrSuite
	}
	n := k.counter.Add(1) - 1
	if n >= RejectAfterMessages {
		k.counter.Store(RejectAfterMessages) // never wraps
		return nil, 0, ErrExpired
	}
	return c, n, nil
}

// seal appends the n-th datagram to dst, which has the capacity. The plaintext, with its padding, either lies where the ciphertext
// goes or does not overlap it.
func (k *Keypair) seal(c *ciphers, dst, plaintext []byte, n uint64, f Flags) []byte {
	at := len(dst)
	dst = dst[:at+HeaderSize]
	header, body := dst[at:at+HeaderSize:at+HeaderSize], dst[at+HeaderSize:]
	header[0], header[1], header[2], header[3] = TypeData, byte(k.suite), byte(f), byte(f>>8)
	binary.LittleEndian.PutUint64(header[8:], n)
	// The nonce is a part of the header, so that it needs no memory of its own: ChaCha's has
	// zeros where the receiver index will be (whitepaper §5.4.6), AES-GCM's has the index.
	nonce := header[4:16]
	if k.suite == WireGuard {
		binary.LittleEndian.PutUint32(header[4:], 0)
		body = c.send.Seal(body, nonce, plaintext, nil)
		binary.LittleEndian.PutUint32(header[4:], k.remote)
	} else {
		binary.LittleEndian.PutUint32(header[4:], k.remote)
		body = c.send.Seal(body, nonce, plaintext, header)
	}
	return dst[:at+HeaderSize+len(body)]
}

// Open authenticates and decrypts a datagram in place and returns its plaintext, which aliases
// msg and still has its padding; empty means keepalive. Whatever it returns, the bytes of msg
// behind the header are no longer what they were. It fails with ErrShort, ErrType, ErrSuite,
// ErrIndex, ErrExpired, ErrAuth or ErrReplay. A datagram is accepted once: the counter is checked
// and marked after authentication, in a window of 8128 (RFC 6479).
func (k *Keypair) Open(msg []byte, now time.Time) ([]byte, error) {
	if len(msg) < Overhead {
		return nil, ErrShort
	}
	return k.open(msg[HeaderSize:HeaderSize], msg, now)
}

// OpenTo is Open with the plaintext appended to dst, which must have capacity for len(msg)-Overhead bytes more, and
// must not overlap msg. It returns the plaintext without what was in dst before. Whatever it returns,
// the bytes of that capacity are no longer what they were.
func (k *Keypair) OpenTo(dst, msg []byte, now time.Time) ([]byte, error) {
	if len(msg) < Overhead {
		return nil, ErrShort
	}
	return k.open(dst[len(dst):], msg, now)
}

// open opens msg, which is long enough, into the capacity of the empty dst.
func (k *Keypair) open(dst, msg []byte, now time.Time) ([]byte, error) {
	switch f := DataFlags(msg); {
	case msg[0] != TypeData || f&^allFlags != 0 || f != 0 && k.suite != Weft:
		return nil, ErrType
	case Suite(msg[1]) != k.suite:
		return nil, ErrSuite
	case Receiver(msg) != k.local:
		return nil, ErrIndex
	}
	c := k.ciphers.Load()
	n := binary.LittleEndian.Uint64(msg[8:])
	if c == nil || k.expired(now) || n >= RejectAfterMessages {
		return nil, ErrExpired
	}
	header, body := msg[:HeaderSize:HeaderSize], msg[HeaderSize:]
	nonce := header[4:16] // as in Seal
	var plaintext []byte
	var err error
	if k.suite == WireGuard {
		binary.LittleEndian.PutUint32(header[4:], 0)
		plaintext, err = c.receive.Open(dst, nonce, body, nil)
		binary.LittleEndian.PutUint32(header[4:], k.local)
	} else {
		plaintext, err = c.receive.Open(dst, nonce, body, header)
	}
	if err != nil {
		return nil, ErrAuth
	}
	k.mu.Lock()
	fresh := k.window.ValidateCounter(n, RejectAfterMessages)
	k.mu.Unlock()
	if !fresh {
		return nil, ErrReplay
	}
	return plaintext, nil
}

// expired reports whether the key may no longer be used, in either direction.
func (k *Keypair) expired(now time.Time) bool { return now.Sub(k.created) >= RejectAfterTime }

// closing reports whether the key is too old to seal with: what is sent now has to arrive before it
// expires at the other side, which may have made it a little earlier.
func (k *Keypair) closing(now time.Time) bool {
	return now.Sub(k.created) >= RejectAfterTime-sendMargin
}

// stale reports whether it is this side's turn to replace the key because of use or age.
func (k *Keypair) stale(now time.Time) bool {
	return k.counter.Load() > RekeyAfterMessages || k.initiator && now.Sub(k.created) >= k.rekeyAfter
}

// forget makes the session unusable, also for those who still hold it.
func (k *Keypair) forget() { k.ciphers.Store(nil) }

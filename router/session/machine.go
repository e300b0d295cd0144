// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"
)

// Config is what a Machine is made of.
type Config struct {
	Private PrivateKey
	Rand    io.Reader // cryptographic randomness; need not be safe for concurrent use

	// HandshakeRate is how many handshake messages per second are worked on before senders must
	// prove their address by a cookie. 0 means DefaultHandshakeRate.
	HandshakeRate int
}

// Machine is one local identity with its peers and sessions. Safe for concurrent use.
type Machine struct {
	own *identity // fixed by New; behind a pointer so that no printing of a struct shows the key

	rand    lockedReader
	table   indexTable
	checker cookieChecker
	gate    gate

	mu    sync.RWMutex
	peers map[PublicKey]*Peer // under mu
}

// New returns a machine without peers.
func New(c Config) (*Machine, error) {
	if c.Rand == nil {
		return nil, errors.New("sessions need a source of randomness: set Config.Rand")
	}
	if c.HandshakeRate < 0 {
		return nil, fmt.Errorf("handshake rate %d is negative: use 0 for the default of %d",
			c.HandshakeRate, DefaultHandshakeRate)
	}
	if c.HandshakeRate == 0 {
		c.HandshakeRate = DefaultHandshakeRate
	}
	own, err := newIdentity(c.Private)
	if err != nil {
		return nil, err
	}
	m := &Machine{own: own, rand: lockedReader{r: c.Rand}, peers: make(map[PublicKey]*Peer)}
	m.checker.keys = newGuardKeys(own.public)
	m.table.init()
	m.gate.init(c.HandshakeRate)
	return m, nil
}

// Public returns the public key of the local identity.
func (m *Machine) Public() PublicKey { return m.own.public }

// Format writes the public key, whatever the verb.
func (m *Machine) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "machine %s", m.own.public) }

// PeerConfig is what is known about a peer beforehand.
type PeerConfig struct {
	Public    PublicKey
	Preshared PresharedKey  // zero: none
	Suite     Suite         // in which this side initiates; it answers in any, unless Exclusive
	Exclusive bool          // refuse handshakes in another suite than Suite
	Keepalive time.Duration // persistent keepalive; 0: none; at most 65535 s
}

const maxKeepalive = 65535 * time.Second

// AddPeer makes a peer known, so that it is answered. It does not start a handshake; with a
// Keepalive the first [Peer.Tick] does. It fails for our own key, a key that is there already, and
// a key or setting that is invalid.
func (m *Machine) AddPeer(c PeerConfig) (*Peer, error) {
	switch {
	case c.Public == m.own.public:
		return nil, fmt.Errorf("add peer %s: that is this node's own key", c.Public)
	case !c.Suite.Valid():
		return nil, fmt.Errorf("add peer %s: unknown %s", c.Public, c.Suite)
	case c.Keepalive < 0 || c.Keepalive > maxKeepalive:
		return nil, fmt.Errorf("add peer %s: keepalive %s is not within 0 and %s", c.Public, c.Keepalive, maxKeepalive)
	}
	if !m.own.agrees(c.Public) {
		return nil, fmt.Errorf("add peer %s: not a usable Curve25519 key, anyone could pose as its owner", c.Public)
	}
	p := newPeer(m, c)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.peers[c.Public] != nil {
		return nil, fmt.Errorf("add peer %s: it is there already: remove it first", c.Public)
	}
	m.peers[c.Public] = p
	return p, nil
}

// RemovePeer forgets a peer and its keys; its methods then do nothing. A peer that was removed
// before is left alone.
func (m *Machine) RemovePeer(p *Peer) {
	m.mu.Lock()
	if m.peers[p.public] == p {
		delete(m.peers, p.public)
	}
	m.mu.Unlock()
	p.remove()
}

// Keypair returns the session with the given index of ours, from a datagram by [Receiver]; nil if there is
// none. It takes no lock and allocates nothing.
func (m *Machine) Keypair(receiver uint32) *Keypair {
	if e := m.table.get(receiver); e != nil {
		return e.keypair
	}
	return nil
}

// Result is what a handshake message leads to.
type Result struct {
	// Peer is the authenticated sender; its endpoint is the address that the message came from. It
	// is nil for cookie replies, which prove nothing, and with an error.
	Peer *Peer
	// Reply, if not empty, is to be sent to the address that the message came from.
	Reply []byte
	// Established tells that a new key for sending has come into use: send what was queued.
	Established bool
}

// Receive handles a handshake message (types 1 to 3) that arrived from the address from.
//
// The reply is appended to out[:0], which must not overlap msg; with a capacity of InitiationSize
// nothing is allocated for it. msg is not retained. The error is one of the sentinels of this
// package, or tells that randomness could not be read. With ErrUnderLoad there may be a Reply, to
// be sent like any other: the cookie that the sender needs.
func (m *Machine) Receive(out, msg []byte, from netip.AddrPort, now time.Time) (Result, error) {
	kind, suite, err := checkWord(msg)
	if err != nil {
		return Result{}, err
	}
	switch kind {
	case TypeInitiation:
		if reply, err := m.admit(out, msg, from, now); err != nil {
			return Result{Reply: reply}, err
		}
		res, err := m.receiveInitiation(out, msg, suite, now)
		if err == nil {
			m.gate.befriend(from.Addr(), now)
		}
		return res, err
	case TypeResponse:
		// The index is guessed once in 2^32 tries, so this comes before all that costs something.
		e := m.table.get(binary.LittleEndian.Uint32(msg[responseReceiverAt:]))
		if e == nil || e.keypair != nil {
			return Result{}, ErrIndex
		}
		if reply, err := m.admit(out, msg, from, now); err != nil {
			return Result{Reply: reply}, err
		}
		res, err := e.peer.receiveResponse(out, msg, suite, now)
		if err == nil {
			m.gate.befriend(from.Addr(), now)
		}
		return res, err
	default:
		e := m.table.get(binary.LittleEndian.Uint32(msg[cookieReceiverAt:]))
		if e == nil {
			return Result{}, ErrIndex
		}
		return Result{}, e.peer.receiveCookie(msg, now)
	}
}

// admit lets an initiation or response pass if it is meant for us and, under load, if its sender
// has proved its address (whitepaper §5.3). Otherwise it returns an error and maybe a reply.
func (m *Machine) admit(out, msg []byte, from netip.AddrPort, now time.Time) ([]byte, error) {
	if !m.checker.checkMAC1(msg) {
		return nil, ErrMAC1
	}
	if !m.gate.busy(now) {
		return nil, nil
	}
	if !m.checker.checkMAC2(msg, from, now) {
		if !m.gate.cookie(from.Addr(), now) {
			return nil, ErrUnderLoad
		}
		reply, err := m.checker.reply(out[:0], msg, from, now, &m.rand)
		if err != nil {
			return nil, err
		}
		return reply, ErrUnderLoad
	}
	if !m.gate.allow(from.Addr(), now) {
		return nil, ErrFlood
	}
	return nil, nil
}

// receiveInitiation finds out who sent an initiation and lets that peer answer it.
func (m *Machine) receiveInitiation(out, msg []byte, suite Suite, now time.Time) (Result, error) {
	hs, err := newNoise(suite, m.own, nil, &m.rand)
	if err != nil {
		return Result{}, err
	}
	payload, _, _, err := hs.ReadMessage(nil, msg[initiationNoiseAt:initiationNoiseEnd])
	if err != nil {
		return Result{}, ErrAuth
	}
	var public PublicKey
	copy(public[:], hs.PeerStatic())
	m.mu.RLock()
	p := m.peers[public]
	m.mu.RUnlock()
	if p == nil {
		return Result{}, ErrUnknownPeer
	}
	sender := binary.LittleEndian.Uint32(msg[senderAt:])
	return p.respond(out, hs, suite, sender, stamp(payload), now)
}

// lockedReader makes a source of randomness safe for concurrent use.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(b)
}

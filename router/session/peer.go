// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flynn/noise"
)

// Peer is one remote identity. Safe for concurrent use; Key and the accessors of fixed things take
// no lock.
type Peer struct {
	// Fixed by AddPeer.
	machine   *Machine
	public    PublicKey
	suite     Suite
	exclusive bool
	keepalive time.Duration

	current atomic.Pointer[Keypair] // key for sending; written under mu

	mu      sync.Mutex // guards all that follows
	removed bool
	// preshared are the keys in use, the preferred one first; behind pointers so that no printing of a struct shows them.
	preshared []*PresharedKey
	deadline  [timerCount]time.Time // zero: not pending
	random    [4]byte               // scratch of jitter

	// The handshake that this side initiated and waits for; nil noise means none.
	handshake struct {
		noise *noise.HandshakeState
		suite Suite
		index uint32
	}
	tryingSince    time.Time // last reason to want a handshake
	lastHandshake  time.Time // when an initiation or response was last sent; zero: allowed at once
	againSince     time.Time // when the first of renewals was sent
	renewals       int       // initiations by Again
	attempts       int       // initiations since the last handshake that was completed
	completed      uint64
	completedAt    time.Time
	lastMinute     bool // asked for a new key because only receiving
	keepaliveAgain bool // data came while a keepalive was pending already

	sentStamp   stamp  // of our last initiation
	lastStamp   stamp  // of the peer's last valid initiation
	initiations bucket // what the peer may still send of them

	jar cookieJar

	pending  *Keypair    // made as responder, not yet confirmed by the initiator
	previous [3]*Keypair // replaced, still open for receiving; newest first
}

// Stats is what there is to tell about a peer's sessions.
type Stats struct {
	LastHandshake time.Time // when a key last came into use; zero: never
	Handshakes    uint64    // how often that happened
	Keyed         bool      // there is a key for sending; after 180 s without a new one it is expired
	Suite         Suite     // of that key, or else the suite in which this side initiates
	Initiator     bool      // this side initiated the session of that key
	Sealed        uint64    // datagrams sealed under that key
	Handshaking   bool      // a handshake is in flight or about to be tried again
	Attempts      int       // initiations since the last completed handshake
}

func newPeer(m *Machine, c PeerConfig) *Peer {
	p := &Peer{machine: m, public: c.Public, preshared: []*PresharedKey{&c.Preshared}, suite: c.Suite, exclusive: c.Exclusive, keepalive: c.Keepalive}
	p.jar.keys = newGuardKeys(c.Public)
	p.startPersistent()
	return p
}

// startPersistent makes the first keepalive due at whatever time the next Tick has.
func (p *Peer) startPersistent() {
	if p.keepalive > 0 {
		p.deadline[timerPersistent] = time.Unix(0, 0)
	}
}

// Public returns the peer's public key.
func (p *Peer) Public() PublicKey { return p.public }

// Format writes the public key, whatever the verb.
func (p *Peer) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "peer %s", p.public) }

// Key returns the key for sending; nil if there is none or it has expired: then hold the packet and
// call Initiate. It takes no lock and allocates nothing.
func (p *Peer) Key(now time.Time) *Keypair {
	k := p.current.Load()
	if k == nil || k.closing(now) || k.counter.Load() >= RejectAfterMessages {
		return nil
	}
	return k
}

// Initiate returns an initiation for the peer, appended to out[:0], and true; or false if a
// handshake is in flight already or the last one began less than RekeyTimeout ago. Then Tick sends
// one when it is time, unless a key has come into use by then. Each call starts the 90 s anew
// after which the attempts end.
func (p *Peer) Initiate(out []byte, now time.Time) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.initiate(out[:0], now)
}

// Stats returns a snapshot.
func (p *Peer) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{
		LastHandshake: p.completedAt,
		Handshakes:    p.completed,
		Suite:         p.suite,
		Handshaking:   !p.deadline[timerRetransmit].IsZero(),
		Attempts:      p.attempts,
	}
	if k := p.current.Load(); k != nil {
		s.Keyed, s.Suite, s.Initiator, s.Sealed = true, k.suite, k.initiator, k.counter.Load()
	}
	return s
}

// Reset forgets all sessions and the handshake in flight, because the peer is known to have
// restarted. The next Initiate sends at once. What guards against replays is kept.
func (p *Peer) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed {
		return
	}
	p.forget()
	p.deadline = [timerCount]time.Time{}
	p.startPersistent()
	p.lastHandshake = time.Time{}
	p.attempts, p.keepaliveAgain = 0, false
}

// remove makes the peer inert.
func (p *Peer) remove() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removed = true
	p.forget()
	p.deadline = [timerCount]time.Time{}
	for _, k := range p.preshared {
		clear(k[:])
	}
}

// forget drops all keys and the handshake in flight.
func (p *Peer) forget() {
	p.dropHandshake()
	p.drop(p.current.Swap(nil))
	p.drop(p.pending)
	p.pending = nil
	for i, k := range p.previous {
		p.drop(k)
		p.previous[i] = nil
	}
	p.lastMinute = false
}

// drop ends a session; nil is allowed.
func (p *Peer) drop(k *Keypair) {
	if k != nil {
		p.machine.table.remove(k.local)
		k.forget()
	}
}

// retire keeps a replaced session for datagrams that are on their way; nil is allowed.
func (p *Peer) retire(k *Keypair) {
	if k != nil {
		last := len(p.previous) - 1
		p.drop(p.previous[last])
		copy(p.previous[1:], p.previous[:last])
		p.previous[0] = k
	}
}

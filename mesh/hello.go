// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// The hello. Integers are big endian; "head" is "WEFT", the version, 3 bytes that name a key (zeros: of an older release).
//
//	dialler  -> head, nonce (32)
//	acceptor -> head, nonce (32), HMAC(label of acceptors, all before)
//	dialler  -> HMAC(label of diallers, all before), from here on sealed: introduction
//	acceptor -> introduction with a verdict
//
// An introduction is signed, for this connection, by the key that the id of its node is made of (see [Identity]): holding the token
// is not enough to speak for another node.
//
// HMAC is HMAC-SHA256 under Keys.Hello. Each proof covers the other's fresh nonce,
// so that none can be replayed, and its own label, so that none can be
// reflected. Either side may accept several keys, while the mesh changes its token: the
// dialler's head names the one that it offers, the acceptor proves that one if it has it and its
// first one if not, and the dialler goes on with whichever of its own was proved. If that is none, it
// may dial again and offer another one. The dialler sends its proof even when it has seen that the acceptor has
// another token; so both know for certain, and nothing is learnt from it. Names
// and universes travel sealed, see stream.
const (
	helloMagic   = "WEFT"
	helloVersion = 1
	headSize     = 8
	nonceSize    = 32
	macSize      = sha256.Size
	firstSize    = headSize + nonceSize
	replySize    = firstSize + macSize

	acceptorLabel = "weft hello 1 acceptor"
	diallerLabel  = "weft hello 1 dialler"

	maxIntroduction = 20<<10 + signedHead
	maxRanges       = 256
	maxSeed         = 16 << 10
	maxReserve      = 3 << 10
)

// purpose says what the dialler wants of a connection.
type purpose uint8

const (
	purposeProbe   purpose = 1 // the introduction alone
	purposeGossip  purpose = 2 // a stream for memberlist
	purposeMessage purpose = 3 // messages, see send.go
	purposeSync    purpose = 4 // a sync, see sync.go
)

// verdict is the acceptor's answer to an introduction.
type verdict uint8

const (
	welcome      verdict = 0
	refusedSelf  verdict = 1 // the dialler is the acceptor
	refusedClone verdict = 2 // the acceptor knows another living node with the dialler's id
	refusedOther verdict = 3 // another universe
	refusedNone  verdict = 4 // neither knows a universe
)

// introduction is what the two tell each other once authenticated.
type introduction struct {
	purpose   purpose
	verdict   verdict
	identity  Identity // of whoever introduces itself; of others only the id is known
	id        NodeID
	boot      uint64
	name      string
	universe  UniverseInfo
	advertise netip.AddrPort // invalid: not listening (yet)
}

type wireIntroduction struct {
	Purpose   uint8  `cbor:"1,keyasint"`
	Verdict   uint8  `cbor:"2,keyasint,omitempty"`
	ID        uint64 `cbor:"3,keyasint"`
	Boot      uint64 `cbor:"4,keyasint,omitempty"`
	Name      string `cbor:"5,keyasint,omitempty"`
	Universe  []byte `cbor:"6,keyasint,omitempty"`
	Ranges    string `cbor:"7,keyasint,omitempty"`
	Seed      []byte `cbor:"8,keyasint,omitempty"`
	Advertise []byte `cbor:"9,keyasint,omitempty"`
	Reserve   string `cbor:"10,keyasint,omitempty"`
	Plain     bool   `cbor:"11,keyasint,omitempty"`
}

func (me introduction) hello() Hello {
	return Hello{ID: me.id, Boot: me.boot, Name: me.name, Universe: me.universe}
}

// encode returns the introduction, signed for the hello whose hash is given.
func (me introduction) encode(label string, transcript [sha256.Size]byte) ([]byte, error) {
	w := wireIntroduction{
		Purpose: uint8(me.purpose), Verdict: uint8(me.verdict), ID: uint64(me.id), Boot: me.boot, Name: me.name,
		Ranges: me.universe.Ranges, Seed: me.universe.Seed, Reserve: me.universe.Reserve, Plain: me.universe.Plain,
	}
	if me.universe.Known() {
		w.Universe = me.universe.ID[:]
	}
	if me.advertise.IsValid() {
		b, err := me.advertise.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("encode the address %v: %w", me.advertise, err)
		}
		w.Advertise = b
	}
	body, err := cbor.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode an introduction: %w", err)
	}
	return me.identity.sign(label, transcript[:], body), nil
}

// decodeIntroduction reads what encode wrote with the same label and hash.
func decodeIntroduction(b []byte, label string, transcript [sha256.Size]byte) (introduction, error) {
	signer, body, err := bodyOf(b)
	if err != nil {
		return introduction{}, fmt.Errorf("decode an introduction: %w", err)
	}
	if !verify(label, transcript[:], b) {
		return introduction{}, fmt.Errorf("decode an introduction of node %v: %w", signer, errSignature)
	}
	var w wireIntroduction
	if err := decodeCBOR(body, &w); err != nil {
		return introduction{}, fmt.Errorf("decode an introduction: %w", err)
	}
	i := introduction{
		purpose: purpose(w.Purpose), verdict: verdict(w.Verdict), id: NodeID(w.ID), boot: w.Boot, name: w.Name,
	}
	u, err := decodeUniverse(w)
	if err != nil {
		return introduction{}, err
	}
	i.universe = u
	if i.id != signer {
		return introduction{}, fmt.Errorf("decode an introduction: node %v says that it is node %v: %w", signer, i.id, errSignature)
	}
	if !i.id.Valid() || !printable(w.Name, maxName) {
		return introduction{}, fmt.Errorf("decode an introduction: node %v, name %q: %w", i.id, clip(w.Name), errWire)
	}
	if w.Advertise != nil {
		if err := i.advertise.UnmarshalBinary(w.Advertise); err != nil || !sendable(i.advertise) {
			return introduction{}, fmt.Errorf("decode an introduction: address of %d bytes: %w", len(w.Advertise), errWire)
		}
	}
	return i, nil
}

// decodeUniverse checks the fields of a universe as they travel.
func decodeUniverse(w wireIntroduction) (UniverseInfo, error) {
	u := UniverseInfo{Ranges: w.Ranges, Seed: w.Seed, Reserve: w.Reserve, Plain: w.Plain}
	if len(w.Universe) != 0 && len(w.Universe) != len(u.ID) {
		return UniverseInfo{}, fmt.Errorf("a universe id of %d bytes: %w", len(w.Universe), errWire)
	}
	copy(u.ID[:], w.Universe)
	if err := u.check(); err != nil {
		return UniverseInfo{}, err
	}
	return u, nil
}

func (u UniverseInfo) check() error {
	if !printable(u.Ranges, maxRanges) || len(u.Seed) > maxSeed || !printable(u.Reserve, maxReserve) {
		return fmt.Errorf("a universe with ranges of %d, a seed of %d and a reserve of %d bytes: at most %d, %d and %d are carried",
			len(u.Ranges), len(u.Seed), len(u.Reserve), maxRanges, maxSeed, maxReserve)
	}
	return nil
}

// head is the unsealed beginning of either side's first message.
func head() []byte { return append([]byte(helloMagic), helloVersion, 0, 0, 0) }

// headOf is the head that names a key.
func headOf(key [32]byte) []byte {
	b := head()
	hint := keyHint(key)
	copy(b[headSize-len(hint):], hint[:])
	return b
}

func checkHead(b []byte) error {
	if string(b[:len(helloMagic)]) != helloMagic {
		return ErrNotWeft
	}
	if b[len(helloMagic)] != helloVersion {
		return ErrVersion
	}
	return nil
}

func proof(key [32]byte, label string, said []byte) []byte {
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte(label)) // never fails
	h.Write([]byte{0})
	h.Write(said)
	return h.Sum(nil)
}

// greet is the dialler's half of the hello. It closes conn unless it succeeds. The
// introduction that it returns is checked by [introduction.judge] by the caller. key is
// offered, others are accepted, too.
func greet(conn net.Conn, key [32]byte, me introduction, timeout time.Duration, others ...[32]byte) (*stream, introduction, error) {
	s, them, err := greetOpen(conn, key, me, timeout, others)
	if err != nil {
		return nil, introduction{}, errors.Join(err, ignoreClosed(conn.Close()))
	}
	return s, them, nil
}

func greetOpen(conn net.Conn, key [32]byte, me introduction, timeout time.Duration, others [][32]byte) (*stream, introduction, error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, introduction{}, err
	}
	said := make([]byte, firstSize, firstSize+replySize)
	copy(said, headOf(key))
	if _, err := rand.Read(said[headSize:]); err != nil {
		return nil, introduction{}, err
	}
	if _, err := conn.Write(said); err != nil {
		return nil, introduction{}, err
	}
	said = said[:firstSize+replySize]
	reply := said[firstSize:]
	if _, err := io.ReadFull(conn, reply[:headSize]); err != nil {
		return nil, introduction{}, err
	}
	if err := checkHead(reply); err != nil {
		return nil, introduction{}, err
	}
	if _, err := io.ReadFull(conn, reply[headSize:]); err != nil {
		return nil, introduction{}, err
	}
	same := false
	for _, k := range append([][32]byte{key}, others...) {
		want := proof(k, acceptorLabel, said[:firstSize+firstSize])
		if same = subtle.ConstantTimeCompare(want, reply[firstSize:]) == 1; same {
			key = k
			break
		}
	}
	if _, err := conn.Write(proof(key, diallerLabel, said)); err != nil && same {
		return nil, introduction{}, err
	}
	if !same {
		return nil, introduction{}, ErrWrongToken
	}
	transcript := sha256.Sum256(said)
	s, err := newStream(conn, key, transcript, true)
	if err != nil {
		return nil, introduction{}, err
	}
	mine, err := me.encode(diallerLabel, transcript)
	if err != nil {
		return nil, introduction{}, err
	}
	if err := s.writeFrame(mine); err != nil {
		return nil, introduction{}, err
	}
	b, err := s.readFrame(maxIntroduction)
	if err != nil {
		return nil, introduction{}, err
	}
	them, err := decodeIntroduction(b, acceptorLabel, transcript)
	if err != nil {
		return nil, introduction{}, err
	}
	return s, them, s.within(0)
}

// receive is the first part of the acceptor's half: it returns the dialler's
// introduction, authenticated. The caller decides and answers by welcomeOrRefuse. key is
// proved unless the dialler offers one of the others.
func receive(conn net.Conn, key [32]byte, timeout time.Duration, others ...[32]byte) (*stream, introduction, error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, introduction{}, err
	}
	said := make([]byte, firstSize+replySize)
	if _, err := io.ReadFull(conn, said[:headSize]); err != nil {
		return nil, introduction{}, err
	}
	wrong := checkHead(said)
	if errors.Is(wrong, ErrNotWeft) {
		return nil, introduction{}, wrong
	}
	if _, err := io.ReadFull(conn, said[headSize:firstSize]); err != nil {
		return nil, introduction{}, err
	}
	key = offered(said[:headSize], key, others)
	reply := said[firstSize:]
	copy(reply, headOf(key))
	if _, err := rand.Read(reply[headSize:firstSize]); err != nil {
		return nil, introduction{}, err
	}
	copy(reply[firstSize:], proof(key, acceptorLabel, said[:firstSize+firstSize]))
	// A dialler of another version sees ours in the head and knows what is wrong.
	if _, err := conn.Write(reply); err != nil || wrong != nil {
		return nil, introduction{}, errors.Join(wrong, err)
	}
	var theirs [macSize]byte
	if _, err := io.ReadFull(conn, theirs[:]); err != nil {
		return nil, introduction{}, err
	}
	if subtle.ConstantTimeCompare(theirs[:], proof(key, diallerLabel, said)) != 1 {
		return nil, introduction{}, ErrWrongToken
	}
	transcript := sha256.Sum256(said)
	s, err := newStream(conn, key, transcript, false)
	if err != nil {
		return nil, introduction{}, err
	}
	b, err := s.readFrame(maxIntroduction)
	if err != nil {
		return nil, introduction{}, err
	}
	them, err := decodeIntroduction(b, diallerLabel, transcript)
	return s, them, err
}

// answer is the last part of the acceptor's half.
func (s *stream) answer(me introduction) error {
	b, err := me.encode(acceptorLabel, s.transcript)
	if err != nil {
		return err
	}
	if err := s.writeFrame(b); err != nil {
		return err
	}
	return s.within(0)
}

// judge tells the dialler whether the acceptor, who introduced itself as them,
// and me fit together for what me wants. The error is not wrapped yet.
func (me introduction) judge(them introduction) error {
	mismatch := &UniverseMismatchError{Mine: me.universe, Theirs: them.universe}
	switch {
	case them.id == me.id && them.boot == me.boot, them.verdict == refusedSelf:
		return ErrSelf
	case them.id == me.id, them.verdict == refusedClone:
		return ErrClone
	case me.universe.Known() && them.universe.Known() && me.universe.ID != them.universe.ID, them.verdict == refusedOther:
		return mismatch
	case me.purpose != purposeProbe && !me.universe.Known() && !them.universe.Known(), them.verdict == refusedNone:
		return ErrNoUniverse
	case them.verdict != welcome:
		return fmt.Errorf("refused this node for a reason (%d) that this release does not know: %w", them.verdict, ErrVersion)
	}
	return nil
}

// ignoreClosed drops the error of closing something twice.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/hkdf"
	"crypto/sha256"
	"net/netip"
	"slices"
	"time"
)

// maxKeys bounds how many keys are accepted at a time.
const maxKeys = 8

// keyHint is what names a key in the head of a hello, and tells nothing about it.
func keyHint(key [32]byte) (hint [3]byte) {
	b, err := hkdf.Key(sha256.New, key[:], nil, "weft hello 1 key id", len(hint))
	if err == nil { // else none is named, which costs a second dial now and then
		copy(hint[:], b)
	}
	return hint
}

// offered returns the key that a dialler's head names, or key if it is none of others.
func offered(head []byte, key [32]byte, others [][32]byte) [32]byte {
	for _, k := range others {
		if hint := keyHint(k); string(hint[:]) == string(head[headSize-len(hint):]) {
			return k
		}
	}
	return key
}

// SetKeys replaces the keys: the first is offered to others, and all are accepted. Streams that were greeted with a
// key that is not there any more are closed; whoever used them opens new ones. There must be at least one key and at most 8;
// anything else is ignored.
func (m *Mesh) SetKeys(keys []Keys) {
	if len(keys) == 0 || len(keys) > maxKeys || slices.ContainsFunc(keys, func(k Keys) bool { return k.Hello == [32]byte{} }) {
		m.log.Error("a set of keys that is none was ignored")
		return
	}
	next := hellos(keys)
	m.keys.Store(&next)
	var over []*stream
	m.mu.Lock()
	for c := range m.conns {
		if s, ok := (*c).(*stream); ok && !slices.Contains(next, s.key) {
			over = append(over, s)
		}
	}
	m.mu.Unlock()
	for _, s := range over {
		m.closeQuietly(s)
	}
	m.pokeRejoin()
}

func hellos(keys []Keys) [][32]byte {
	ks := make([][32]byte, 0, len(keys))
	for _, k := range keys {
		ks = append(ks, k.Hello)
	}
	return ks
}

// offers returns the orders in which a dialler goes through its keys: each is offered once.
func offers(keys [][32]byte) [][][32]byte {
	var all [][][32]byte
	for i := range keys {
		all = append(all, append([][32]byte{keys[i]}, slices.Delete(slices.Clone(keys), i, i+1)...))
	}
	return all
}

// turnedAway is who has refused this node's keys last. Guarded by Mesh.mu.
type turnedAway struct {
	by    netip.AddrPort
	since time.Time // of the first one in a row; zero: the last who answered did not refuse
}

// noteKeys notes that somebody refused this node's keys, or did not.
func (m *Mesh) noteKeys(at netip.AddrPort, refused bool) {
	m.mu.Lock()
	before := m.turned
	switch {
	case !refused:
		m.turned = turnedAway{}
	case m.turned.since.IsZero():
		m.turned = turnedAway{by: at, since: time.Now()}
	}
	news := before != m.turned
	m.mu.Unlock()
	if news {
		m.changed()
	}
}

// TurnedAway tells who refused the keys of this node, and since when all who answered have; the time is zero if the last one did not.
func (m *Mesh) TurnedAway() (by netip.AddrPort, since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.turned.by, m.turned.since
}

// accepts tells whether streams greeted with a key may go on.
func (m *Mesh) accepts(key [32]byte) bool { return slices.Contains(*m.keys.Load(), key) }

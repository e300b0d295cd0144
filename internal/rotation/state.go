// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftnet/weft/internal/token"
)

// Key is a token with what is derived from it. It prints as its name alone.
type Key struct {
	ID    token.ID
	Token token.Token
	keys  *token.Keys
}

// NewKey derives what belongs to a token.
func NewKey(t token.Token) (Key, error) {
	id, err := t.ID()
	if err != nil {
		return Key{}, err
	}
	keys, err := t.Keys()
	if err != nil {
		return Key{}, err
	}
	return Key{ID: id, Token: t, keys: &keys}, nil
}

// Keys returns the keys of the mesh that are derived from the token.
func (k Key) Keys() token.Keys { return *k.keys }

// Format writes the name, whatever the verb.
func (k Key) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "token %v", k.ID) }

// State is what one node has of the rotation, all of which it keeps on disk. It is a value: no method changes it, and slices in it must
// not be written to.
type State struct {
	Tokens   []Key // accepted, each once, at least one; the first is the one that this node sends under
	Register Register
}

// What a change can be refused for.
var (
	ErrStale    = errors.New("of a rotation that does not count any more")
	ErrTooMany  = fmt.Errorf("this node keeps %d tokens already, of rotations that were never ended; end them by weft token revoke-old", token.MaxKept)
	ErrNoToken  = errors.New("this node does not have the new token yet")
	ErrUnderWay = errors.New("a rotation is under way")
)

// farAhead bounds how far a register may be ahead of the one known, so that nobody can use the generations up.
const farAhead = 1 << 16

// Holds returns the token of a name, if this node has it.
func (s State) Holds(id token.ID) (Key, bool) {
	i := slices.IndexFunc(s.Tokens, func(k Key) bool { return k.ID == id })
	if i < 0 {
		return Key{}, false
	}
	return s.Tokens[i], true
}

// New returns the token of the rotation that the register tells of, if this node has it.
func (s State) New() (Key, bool) { return s.Holds(s.Register.Key) }

// Certain tells that the register was written by one who has its token, as far as this node can tell: it has it, too.
func (s State) Certain() bool {
	k, ok := s.New()
	return ok && s.Register.writtenWith(k)
}

// Accepted returns the names of what this node accepts, in the order of Tokens.
func (s State) Accepted() []token.ID {
	ids := make([]token.ID, 0, len(s.Tokens))
	for _, k := range s.Tokens {
		ids = append(ids, k.ID)
	}
	return ids
}

// Kept returns the tokens as they lie on disk.
func (s State) Kept() token.Kept {
	k := token.Kept{Send: s.Tokens[0].Token}
	for _, t := range s.Tokens[1:] {
		if t.ID == s.Register.Key {
			k.Next = append(k.Next, t.Token)
		} else {
			k.Old = append(k.Old, t.Token)
		}
	}
	return k
}

// Equal tells whether two states of one node are the same.
func (s State) Equal(o State) bool {
	return slices.EqualFunc(s.Tokens, o.Tokens, func(a, b Key) bool { return a.ID == b.ID }) && s.Register.Equal(o.Register)
}

// Settle does with the tokens what the register asks for. Doing it again changes nothing.
func (s State) Settle() State {
	k, ok := s.New()
	if !ok {
		return s
	}
	others := slices.DeleteFunc(slices.Clone(s.Tokens), func(o Key) bool { return o.ID == k.ID })
	switch s.Register.Phase {
	case Distributing:
		if len(others) > 0 && s.Tokens[0].ID == k.ID {
			s.Tokens = append(others, k)
		}
	case Switched:
		s.Tokens = append([]Key{k}, others...)
	case Revoked:
		s.Tokens = []Key{k}
	}
	return s
}

// Merge takes in a register that another node knows. It fails with ErrForged or ErrMalformed, and changes nothing then.
func (s State) Merge(r Register) (State, error) {
	if r.Phase == None || !r.Beats(s.Register) {
		return s, nil
	}
	if r.Generation > s.Register.Generation+farAhead {
		return s, ErrMalformed
	}
	switch k, ok := s.Holds(r.Key); {
	case ok && !r.writtenWith(k):
		return s, ErrForged
	case !ok && s.Certain() && s.Register.Phase != Revoked:
		return s, nil // anybody can have written it; if it counts, its token comes with it
	}
	s.Register = r
	return s.Settle(), nil
}

// Take takes in the new token, with the register of the one who gives it. It fails with ErrForged, with ErrStale if the rotation is not
// the one that counts here, and with ErrTooMany.
func (s State) Take(k Key, r Register) (State, error) {
	if !r.writtenWith(k) || r.Phase == None {
		return s, ErrForged
	}
	if _, ok := s.Holds(k.ID); !ok {
		if len(s.Tokens) >= token.MaxKept {
			return s, ErrTooMany
		}
		s.Tokens = append(slices.Clone(s.Tokens), k)
	}
	same := r.Key == s.Register.Key && r.Generation == s.Register.Generation
	switch {
	case !s.Certain(), r.Beats(s.Register):
		s.Register = r
	case !same:
		s.Tokens = slices.DeleteFunc(slices.Clone(s.Tokens), func(o Key) bool { return o.ID == k.ID })
		return s, ErrStale
	}
	return s.Settle(), nil
}

// Adopt makes k the one token of this node, as its mesh accepted it when the user gave it. What the node knew of rotations that did not lead to
// this token it forgets: it may have gone a way of its own.
func (s State) Adopt(k Key) State {
	if s.Register.writtenWith(k) {
		return State{Tokens: []Key{k}, Register: s.Register}
	}
	return State{Tokens: []Key{k}}
}

// Begin begins a rotation to the new token k; members are those who are to get it. It fails with ErrUnderWay if there is one that is not
// revoked, unless anew is set: nobody who answers has its token.
func (s State) Begin(k Key, by uint64, now time.Time, members []Node, without []uint64, anew bool) (State, error) {
	if p := s.Register.Phase; p != None && p != Revoked && !anew {
		return s, ErrUnderWay
	}
	if len(s.Tokens) >= token.MaxKept {
		return s, ErrTooMany
	}
	r := Register{Generation: s.Register.Generation + 1, Key: k.ID, Phase: Distributing, By: by, Begun: now, Changed: now}
	s.Register = r.with(members, without).sign(k)
	s.Tokens = append(slices.Clone(s.Tokens), k)
	return s.Settle(), nil
}

// Extend adds members to a rotation that is under way, and nodes to leave out. Who is in both is left out. It fails with ErrNoToken.
func (s State) Extend(by uint64, members []Node, without []uint64) (State, error) {
	k, ok := s.New()
	if !ok {
		return s, ErrNoToken
	}
	r := s.Register.with(members, without)
	if len(r.Members) == len(s.Register.Members) && slices.Equal(r.Without, s.Register.Without) {
		return s, nil
	}
	r.Version, r.By = r.Version+1, by
	s.Register = r.sign(k)
	return s, nil
}

// with returns r with more members and nodes left out; a member that is named again is not left out any more.
func (r Register) with(members []Node, without []uint64) Register {
	back := map[uint64]bool{}
	r.Members = slices.Clone(r.Members)
	for _, m := range members {
		back[m.ID] = true
		r.Members = append(r.Members, MemberOf(m.ID, m.Public))
	}
	slices.SortFunc(r.Members, compareMembers)
	r.Members = slices.Compact(r.Members)
	r.Members = r.Members[:min(len(r.Members), MaxMembers)]
	r.Without = slices.DeleteFunc(slices.Clone(r.Without), func(id uint64) bool { return back[id] })
	r.Without = append(r.Without, without...)
	slices.SortFunc(r.Without, cmp.Compare[uint64])
	r.Without = slices.Compact(r.Without)
	r.Without = r.Without[:min(len(r.Without), MaxMembers)]
	return r
}

// Advance moves the rotation on to the next phase, which must be later than the present one. Whether it may be is the caller's to see, by
// [Progress.Complete]. It fails with ErrNoToken.
func (s State) Advance(to Phase, by uint64, now time.Time) (State, error) {
	k, ok := s.New()
	if !ok {
		return s, ErrNoToken
	}
	if to <= s.Register.Phase {
		return s, nil
	}
	r := s.Register
	r.Phase, r.Version, r.By, r.Changed = to, 0, by, now
	s.Register = r.sign(k)
	return s.Settle(), nil
}

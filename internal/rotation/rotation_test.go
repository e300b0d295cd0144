// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/token"
)

func newKey(t testing.TB) Key {
	t.Helper()
	tok, err := token.New(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKey(tok)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func epoch() time.Time { return time.UnixMilli(1_900_000_000_000) }

// person is a node with an X25519 key.
type person struct {
	Node
	private [32]byte
}

func newPerson(t testing.TB, id uint64) person {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return person{Node{ID: id, Public: [32]byte(k.PublicKey().Bytes()), Alive: true}, [32]byte(k.Bytes())}
}

// begun is a state in which node 1 has begun a rotation from old to fresh, with nodes 1 to 3 as members and node 9 left out.
func begun(t testing.TB) (s State, old, fresh Key, others []Node) {
	t.Helper()
	old, fresh = newKey(t), newKey(t)
	for id := range uint64(3) {
		others = append(others, newPerson(t, id+1).Node)
	}
	s, err := State{Tokens: []Key{old}}.Begin(fresh, 1, epoch(), others, []uint64{9}, false)
	if err != nil {
		t.Fatal(err)
	}
	return s, old, fresh, others
}

func accepted(t *testing.T, s State, want ...Key) {
	t.Helper()
	var ids []token.ID
	for _, k := range want {
		ids = append(ids, k.ID)
	}
	if !slices.Equal(s.Accepted(), ids) {
		t.Errorf("accepted are %v, want %v", s.Accepted(), ids)
	}
}

func TestPhasesOfOneNode(t *testing.T) {
	s, old, fresh, _ := begun(t)
	accepted(t, s, old, fresh)
	if k := s.Kept(); !k.Send.Equal(old.Token) || len(k.Next) != 1 || !k.Next[0].Equal(fresh.Token) || len(k.Old) != 0 {
		t.Error("while it is given out the new token is not the next one")
	}
	if _, err := s.Begin(newKey(t), 1, epoch(), nil, nil, false); !errors.Is(err, ErrUnderWay) {
		t.Errorf("a second rotation: %v", err)
	}
	s, err := s.Advance(Switched, 2, epoch().Add(time.Second))
	if err != nil || s.Register.By != 2 || !s.Register.Begun.Equal(epoch()) || !s.Register.Changed.Equal(epoch().Add(time.Second)) {
		t.Fatalf("%+v, %v", s.Register, err)
	}
	accepted(t, s, fresh, old)
	if k := s.Kept(); !k.Send.Equal(fresh.Token) || len(k.Next) != 0 || len(k.Old) != 1 || !k.Old[0].Equal(old.Token) {
		t.Error("after the switch the old token is not the old one")
	}
	if same, err := s.Advance(Distributing, 2, epoch()); err != nil || !same.Equal(s) {
		t.Errorf("a phase went back: %v, %v", same.Register.Phase, err)
	}
	if s, err = s.Advance(Revoked, 3, epoch().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	accepted(t, s, fresh)
	if s, err = s.Begin(newKey(t), 3, epoch(), nil, nil, false); err != nil || s.Register.Generation != 2 {
		t.Errorf("the next rotation: %+v, %v", s.Register, err)
	}
}

func TestWhoHasNotTheTokenActsOnNothing(t *testing.T) {
	s, old, _, _ := begun(t)
	away := State{Tokens: []Key{old}}
	for _, phase := range []Phase{Distributing, Switched, Revoked} {
		s, err := s.Advance(phase, 1, epoch())
		if err != nil {
			t.Fatal(err)
		}
		got, err := away.Merge(s.Register)
		if err != nil || !got.Register.Equal(s.Register) {
			t.Fatalf("%v: %+v, %v", phase, got.Register, err)
		}
		accepted(t, got, old)
		if _, err := got.Advance(Revoked, 5, epoch()); phase != Revoked && !errors.Is(err, ErrNoToken) {
			t.Errorf("it advances: %v", err)
		}
		if _, err := got.Extend(5, nil, []uint64{1}); !errors.Is(err, ErrNoToken) {
			t.Errorf("it extends: %v", err)
		}
		if _, err := got.Give(newPerson(t, 4).Node); !errors.Is(err, ErrNoToken) {
			t.Errorf("it gives: %v", err)
		}
	}
}

// TestForgedRegister: who has the old token alone can change nothing where the new one is, and what it tells others is undone by
// the new token when it comes.
func TestForgedRegister(t *testing.T) {
	s, old, fresh, _ := begun(t)
	forged := s.Register
	forged.Version, forged.Members = 7, []Member{{1}}
	if got, err := s.Merge(forged); !errors.Is(err, ErrForged) || !got.Equal(s) {
		t.Errorf("a forged list of members: %v", err)
	}
	forged = s.Register
	forged.Phase = Revoked
	if got, err := s.Merge(forged); !errors.Is(err, ErrForged) || !got.Equal(s) {
		t.Errorf("a forged phase: %v", err)
	}
	fooled, err := State{Tokens: []Key{old}}.Merge(forged)
	if err != nil {
		t.Fatal(err)
	}
	got, err := fooled.Take(fresh, s.Register)
	if err != nil || !got.Register.Equal(s.Register) {
		t.Fatalf("the true register does not take the place of the forged one: %+v, %v", got.Register, err)
	}
	accepted(t, got, old, fresh)
	if _, err := fooled.Take(fresh, forged); !errors.Is(err, ErrForged) {
		t.Errorf("a token with a forged register: %v", err)
	}
	far := s.Register
	far.Generation += farAhead + 1
	if _, err := s.Merge(far); !errors.Is(err, ErrMalformed) {
		t.Errorf("a generation that is far ahead: %v", err)
	}
	// The token of a rotation that lost is not taken.
	rival, err := State{Tokens: []Key{old}, Register: Register{Generation: 4}}.Begin(newKey(t), 8, epoch(), nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := rival.Take(fresh, s.Register); !errors.Is(err, ErrStale) || !got.Equal(rival) {
		t.Errorf("a token of a rotation that lost: %v", err)
	}
}

// TestRivals: of two rotations begun on two sides of a partition one wins on both, and no token is lost by it.
func TestRivals(t *testing.T) {
	old, a, b := newKey(t), newKey(t), newKey(t)
	if a.ID > b.ID {
		a, b = b, a
	}
	one, err := State{Tokens: []Key{old}}.Begin(a, 1, epoch(), nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if one, err = one.Advance(Switched, 1, epoch()); err != nil {
		t.Fatal(err)
	}
	two, err := State{Tokens: []Key{old}}.Begin(b, 2, epoch(), nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := two.Merge(one.Register); err != nil || !got.Equal(two) {
		t.Errorf("the loser's register counts: %v", err)
	}
	got, err := one.Merge(two.Register)
	if err != nil || !got.Equal(one) {
		t.Fatalf("the winner's register counts without its token: %v", err)
	}
	if got, err = got.Take(b, two.Register); err != nil || !got.Register.Equal(two.Register) {
		t.Fatalf("the winner's does not: %v", err)
	}
	accepted(t, got, a, old, b)
	if k := got.Kept(); len(k.Next) != 1 || len(k.Old) != 1 {
		t.Error("the tokens lie in the wrong files")
	}
	if got, err = got.Advance(Switched, 1, epoch()); err != nil {
		t.Fatal(err)
	}
	accepted(t, got, b, a, old)
}

// TestInventedRegisters: a register that nobody can check, whatever it says, neither ends a rotation nor keeps its token from anybody.
func TestInventedRegisters(t *testing.T) {
	s, old, fresh, _ := begun(t)
	invented := Register{Generation: s.Register.Generation + 100, Key: newKey(t).ID, Phase: Revoked, By: 3, Begun: epoch(), Changed: epoch(), MAC: [32]byte{1}}
	if got, err := s.Merge(invented); err != nil || !got.Equal(s) {
		t.Errorf("who has the token of the rotation follows another register: %+v, %v", got.Register, err)
	}
	switched, err := s.Advance(Switched, 1, epoch())
	if err != nil {
		t.Fatal(err)
	}
	fooled, err := State{Tokens: []Key{old}}.Merge(invented)
	if err != nil || !fooled.Register.Equal(invented) {
		t.Fatalf("%+v, %v", fooled.Register, err)
	}
	accepted(t, fooled, old)
	if fooled, err = fooled.Merge(s.Register); err != nil || !fooled.Register.Equal(invented) {
		t.Errorf("of two that it cannot check: %+v, %v", fooled.Register, err)
	}
	got, err := fooled.Take(fresh, s.Register)
	if err != nil || !got.Register.Equal(s.Register) {
		t.Fatalf("the token is not taken: %+v, %v", got.Register, err)
	}
	accepted(t, got, old, fresh)
	if got, err = got.Merge(invented); err != nil || !got.Register.Equal(s.Register) {
		t.Errorf("it follows the other register again: %+v, %v", got.Register, err)
	}
	if got, err = got.Merge(switched.Register); err != nil || !got.Register.Equal(switched.Register) {
		t.Errorf("it does not go on: %+v, %v", got.Register, err)
	}
	accepted(t, got, fresh, old)
}

func TestAdopt(t *testing.T) {
	s, _, fresh, _ := begun(t)
	accepted(t, s.Adopt(fresh), fresh)
	if got := s.Adopt(fresh); !got.Register.Equal(s.Register) {
		t.Error("the register of the very rotation is forgotten")
	}
	other := newKey(t)
	got := s.Adopt(other)
	accepted(t, got, other)
	if got.Register.Phase != None {
		t.Error("the register of another rotation is kept")
	}
}

func TestGenerationsAndTooMany(t *testing.T) {
	s := State{Tokens: []Key{newKey(t)}}
	for len(s.Tokens) < token.MaxKept {
		var err error
		if s, err = s.Begin(newKey(t), 1, epoch(), nil, nil, true); err != nil {
			t.Fatal(err)
		}
	}
	want := "this node keeps 6 tokens already, of rotations that were never ended; end them by weft token revoke-old"
	if _, err := s.Begin(newKey(t), 1, epoch(), nil, nil, true); !errors.Is(err, ErrTooMany) || err.Error() != want {
		t.Errorf("one more: %v", err)
	}
	k := newKey(t)
	r := Register{Generation: 99, Key: k.ID, Phase: Distributing}.sign(k)
	if _, err := s.Take(k, r); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more that is given: %v", err)
	}
}

func TestProgressAndLeavingOut(t *testing.T) {
	s, old, fresh, nodes := begun(t)
	set := func(i int, alive bool, keys ...Key) {
		nodes[i].Alive, nodes[i].Keys = alive, nil
		for _, k := range keys {
			nodes[i].Keys = append(nodes[i].Keys, k.ID)
		}
	}
	set(0, true, old, fresh)
	set(1, true, old)
	set(2, false, old)
	newcomer, left := newPerson(t, 4).Node, newPerson(t, 9).Node
	newcomer.Keys, left.Keys = []token.ID{old.ID}, []token.ID{old.ID}
	all := append(slices.Clone(nodes), newcomer, left)
	show := func(s State, nodes []Node) string { return fmt.Sprintf("%+v", ProgressOf(s.Register, nodes)) }
	if got, want := show(s, all), "{Phase:distributing Total:3 Confirmed:1 Waiting:[2] Away:[3] Strangers:[4] LeftOut:[9]}"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	set(1, true, old, fresh)
	all = append(slices.Clone(nodes), newcomer, left)
	if got, want := show(s, all), "{Phase:distributing Total:3 Confirmed:2 Waiting:[] Away:[3] Strangers:[4] LeftOut:[9]}"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	s, err := s.Advance(Switched, 1, epoch())
	if err != nil {
		t.Fatal(err)
	}
	set(0, true, fresh, old)
	all = append(slices.Clone(nodes), newcomer, left)
	if got, want := show(s, all), "{Phase:switched Total:3 Confirmed:1 Waiting:[2] Away:[3] Strangers:[4] LeftOut:[9]}"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// The user takes the newcomer in, and leaves out the one that is away.
	if s, err = s.Extend(1, []Node{newcomer}, []uint64{3}); err != nil {
		t.Fatal(err)
	}
	if got, want := show(s, all), "{Phase:switched Total:3 Confirmed:1 Waiting:[2 4] Away:[] Strangers:[] LeftOut:[9]}"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if again, err := s.Extend(1, []Node{newcomer}, []uint64{3}); err != nil || !again.Equal(s) {
		t.Errorf("the same again changes something: %v", err)
	}
	// And takes one that was left out in again.
	if s, err = s.Extend(1, []Node{left}, nil); err != nil || s.Register.LeavesOut(9) || !s.Register.Has(9, left.Public) {
		t.Errorf("node 9 is still left out: %v", err)
	}
	// Another key under a member's id is no member.
	if s.Register.Has(2, [32]byte{1}) {
		t.Error("who claims a member's id is given the token")
	}
	if p := ProgressOf(Register{}, all); p.Complete() || p.Total != 0 {
		t.Errorf("without a rotation: %+v", p)
	}
}

// TestGiver: at first two of those who have the token give it, then more; never to one who is away, left out, or came later.
func TestGiver(t *testing.T) {
	s, old, fresh, nodes := begun(t)
	for id := uint64(4); id <= 40; id++ {
		nodes = append(nodes, newPerson(t, id).Node)
	}
	s, err := s.Extend(1, nodes, []uint64{39})
	if err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		nodes[i].Keys = []token.ID{old.ID}
		if i < 20 {
			nodes[i].Keys = append(nodes[i].Keys, fresh.ID)
		}
	}
	nodes[30].Alive = false // id 31
	nodes = append(nodes, newPerson(t, 41).Node)
	givers := make([]Giver, 20)
	given := func(now time.Time) map[uint64]int {
		count := map[uint64]int{}
		for i := range givers {
			for _, n := range givers[i].Due(s, uint64(i+1), nodes, now) {
				count[n.ID]++
			}
		}
		return count
	}
	first := given(epoch())
	for id := uint64(1); id <= 41; id++ {
		want := 2
		if id <= 20 || id == 31 || id == 39 || id == 41 {
			want = 0
		}
		if first[id] != want {
			t.Errorf("node %d is given the token by %d nodes, want %d", id, first[id], want)
		}
	}
	if again := given(epoch().Add(time.Second)); len(again) != 0 {
		t.Errorf("a second later it is given again: %v", again)
	}
	if more := given(epoch().Add(4 * time.Second)); more[25] != 4 {
		t.Errorf("four seconds later %d nodes give it", more[25])
	}
	s, err = s.Advance(Revoked, 1, epoch())
	if err != nil {
		t.Fatal(err)
	}
	if late := given(epoch().Add(time.Hour)); len(late) != 0 {
		t.Errorf("after the revocation it is given: %v", late)
	}
}

func TestSealing(t *testing.T) {
	s, _, fresh, _ := begun(t)
	p, other := newPerson(t, 2), newPerson(t, 3)
	msg, err := s.Give(p.Node)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(msg, []byte(fresh.Token.Reveal())) || bytes.Contains(msg, []byte("weft-")) {
		t.Fatal("the token travels in plaintext")
	}
	k, r, err := Open(msg, p.ID, p.private)
	if err != nil || !k.Token.Equal(fresh.Token) || !r.Equal(s.Register) {
		t.Fatalf("%v %+v %v", k, r, err)
	}
	if _, _, err := Open(msg, p.ID, other.private); !errors.Is(err, ErrSealed) {
		t.Errorf("another node opens it: %v", err)
	}
	if _, _, err := Open(msg, other.ID, p.private); !errors.Is(err, ErrSealed) {
		t.Errorf("it opens for another id: %v", err)
	}
	for i := range msg {
		changed := bytes.Clone(msg)
		changed[i] ^= 1
		k, r, err := Open(changed, p.ID, p.private)
		if err != nil {
			continue
		}
		if _, err := (State{Tokens: s.Tokens[:1]}).Take(k, r); err == nil {
			t.Fatalf("with byte %d changed the token is taken", i)
		}
	}
	for i := range msg {
		if _, _, err := Open(msg[:i], p.ID, p.private); err == nil {
			t.Fatalf("%d bytes of it open", i)
		}
	}
	if _, err := s.Give(Node{ID: 5}); err == nil {
		t.Error("a token was sealed to a key that is none")
	}
}

func TestNothingPrintsATokenOrKey(t *testing.T) {
	s, _, fresh, _ := begun(t)
	keys := fresh.Keys()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{fresh, &fresh, s, &s, s.Tokens} {
			out := fmt.Sprintf(verb, v)
			for _, secret := range []string{fresh.Token.Reveal(), fmt.Sprintf("%x", keys.Hello), fmt.Sprint(keys.Hello[:4])[1:12], fmt.Sprintf("%x", keys.Rotation)} {
				if bytes.Contains([]byte(out), []byte(secret)) {
					t.Errorf("%s of %T shows a secret: %s", verb, v, out)
				}
			}
		}
	}
}

func TestRegisterCodec(t *testing.T) {
	s, _, _, _ := begun(t)
	r, err := Decode(s.Register.Encode())
	if err != nil || !r.Equal(s.Register) {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := Decode(Register{}.Encode()); err != nil || r.Phase != None {
		t.Errorf("no register: %+v, %v", r, err)
	}
	unordered := s.Register
	unordered.Members = slices.Clone(unordered.Members)
	slices.Reverse(unordered.Members)
	if _, err := Decode(unordered.Encode()); !errors.Is(err, ErrMalformed) {
		t.Errorf("members out of order: %v", err)
	}
}

// FuzzDecode: what decodes encodes to the same bytes, and memory is bounded by the input.
func FuzzDecode(f *testing.F) {
	s, _, _, _ := begun(f)
	f.Add(s.Register.Encode())
	f.Add([]byte{registerVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err == nil && len(b) > 0 && !bytes.Equal(r.Encode(), b) {
			t.Fatalf("%x decodes to what encodes to %x", b, r.Encode())
		}
	})
}

// FuzzOpen: whatever comes, nothing opens that was not sealed to this node.
func FuzzOpen(f *testing.F) {
	s, _, _, _ := begun(f)
	p := newPerson(f, 2)
	msg, err := s.Give(p.Node)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	f.Add([]byte{0, 0, 0, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, r, err := Open(b, 2, p.private)
		if err != nil {
			return
		}
		if _, err := (State{Tokens: s.Tokens[:1]}).Take(k, r); err == nil && !bytes.Equal(b, msg) {
			t.Fatal("a message that was altered was taken")
		}
	})
}

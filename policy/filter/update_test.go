// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// deltaOf is what changes one state into another one.
func deltaOf(was, now *compile.State) compile.Delta {
	d := compile.Delta{Patches: map[compile.TableID]compile.Patch{}, SetSides: now.Sides, SetIdentities: now.Identities, SetBlocks: now.Blocks, SetSelves: now.Selves}
	for id, t := range now.Tables {
		old := was.Tables[id]
		if old == nil {
			d.AddTables = append(d.AddTables, t)
			continue
		}
		p := compile.Patch{Default: &t.Default, Set: t.Cells}
		for c := range old.Cells {
			if _, ok := t.Cells[c]; !ok {
				p.Drop = append(p.Drop, c)
			}
		}
		d.Patches[id] = p
	}
	for id := range was.Tables {
		if now.Tables[id] == nil {
			d.DropTables = append(d.DropTables, id)
		}
	}
	d.DropSides, d.DropIdentities = goneOf(was.Sides, now.Sides), goneOf(was.Identities, now.Identities)
	d.DropBlocks, d.DropSelves = goneOf(was.Blocks, now.Blocks), goneOf(was.Selves, now.Selves)
	return d
}

func goneOf[K comparable, V any](was, now map[K]V) (keys []K) {
	for k := range was {
		if _, ok := now[k]; !ok {
			keys = append(keys, k)
		}
	}
	return keys
}

// After whatever changes the kernel has what it would have been given as a whole, and nothing else.
func TestUpdatesComeToTheWhole(t *testing.T) {
	t.Parallel()
	f := newFilter(t, newSpace(t))
	r := rand.New(rand.NewPCG(3, 4))
	was := randomState(r)
	must(t, f.Replace(was))
	for round := range 40 {
		now := randomState(r)
		for id := compile.TableID(1); id <= 3; id++ { // some tables stay, others are made anew
			if r.IntN(2) == 0 {
				fresh := now.Tables[id]
				delete(now.Tables, id)
				fresh.ID = compile.TableID(10*(round+1)) + id
				now.Tables[fresh.ID] = fresh
				for s, of := range now.Sides {
					if of == id {
						now.Sides[s] = fresh.ID
					}
				}
			}
		}
		must(t, f.Update(deltaOf(was, now)))
		have, err := f.conn.look(Table, whole)
		must(t, err)
		if lines := f.damage(have, whole); len(lines) > 0 {
			t.Fatalf("round %d: the kernel has something else than the model: %q", round, lines)
		}
		if have, err = f.conn.look(Table, whole); err != nil {
			t.Fatal(err)
		}
		n := adopt(now, have)
		for id, t := range f.model.tables { // of some nothing in the kernel tells whose they are
			n.given[id], n.numbered[t.number] = t.number, true
		}
		for i, u := range f.model.identities {
			n.taken[i], n.reserved[u.number] = u.number, true
		}
		m, err := build(now, n)
		must(t, err)
		e := m.difference(have, true)
		maps.DeleteFunc(e.sets, func(set string, _ map[string]*change) bool { return set == setCounts }) // they stay a while
		if !e.empty() {
			t.Fatalf("round %d: the kernel has something else than the state: %+v", round, e.sets)
		}
		d := m.digest()
		d.rules = fingerprint(f.layout.describe())
		if d != f.digest {
			t.Fatalf("round %d: digest %v, want %v", round, f.digest, d)
		}
		was = now
	}
}

// Numbers are given again when there are no more, and what does not fit is told.
func TestNumbersRunOut(t *testing.T) {
	t.Parallel()
	n := newNumbers()
	used := map[uint32]bool{2: true}
	var got []uint32
	for range 4 {
		number := n.pick(&n.nextList, 1, 4, "lists of ports", func(number uint32) bool { return used[number] })
		used[number] = true
		got = append(got, number)
		if len(got) == 3 {
			used[1] = false
		}
	}
	if want := []uint32{1, 3, 4, 1}; !slices.Equal(got, want) || n.full != "" {
		t.Errorf("%v %q, want %v", got, n.full, want)
	}
	n.pick(&n.nextList, 1, 4, "lists of ports", func(uint32) bool { return true })
	m := newModel(n)
	const want = "network policy: the kernel's table can hold no more than 4 lists of ports, and stays as it was; use fewer policies, or fewer endpoints on this node"
	if err := m.fits(); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestErrorTexts(t *testing.T) {
	t.Parallel()
	const begin = "network policy: programming nftables table inet weft-policy, which stays as it was: "
	for err, want := range map[error]string{
		unix.EPERM:      "operation not permitted; CAP_NET_ADMIN is needed",
		unix.ENOMEM:     "cannot allocate memory; the host is short of memory",
		unix.EOPNOTSUPP: "operation not supported; the kernel may lack what network policies need: weft status tells",
		unix.EBUSY:      "device or resource busy; is it changed by somebody else all the time? the next attempt follows",
	} {
		if got := failed(err); got.Error() != begin+want || !errors.Is(got, err) {
			t.Errorf("%v, want %s", got, want)
		}
	}
	f := newFilter(t, newSpace(t))
	if err := f.Update(compile.Delta{}); err == nil || err.Error() != "network policy: there is nothing to change yet; give the whole state first" {
		t.Error(err)
	}
	must(t, f.Support())
	if names := f.missing(); len(names) > 0 {
		t.Errorf("rules are taken, and yet there lacks %q", names)
	}
}

// What an endpoint sends to itself, through a Service, is allowed whatever its tables say, but where it is to be judged.
func TestItselfInTheModelAndTheKernel(t *testing.T) {
	t.Parallel()
	f := newFilter(t, newSpace(t))
	s := isolated(0)
	a := podAddr(0, false)
	must(t, f.Replace(s))
	c := policy.Connection{Src: a, Dst: a, Protocol: policy.TCP, Port: 80}
	if !f.model.allows(c, func(netip.Addr) bool { return false }) {
		t.Error("an endpoint does not reach itself")
	}
	s.Selves[a] = 5
	must(t, f.Replace(s))
	if f.model.allows(c, func(netip.Addr) bool { return false }) {
		t.Error("an endpoint is not judged as it sees itself")
	}
	have, err := f.conn.look(Table, whole)
	must(t, err)
	if len(have.values["self4"]) != 0 || len(have.values["selves4"]) != 1 {
		t.Errorf("%v %v", have.values["self4"], have.values["selves4"])
	}
}

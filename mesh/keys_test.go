// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// shakeMany runs hellos between two that accept several keys, one for each key that the dialler offers, until one succeeds.
func shakeMany(t *testing.T, ka, kb [][32]byte) (tries int, dialler, acceptor *stream, err error) {
	t.Helper()
	for _, keys := range offers(ka) {
		tries++
		p, q := net.Pipe()
		t.Cleanup(func() { _, _ = p.Close(), q.Close() })
		done := make(chan error, 1)
		go func() {
			s, _, err := receive(q, kb[0], time.Second, kb[1:]...)
			if err == nil {
				acceptor, err = s, s.answer(testIntroduction(2))
			} else {
				_ = q.Close()
			}
			done <- err
		}()
		dialler, _, err = greet(p, keys[0], testIntroduction(1), time.Second, keys[1:]...)
		if aerr := <-done; (aerr == nil) != (err == nil) {
			t.Fatalf("the dialler ends with %v, the acceptor with %v", err, aerr)
		}
		if !errors.Is(err, ErrWrongToken) {
			return tries, dialler, acceptor, err
		}
	}
	return tries, nil, nil, err
}

// TestHelloWithSeveralKeys: two that share a key find it, and at most one more dial is needed; two that share none do not.
func TestHelloWithSeveralKeys(t *testing.T) { synctest.Test(t, helloWithSeveralKeys) }

func helloWithSeveralKeys(t *testing.T) {
	var sets [][][32]byte // all orders of up to three of three keys
	var grow func(set [][32]byte)
	grow = func(set [][32]byte) {
		if len(set) > 0 {
			sets = append(sets, slices.Clone(set))
		}
		for k := byte(1); k <= 3 && len(set) < 3; k++ {
			if !slices.Contains(set, [32]byte{k}) {
				grow(append(slices.Clone(set), [32]byte{k}))
			}
		}
	}
	grow(nil)
	most := 0
	for _, a := range sets {
		for _, b := range sets {
			tries, d, c, err := shakeMany(t, a, b)
			shared := slices.ContainsFunc(a, func(k [32]byte) bool { return slices.Contains(b, k) })
			switch {
			case !shared && !errors.Is(err, ErrWrongToken):
				t.Fatalf("%v and %v: %v", a, b, err)
			case shared && err != nil:
				t.Fatalf("%v and %v, which share a key: %v", a, b, err)
			case shared && (d.key != c.key || !slices.Contains(a, d.key) || !slices.Contains(b, d.key)):
				t.Fatalf("%v and %v agree on %v and %v", a, b, d.key, c.key)
			case shared && (a[0] == b[0] || slices.Contains(b, a[0]) || slices.Contains(a, b[0])) && tries > 1:
				t.Fatalf("%v and %v needed %d dials", a, b, tries)
			}
			most = max(most, tries)
		}
	}
	if most > 3 {
		t.Errorf("up to %d dials", most)
	}
}

// TestHintTellsApart: the head names the key, and says nothing about it.
func TestHintTellsApart(t *testing.T) {
	seen := map[[3]byte]bool{}
	for k := range byte(200) {
		h := keyHint([32]byte{k + 1})
		if seen[h] || h == [3]byte{} {
			t.Fatalf("hint %x twice, or none", h)
		}
		seen[h] = true
	}
	if h := headOf([32]byte{1}); len(h) != headSize || checkHead(h) != nil {
		t.Errorf("head %x", h)
	}
}

// together waits until all see each other alive.
func (c *cluster) together(within time.Duration, nodes ...*testNode) {
	c.t.Helper()
	c.eventually(within, "everybody alive for everybody", func() bool {
		for _, a := range nodes {
			for _, b := range nodes {
				if a != b && a.status(b) != Alive {
					return false
				}
			}
		}
		return true
	})
}

func (n *testNode) setKeys(keys ...Keys) {
	n.SetKeys(keys)
	var secrets [][32]byte
	for _, k := range keys {
		secrets = append(secrets, k.Hello)
	}
	n.router.SetSecrets(secrets...)
}

// TestKeysChangeWhileTheMeshRuns: the three steps of a rotation, each node in its own time; nobody fails, messages arrive, and in the
// end who has the old key alone is refused and knows it.
func TestKeysChangeWhileTheMeshRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		a, b, d := c.node(), c.node("n1"), c.node("n1")
		for _, n := range c.nodes {
			n.start()
		}
		c.together(10*time.Second, c.nodes...)
		old, next := testKeys(7), testKeys(8)
		late := c.node("n2") // has the old key for ever, and is away meanwhile
		late.start()
		c.together(10*time.Second, c.nodes...)
		late.host.Dark(true)
		for _, step := range [][]Keys{{old, next}, {next, old}, {next}} {
			for _, n := range []*testNode{a, b, d} {
				n.setKeys(step...)
				time.Sleep(2 * time.Second)
				if err := a.Mesh.Send(d.cfg.Identity.ID(), "x", []byte("hello")); err != nil {
					t.Fatal(err)
				}
				if err := d.Mesh.Send(b.cfg.Identity.ID(), "x", []byte("hello")); err != nil {
					t.Fatal(err)
				}
			}
		}
		late.host.Dark(false)
		time.Sleep(time.Minute)
		for _, n := range []*testNode{b, d} {
			n.mu.Lock()
			if len(n.messages) != 9 {
				t.Errorf("%s got %d messages of 9", n.cfg.Name, len(n.messages))
			}
			n.mu.Unlock()
		}
		for _, l := range c.log.FilterMessageSnippet("does not answer").All() {
			if l.LoggerName != late.cfg.Name && !strings.Contains(l.ContextMap()["name"].(string), late.cfg.Name) {
				t.Errorf("%s: %s %v", l.LoggerName, l.Message, l.ContextMap())
			}
		}
		if by, since := late.Mesh.TurnedAway(); since.IsZero() || !by.IsValid() {
			t.Errorf("the node with the old key does not know that it is refused: %v, %v", by, since)
		}
		if _, since := a.Mesh.TurnedAway(); !since.IsZero() && len(a.Mesh.aliveOthers()) == 0 {
			t.Error("the mesh refuses a node with the new key")
		}
		// It gets the new key, and is back.
		late.setKeys(next)
		c.together(30*time.Second, c.nodes...)
		c.eventually(time.Minute, "it knows that it is refused no more", func() bool { // after the next stream of its own
			_, since := late.Mesh.TurnedAway()
			return since.IsZero()
		})
	})
}

func TestKeysThatAreNoneAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		a, b := c.node(), c.node("n1")
		a.start()
		b.start()
		c.together(10*time.Second, a, b)
		for _, bad := range [][]Keys{nil, {{}}, {testKeys(7), {}}, make([]Keys, maxKeys+1)} {
			a.Mesh.SetKeys(bad)
		}
		if err := b.Mesh.Send(a.cfg.Identity.ID(), "x", []byte("hello")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.messages) != 1 {
			t.Errorf("%d messages arrived", len(a.messages))
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/mesh/memnet"
)

// rotate runs `weft token rotate` on m and returns its progress, too.
func (c *cluster) rotate(m *machine, q api.RotateRequest) (api.RotationResult, []string) {
	c.t.Helper()
	var lines []string
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	res, err := m.service().Rotate(ctx, q, func(p api.RotationProgress) { lines = append(lines, p.Text) })
	if err != nil {
		c.t.Fatalf("rotate on %s: %v after %q", m.name, err, lines)
	}
	return res, lines
}

func (c *cluster) revokeOld(m *machine) api.RotationResult {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	res, err := m.service().RevokeOld(ctx, api.RevokeRequest{}, func(api.RotationProgress) {})
	if err != nil {
		c.t.Fatalf("revoke-old on %s: %v", m.name, err)
	}
	return res
}

// kept are the tokens in m's data directory.
func (m *machine) kept() []token.Token {
	m.t.Helper()
	k, err := token.ReadKept(m.dir)
	if err != nil {
		m.t.Fatal(err)
	}
	return k.All()
}

func (m *machine) token() token.Token {
	m.t.Helper()
	answer, err := m.service().Token()
	if err != nil {
		m.t.Fatal(err)
	}
	t, err := token.Parse(answer.Token)
	if err != nil {
		m.t.Fatal(err)
	}
	return t
}

// alive waits until the machines see each other.
func (c *cluster) alive(within time.Duration, ms ...*machine) {
	c.t.Helper()
	c.eventually(within, "everyone alive for everyone", func() bool {
		for _, m := range ms {
			n := 0
			for _, p := range m.service().Peers() {
				if p.State == "alive" && slices.ContainsFunc(ms, func(o *machine) bool { return o.name == p.Name }) {
					n++
				}
			}
			if n != len(ms)-1 {
				return false
			}
		}
		return true
	})
}

func (c *cluster) startAll(ms ...*machine) {
	c.t.Helper()
	for i, m := range ms {
		if i == 0 {
			c.start(m, nil)
		} else {
			c.start(m, nil, ms[0].name)
		}
		c.ready(m)
	}
	c.alive(10*time.Second, ms...)
}

func without1(cfg *Config) { cfg.Token = token.Token{} }

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 5)
		n1, n2, n3, n4, n5 := c.machines[0], c.machines[1], c.machines[2], c.machines[3], c.machines[4]
		c.startAll(n1, n2, n3, n4)
		if _, err := n1.service().RevokeOld(t.Context(), api.RevokeRequest{}, nil); !errors.Is(err, errNothingToRevoke) {
			t.Errorf("without a rotation: %v", err)
		}
		if err := n4.stop(); err != nil { // away at the switch, back before the revocation
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		res, lines := c.rotate(n1, api.RotateRequest{})
		if res.Phase != "switched" || res.Confirmed != 3 || res.Total != 4 || !slices.Equal(res.Away, []string{"n4"}) || len(res.Newcomers)+len(res.LeftOut)+len(res.Waiting) != 0 {
			t.Errorf("the result is %+v", res)
		}
		if len(lines) < 3 || !strings.HasSuffix(lines[0], "; away: n4") || !slices.Contains(lines, "3 of 4 nodes have the new token; away: n4") ||
			lines[len(lines)-1] != "3 of 4 nodes send under the new token; away: n4" {
			t.Errorf("the progress is %q", lines)
		}
		fresh := n1.token()
		for _, m := range []*machine{n1, n2, n3} {
			if !m.token().Equal(fresh) || m.token().Equal(c.token) || len(m.kept()) != 2 {
				t.Errorf("%s does not have the new token as its own and the old one beside it", m.name)
			}
			r := m.service().Status().Rotation
			if r == nil || r.Phase != "switched" || r.Confirmed != 3 || r.Total != 4 || !slices.Equal(r.Away, []string{"n4"}) {
				t.Errorf("%s shows the rotation as %+v", m.name, r)
			}
		}
		again, _ := c.rotate(n3, api.RotateRequest{})
		if again.Confirmed != 3 || !n1.token().Equal(fresh) {
			t.Errorf("the command on another node begins another rotation: %+v", again)
		}

		// Who was away gets it by itself.
		c.start(n4, without1, "n1")
		c.ready(n4)
		c.eventually(10*time.Second, "n4 has the new token", func() bool { return n4.token().Equal(fresh) })
		c.alive(10*time.Second, n1, n2, n3, n4)
		// Who joins with the old one works, and is named.
		c.start(n5, nil, "n2")
		c.ready(n5)
		c.alive(10*time.Second, n1, n2, n3, n4, n5)
		c.eventually(5*time.Second, "n5 is named", func() bool {
			r := n1.service().Status().Rotation
			return r != nil && slices.Equal(r.Newcomers, []string{"n5"}) && r.Confirmed == 4 && len(r.Away) == 0
		})
		time.Sleep(time.Minute)
		if len(n5.kept()) != 1 {
			t.Error("who came with the old token was given the new one")
		}
		if res, _ := c.rotate(n2, api.RotateRequest{With: []string{"n5"}}); res.Confirmed != 5 || len(res.Newcomers) != 0 {
			t.Errorf("with n5: %+v", res)
		}
		for _, m := range c.machines {
			m.carrier.mu.Lock()
			for _, p := range m.carrier.peers {
				if len(p.Keys) != 2 || p.Keys[0] == p.Keys[1] {
					t.Errorf("%s has %d pre-shared keys for %s", m.name, len(p.Keys), p.Name)
				}
			}
			m.carrier.mu.Unlock()
		}

		if res := c.revokeOld(n4); res.Phase != "revoked" || res.Confirmed != 5 || res.Total != 5 || len(res.Away) != 0 {
			t.Errorf("revoked: %+v", res)
		}
		c.alive(5*time.Second, c.machines...)
		for _, m := range c.machines {
			if k := m.kept(); len(k) != 1 || !k[0].Equal(fresh) {
				t.Errorf("%s keeps %d tokens", m.name, len(k))
			}
			c.eventually(10*time.Second, m.name+" shows no rotation any more", func() bool { return m.service().Status().Rotation == nil })
		}
		c.eventually(time.Second, "one pre-shared key for each peer", func() bool {
			for _, m := range c.machines {
				m.carrier.mu.Lock()
				for _, p := range m.carrier.peers {
					if len(p.Keys) != 1 {
						m.carrier.mu.Unlock()
						return false
					}
				}
				m.carrier.mu.Unlock()
			}
			return true
		})
		var told []string
		if _, err := n2.service().Events(t.Context(), api.EventsRequest{Last: 1000}, func(p api.EventsProgress) {
			if p.Event != nil && p.Event.Kind == "rotate" {
				told = append(told, p.Event.Text+": "+p.Event.Cause)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if want := []string{
			"the mesh gets a new token: a command on n1",
			"the mesh goes over to the new token; the old one is accepted, too: a command on n1",
			"the old token is revoked: a command on n4",
		}; !slices.Equal(told, want) {
			t.Errorf("n2 tells of the rotation %q", told)
		}
		if res := c.revokeOld(n1); res.Confirmed != 5 {
			t.Errorf("revoked again: %+v", res)
		}
		// And once more, over restarts.
		for _, m := range c.machines {
			if err := m.stop(); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range c.machines {
			c.start(m, without1, "n1", "n2")
		}
		for _, m := range c.machines {
			c.ready(m)
		}
		c.alive(20*time.Second, c.machines...)
		if res, _ := c.rotate(n5, api.RotateRequest{}); res.Confirmed != 5 || n1.token().Equal(fresh) {
			t.Errorf("the second rotation: %+v", res)
		}
	})
}

// TestAwayDuringAllOfIt: refused and told what to do, and back by the new token.
func TestAwayDuringAllOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.startAll(n1, n2, n3)
		n3.net.Dark(true)
		time.Sleep(time.Minute)
		c.rotate(n1, api.RotateRequest{})
		if res := c.revokeOld(n2); !slices.Equal(res.Away, []string{"n3"}) || res.Confirmed != 2 || res.Total != 3 {
			t.Errorf("revoked: %+v", res)
		}
		n3.net.Dark(false)
		c.eventually(time.Minute, "n3 says why it is refused", func() bool {
			return slices.ContainsFunc(n3.service().Status().Warnings, func(w string) bool {
				return strings.HasPrefix(w, "the mesh's token was rotated while this node was away: its token is refused since ") &&
					(strings.HasSuffix(w, "; launch again with the new token, which `weft token --raw` prints on n1") ||
						strings.HasSuffix(w, "; launch again with the new token, which `weft token --raw` prints on n2"))
			})
		})
		if tok, err := n3.service().Token(); err != nil || !strings.Contains(tok.Warning, "its token is refused since ") {
			t.Errorf("n3 gives its token away without a word: %q, %v", tok.Warning, err)
		}
		if tok, err := n1.service().Token(); err != nil || tok.Warning != "" {
			t.Errorf("n1 warns of its token: %q, %v", tok.Warning, err)
		}
		want := "the mesh does not accept this node's token any more; launch it with the new one, which `weft token --raw` prints on another node"
		if _, err := n3.service().Rotate(t.Context(), api.RotateRequest{}, nil); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if _, err := n3.service().RevokeOld(t.Context(), api.RevokeRequest{}, nil); !errors.Is(err, errCutOff) {
			t.Errorf("got  %v", err)
		}
		time.Sleep(5 * time.Minute)
		if len(n3.kept()) != 1 || !n3.kept()[0].Equal(c.token) {
			t.Error("n3 was given the new token after the revocation")
		}
		if s := n1.service().Status(); s.Nodes != (api.NodeCount{Total: 3, Alive: 2}) {
			t.Errorf("n1 counts %+v", s.Nodes)
		}
		if err := n3.stop(); err != nil {
			t.Fatal(err)
		}

		fresh := n1.token()
		refused := func(given token.Token, want string) {
			t.Helper()
			c.start(n3, func(cfg *Config) { cfg.Token = given })
			err := <-n3.done
			n3.kill = nil
			want = strings.ReplaceAll(want, "DIR", n3.dir)
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if k := n3.kept(); len(k) != 1 || !k[0].Equal(c.token) {
				t.Error("a launch that was refused changed the token")
			}
		}
		n3.net.Dark(true)
		refused(fresh, "the token given is not the one in DIR/token, and nobody answers who could tell which one counts (asked: n1, n2); launch again when one of them runs, or without it")
		n3.net.Dark(false)
		c.start(n3, func(cfg *Config) { cfg.Token = newToken(t) })
		err := <-n3.done
		n3.kill = nil
		if err == nil || !strings.HasPrefix(err.Error(), "neither the token given nor the one in "+n3.dir+"/token is that of the mesh at 192.0.2.") {
			t.Errorf("got  %v", err)
		}
		c.start(n3, func(cfg *Config) { cfg.Token = fresh })
		c.ready(n3)
		c.alive(20*time.Second, n1, n2, n3)
		if k := n3.kept(); len(k) != 1 || !k[0].Equal(fresh) {
			t.Error("the new token has not replaced the old one")
		}
		if w := n3.service().Status().Warnings; len(w) != 0 {
			t.Errorf("n3 warns of %q", w)
		}
		c.connected(10 * time.Second)

		// The old token at a later launch is known for what it is, as it would be in a unit file that nobody has changed.
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil, "n2")
		c.ready(n1)
		awaits := func(w string) bool {
			return strings.HasPrefix(w, "nothing new is attached until the network policies are known")
		}
		if w := slices.DeleteFunc(n1.service().Status().Warnings, awaits); len(w) != 1 || !strings.HasPrefix(w[0], "the token given at the launch is not the mesh's any more, since it was rotated; this node goes on with the one in its data directory") {
			t.Errorf("n1 warns of %q", w)
		}
		c.alive(20*time.Second, n1, n2, n3)
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, func(cfg *Config) { cfg.Token = newToken(t) }, "n2")
		err = <-n1.done
		n1.kill = nil
		want = "the token given is not that of this node's mesh, which is the one in " + n1.dir + "/token; launch without it, or run weft reset to join another mesh"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}

// TestDriverDies: another node goes on with the rotation, with the same token.
func TestDriverDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4)
		n1, n2, n3, n4 := c.machines[0], c.machines[1], c.machines[2], c.machines[3]
		c.startAll(n1, n2, n3, n4)
		// n4 answers, but its disk is full: so the rotation cannot be completed.
		block := filepath.Join(n4.dir, "token.next"+token.UnfinishedSuffix)
		if err := os.MkdirAll(filepath.Join(block, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := n1.service().Rotate(ctx, api.RotateRequest{}, func(api.RotationProgress) {})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the rotation ended with %v", err)
		}
		if r := n2.service().Status().Rotation; r == nil || r.Phase != "distributing" || r.Confirmed != 3 || !slices.Equal(r.Waiting, []string{"n4"}) {
			t.Errorf("n2 shows %+v", r)
		}
		if !n2.token().Equal(c.token) {
			t.Error("n2 sends under the new token before all have it")
		}
		if w := n4.service().Status().Warnings; len(w) != 1 || !strings.HasPrefix(w[0], "the rotation of the token does not get on here: writing the tokens to "+n4.dir) {
			t.Errorf("n4 warns of %q", w)
		}
		_, err = n2.service().RevokeOld(t.Context(), api.RevokeRequest{}, func(api.RotationProgress) {})
		want := "not all nodes have the new token yet (3 of 4); run weft token rotate, which goes on with that, and revoke the old one then"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		next := n1.kept()[1]
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(block); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		res, _ := c.rotate(n3, api.RotateRequest{})
		if res.Phase != "switched" || res.Confirmed != 4 || len(res.Away) != 0 || !n4.token().Equal(next) {
			t.Errorf("n3 went on with %+v", res)
		}
		c.start(n1, without1, "n2")
		c.ready(n1)
		c.alive(10*time.Second, c.machines...)
		c.eventually(10*time.Second, "n1 has gone over", func() bool { return n1.token().Equal(next) })
		c.revokeOld(n1)
		c.alive(10*time.Second, c.machines...)
	})
}

// TestWithout: a node that is left out works until the revocation, and does not get the token.
func TestWithout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.startAll(n1, n2, n3)
		for _, bad := range []struct{ name, want string }{
			{"n9", `there is no node "n9" in the mesh; weft peers lists them`},
			{"n1", "n1 is this node; run the command on another one to leave it out"},
		} {
			_, err := n1.service().Rotate(t.Context(), api.RotateRequest{Without: []string{bad.name}}, nil)
			if err == nil || err.Error() != bad.want {
				t.Errorf("got  %v\nwant %s", err, bad.want)
			}
		}
		res, _ := c.rotate(n1, api.RotateRequest{Without: []string{"n3"}})
		if res.Confirmed != 2 || res.Total != 2 || !slices.Equal(res.LeftOut, []string{"n3"}) {
			t.Errorf("%+v", res)
		}
		time.Sleep(time.Minute)
		if len(n3.kept()) != 1 {
			t.Error("n3 was given the token")
		}
		if res := c.revokeOld(n1); !slices.Equal(res.LeftOut, []string{"n3"}) {
			t.Errorf("%+v", res)
		}
		c.eventually(time.Minute, "n3 is cut off", func() bool {
			return n1.service().Status().Nodes.Alive == 2 && n3.service().Status().Nodes.Alive == 1
		})
	})
}

// TestRotationsOnBothSides: begun on both sides of a partition, they end as one.
func TestRotationsOnBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4)
		n1, n2, n3, n4 := c.machines[0], c.machines[1], c.machines[2], c.machines[3]
		c.startAll(n1, n2, n3, n4)
		c.net.Partition([]*memnet.Host{n1.net, n2.net}, []*memnet.Host{n3.net, n4.net})
		time.Sleep(time.Minute)
		one, _ := c.rotate(n1, api.RotateRequest{})
		two, _ := c.rotate(n3, api.RotateRequest{})
		if !slices.Equal(one.Away, []string{"n3", "n4"}) || !slices.Equal(two.Away, []string{"n1", "n2"}) {
			t.Errorf("%+v and %+v", one, two)
		}
		c.net.Heal()
		c.alive(time.Minute, c.machines...)
		res, _ := c.rotate(n2, api.RotateRequest{})
		if res.Confirmed != 4 || len(res.Away) != 0 {
			t.Errorf("after the partition: %+v", res)
		}
		for _, m := range c.machines {
			if !m.token().Equal(n1.token()) {
				t.Errorf("%s has another token than n1", m.name)
			}
		}
		c.alive(10*time.Second, c.machines...)
		c.revokeOld(n4)
		c.alive(10*time.Second, c.machines...)
		for _, m := range c.machines {
			if len(m.kept()) != 1 {
				t.Errorf("%s keeps %d tokens", m.name, len(m.kept()))
			}
		}
	})
}

// TestLostToken: who began dies for good before anybody else had the token; the command begins anew.
func TestLostToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.startAll(n1, n2, n3)
		for _, m := range []*machine{n2, n3} { // nobody can take it in
			if err := os.MkdirAll(filepath.Join(m.dir, "token.next"+token.UnfinishedSuffix, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := n1.service().Rotate(ctx, api.RotateRequest{}, func(api.RotationProgress) {})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		lost := n1.kept()[1]
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		for _, m := range []*machine{n2, n3} {
			if err := os.RemoveAll(filepath.Join(m.dir, "token.next"+token.UnfinishedSuffix)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Second)
		res, lines := c.rotate(n2, api.RotateRequest{})
		if res.Confirmed != 2 || !slices.Equal(res.Away, []string{"n1"}) || n2.token().Equal(lost) ||
			lines[0] != "no node that answers has the new token of the rotation that is under way; beginning anew in a moment" {
			t.Errorf("%+v after %q", res, lines)
		}
		c.start(n1, without1, "n2")
		c.ready(n1)
		c.eventually(20*time.Second, "n1 has the token of the second try", func() bool { return n1.token().Equal(n2.token()) })
		c.revokeOld(n1)
		c.alive(10*time.Second, c.machines...)
	})
}

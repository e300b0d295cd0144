// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/rotation"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/mesh"
)

// inventRegister has a node tell the mesh of a rotation that there is not, as a member may that means harm.
func inventRegister(m *machine, generation uint64, phase rotation.Phase) rotation.Register {
	r := rotation.Register{
		Generation: generation, Key: token.ID(0xbad), Phase: phase, By: 7, Begun: time.UnixMilli(1e12), Changed: time.UnixMilli(1e12), MAC: [32]byte{1},
	}
	m.node(m.t).engines().mesh.Broadcast(stateRotation, r.Encode())
	return r
}

// A member that invents rotations keeps nobody from rotating the token, and from leaving it out; and it fills no log.
func TestRotationsInvented(t *testing.T) {
	for _, phase := range []rotation.Phase{rotation.Distributing, rotation.Switched, rotation.Revoked} {
		t.Run(phase.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3)
				n1, n2, rogue := c.machines[0], c.machines[1], c.machines[2]
				core, logged := observer.New(zapcore.InfoLevel)
				c.start(n1, func(cfg *Config) { cfg.Log = zap.New(core) })
				c.ready(n1)
				for _, m := range []*machine{n2, rogue} {
					c.start(m, nil, "n1")
					c.ready(m)
				}
				c.alive(10*time.Second, n1, n2, rogue)
				old := n1.token()
				r := inventRegister(rogue, 5, phase)
				for _, m := range []*machine{n1, n2} {
					c.eventually(20*time.Second, "the register is known", func() bool { return m.node(t).rotor.snapshot().Register.Equal(r) })
				}
				if n1.token() != old || len(n1.kept()) != 1 {
					t.Fatal("the token has changed")
				}
				for i := range uint64(200) { // and goes on
					inventRegister(rogue, 6+i, phase)
					time.Sleep(50 * time.Millisecond)
				}
				claim := func() { // it says to have that token, too
					if err := rogue.node(t).engines().mesh.SetRecord(func(rec *mesh.Record) { rec.Keys = append([]uint32{0xbad}, rec.Keys...) }); err != nil {
						t.Error(err)
					}
				}
				time.Sleep(20 * time.Second)
				claim()
				c.eventually(20*time.Second, "n1 knows what it says", func() bool {
					who, _ := n1.node(t).engines().mesh.Node(rogue.node(t).state.identity.ID)
					return slices.Contains(who.Keys, 0xbad)
				})
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				var lines []string
				_, err := n1.service().Rotate(ctx, api.RotateRequest{}, func(p api.RotationProgress) { lines = append(lines, p.Text) })
				cancel()
				if err == nil || phase == rotation.Revoked && !strings.HasPrefix(err.Error(), rogue.name+" say that the mesh has another token") ||
					phase != rotation.Revoked && !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "waiting for "+rogue.name) }) {
					t.Errorf("nobody is told who says to have the token: %v, %q", err, lines)
				}
				res, _ := c.rotate(n1, api.RotateRequest{Without: []string{rogue.name}})
				if res.Rotation.Phase != "switched" {
					t.Fatalf("%+v", res)
				}
				for i := range uint64(20) {
					inventRegister(rogue, 1000+i, phase)
					time.Sleep(time.Second)
				}
				c.revokeOld(n1)
				for _, m := range []*machine{n1, n2} {
					if got := m.token(); got == old || got != n1.token() {
						t.Errorf("%s has the token %v", m.name, got)
					}
				}
				if n := logged.FilterMessageSnippet("another node says that the mesh's token is rotated").Len(); n == 0 || n > 4 {
					t.Errorf("%d lines", n)
				}
			})
		})
	}
}

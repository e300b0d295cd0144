// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"testing"
	"time"

	"github.com/weftnet/weft/router/envelope"
)

// Answers to probes go by whichever way there is, and only what is one is told.
func TestProofs(t *testing.T) {
	var told []string
	x := newMembers(t, 3, func(c *Config) {
		id := c.ID
		c.OnProof = func(node, echo uint64, at time.Time) {
			told = append(told, fmt.Sprintf("%d: %x of %d after %v", id, echo, node, at.Sub(time.Unix(1e9, 0))))
		}
	})
	a, b, c := x.all[1], x.all[2], x.all[3]
	x.join(1, 2)
	x.join(2, 3)
	c.ways.by[1] = way{Relays: [4]uint64{2}, N: 1}
	x.now = x.now.Add(time.Second)
	for _, m := range []*member{b, c} {
		if err := m.SendProof(1, 0xabc+m.id); err != nil {
			t.Fatal(err)
		}
	}
	if n := x.run(); n != 3 {
		t.Errorf("%d datagrams, not 1, and 2 for the one that is relayed", n)
	}
	a.want(t, "proofs", told, "1: abe of 2 after 1s", "1: abf of 3 after 1s")
	a.want(t, "ways", a.told(), "heard 2 by 192.0.2.2:6783", "heard 3 by relays [2]")
	if r, s := a.Stats(), c.Stats(); r.ProofsRx != 2 || r.ProofsTx != 0 || r.ControlRx != 2 || s.ProofsTx != 1 || s.ProofsRx != 0 || b.Stats().ProofsRx != 0 {
		t.Errorf("stats %+v, %+v", r, s)
	}

	for node, want := range map[uint64]string{
		9: "answering a probe of node 0000000000000009: no way to it is known",
		3: "answering a probe of node 0000000000000003: no way to it is known",
		0: "answering a probe of node 0000000000000000: no way to it is known",
	} {
		if err := c.SendProof(node, 1); err == nil || err.Error() != want {
			t.Errorf("%d: %v", node, err)
		}
	}
	if err := b.sendControl(envelope.KindProof, 1, way{Addr: memberAt(1)}, []byte("seven b"), x.now); err != nil {
		t.Fatal(err)
	}
	x.run()
	a.wantDrops(t, map[Reason]uint64{DropControlForm: 1})
	a.config.OnProof = nil
	if err := b.SendProof(1, 1); err != nil {
		t.Fatal(err)
	}
	x.run()
	a.wantDrops(t, map[Reason]uint64{DropControlForm: 1, DropControl: 1})
	if len(told) != 2 || a.Stats().ProofsRx != 2 {
		t.Errorf("told %v", told)
	}
	b.SetKeys(Keys{})
	if err := b.SendProof(1, 1); err == nil || b.Stats().ProofsTx != 2 {
		t.Errorf("without a key: %v, and %d are said to have left", err, b.Stats().ProofsTx)
	}
}

// What is asked without a kernel path comes to whoever answers probes, and the answer is as that to a probe.
func TestAsks(t *testing.T) {
	var told []string
	x := newMembers(t, 2, func(c *Config) {
		id := c.ID
		c.OnProof = func(node, echo uint64, _ time.Time) { told = append(told, fmt.Sprintf("%d: %x of %d", id, echo, node)) }
		c.OnAsk = func(node, echo uint64, _ time.Time) {
			told = append(told, fmt.Sprintf("%d is asked for %x by %d", id, echo, node))
		}
	})
	a, b := x.all[1], x.all[2]
	x.join(1, 2)
	x.now = x.now.Add(time.Second)
	if err := a.SendAsk(2, 0xabc); err != nil {
		t.Fatal(err)
	}
	x.run()
	if err := b.SendProof(1, 0xabc); err != nil {
		t.Fatal(err)
	}
	x.run()
	a.want(t, "told", told, "2 is asked for abc by 1", "1: abc of 2")
	if r := a.Stats(); r.ProofsRx != 1 || b.Stats().ProofsRx != 0 {
		t.Errorf("counted %+v", r)
	}
	if err := a.SendAsk(9, 1); err == nil || err.Error() != "asking node 0000000000000009: no way to it is known" {
		t.Error(err)
	}
	b.config.OnAsk = nil
	if err := a.SendAsk(2, 1); err != nil {
		t.Fatal(err)
	}
	x.run()
	b.wantDrops(t, map[Reason]uint64{DropControl: 1})
}

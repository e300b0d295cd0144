// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestIdentity(t *testing.T) {
	a, err := NewIdentity(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(a, err)
	}
	again, err := NewIdentity(bytes.Repeat([]byte{1}, 32))
	if err != nil || again.ID() != a.ID() || !a.ID().Valid() {
		t.Errorf("the same secret gave %v and %v, %v", a, again, err)
	}
	if b, err := NewIdentity(bytes.Repeat([]byte{2}, 32)); err != nil || b.ID() == a.ID() {
		t.Error("another secret gave the same id", err)
	}
	if _, err := NewIdentity(make([]byte, 31)); err == nil || !strings.Contains(err.Error(), "too short") {
		t.Error(err)
	}
	for _, s := range []string{fmt.Sprint(a), fmt.Sprintf("%v %+v", a, a), fmt.Sprintf("%#v", a)} {
		if !strings.Contains(s, a.ID().String()) || len(s) > 64 {
			t.Errorf("printed as %s", s)
		}
	}
}

// A record counts only with the signature of its own node, every byte of it.
func TestSignedRecords(t *testing.T) {
	who, thief := testIdentity(1), testIdentity(2)
	good, err := who.signRecord(Record{ID: who.ID(), Seq: 1, Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := ParseSigned(good.raw); err != nil || r.ID != who.ID() {
		t.Fatal(err)
	}
	for i := range good.raw {
		bad := bytes.Clone(good.raw)
		bad[i] ^= 1
		if _, err := ParseSigned(bad); err == nil {
			t.Errorf("byte %d does not matter", i)
		}
	}
	for i := range good.raw {
		if _, err := ParseSigned(good.raw[:i]); err == nil {
			t.Errorf("%d bytes are enough", i)
		}
	}
	if _, err := thief.signRecord(Record{ID: who.ID(), Seq: 2, Name: "n"}); !errors.Is(err, errSignature) {
		t.Error("one node signed for another:", err)
	}
	// The signature of something else is none.
	body := good.raw[signedHead:]
	if _, err := ParseSigned(who.sign(diallerLabel, nil, body)); !errors.Is(err, errSignature) {
		t.Error(err)
	}
}

// A member of the mesh, who has the token, can neither rewrite another node's record nor bring back an old one.
func TestForgedRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 71)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b))
		a.Mesh.mu.Lock()
		old, _ := a.records.get(b.id)
		a.Mesh.mu.Unlock()
		if err := b.SetRecord(func(r *Record) { r.Build = "new" }); err != nil {
			t.Fatal(err)
		}
		c.eventually(2*time.Second, "spread", func() bool { return a.Nodes()[1].Build == "new" })

		forged := old.clone()
		forged.Seq, forged.Build = 1<<60, "forged"
		body, err := forged.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		thief := testIdentity(9).sign(recordLabel, nil, body)         // by another key
		patched := append(bytes.Clone(old.raw[:signedHead]), body...) // under the old signature
		for _, raw := range [][]byte{thief, patched, old.raw} {
			for _, m := range []*testNode{a, b} {
				m.takeChange(must(t)(encodeChange(c.uni.ID, recordsName, must(t)(encodeRecords([]*storedRecord{{raw: raw}})))), testIdentity(9).ID())
			}
		}
		time.Sleep(time.Second)
		for _, m := range []*testNode{a, b} {
			if n := m.Nodes(); len(n) != 2 || n[1].Build != "new" || n[1].Seq >= 1<<60 {
				t.Errorf("%s believes %+v", m.cfg.Name, n)
			}
		}
		if c.logged("was left out") == 0 {
			t.Error("nobody says that records were forged")
		}
	})
}

// Whoever has the token but not a node's key cannot introduce itself as that node.
func TestForgedIntroduction(t *testing.T) {
	key := [32]byte{1}
	honest := testIntroduction(1)
	forged := testIntroduction(2)
	forged.id = honest.id // signed by node 2
	if _, c, _, _ := shake(t, key, key, forged, testIntroduction(3)); !errors.Is(c.err, errSignature) {
		t.Error("the acceptor believed it:", c.err)
	}
	if d, _, _, _ := shake(t, key, key, testIntroduction(3), forged); !errors.Is(d.err, errSignature) {
		t.Error("the dialler believed it:", d.err)
	}
	// An introduction of another connection is of no use in this one.
	b := must(t)(honest.encode(diallerLabel, sha256.Sum256([]byte("another"))))
	if _, err := decodeIntroduction(b, diallerLabel, sha256.Sum256([]byte("this"))); !errors.Is(err, errSignature) {
		t.Error(err)
	}
	if _, err := decodeIntroduction(b, acceptorLabel, sha256.Sum256([]byte("another"))); !errors.Is(err, errSignature) {
		t.Error(err)
	}
}

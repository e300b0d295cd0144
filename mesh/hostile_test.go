// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap/zapcore"
)

// What a member can do that holds the token and means harm.

// invented returns the identity of a node that there is not.
func invented(t testing.TB, i int) Identity {
	t.Helper()
	secret := make([]byte, 32)
	binary.BigEndian.PutUint64(secret, uint64(i)+1<<40)
	who, err := NewIdentity(secret)
	if err != nil {
		t.Fatal(err)
	}
	return who
}

func inventedRecord(t testing.TB, u UniverseInfo, i int) *storedRecord {
	t.Helper()
	who := invented(t, i)
	r, err := who.signRecord(Record{ID: who.ID(), Seq: 1, Boot: 1, Name: "ghost", Universe: u.ID})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Records of invented nodes fill the table and no more; a newcomer gets in all the same, everywhere, and soon.
func TestInventedNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 90)
		known := func([]byte, func() bool) bool { return true } // that the signatures are right is clear here, and takes its time
		node := func(targets ...string) *testNode {
			n := c.node(targets...)
			n.cfg.Authentic = known
			return n.start()
		}
		a, b := node(), node("n1")
		c.eventually(2*time.Second, "whole", whole(a, b))
		const flood = maxRecords + 1000
		for i := 0; i < flood; i += 100 {
			var rs []*storedRecord
			for j := range 100 {
				rs = append(rs, inventedRecord(t, c.uni, i+j))
			}
			a.queueMerge(incoming{from: b.id, states: map[string][]byte{recordsName: must(t)(encodeRecords(rs))}, to: askers})
		}
		c.eventually(time.Minute, "a full table", func() bool { return len(a.Nodes()) == maxRecords })
		d := node("n1")
		c.eventually(15*time.Second, "the newcomer is alive for all", func() bool {
			for _, n := range []*testNode{a, b} {
				if k, ok := n.Node(d.id); !ok || k.Status != Alive {
					return false
				}
			}
			return true
		})
		for _, n := range []*testNode{a, b, d} {
			if got := len(n.Nodes()); got > maxRecords {
				t.Errorf("%s keeps %d records", n.cfg.Name, got)
			}
			n.Mesh.mu.Lock()
			peers := len(n.peers)
			n.Mesh.mu.Unlock()
			if peers > maxRecords {
				t.Errorf("%s keeps %d peers", n.cfg.Name, peers)
			}
		}
		if !whole(a, b)() {
			t.Error("the nodes lost each other")
		}
	})
}

// Those of whom it is said that they live get onto memberlist's list in bounded numbers, a node that has introduced itself in any case.
func TestInventedProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 91)
		a := c.node().start()
		say := func(id NodeID, boot uint64) error {
			return delegate{a.Mesh}.NotifyAlive(&memberlist.Node{
				Name: memberName(id, boot), Addr: memberAddr(id).Addr().AsSlice(), Port: memberPort, Meta: memberMeta(c.uni.ID, a.addr),
			})
		}
		n := 0
		for i := range 10_000 {
			if say(NodeID(i+1), 7) == nil {
				n++
			}
		}
		if n != maxUnvouched {
			t.Errorf("%d processes of unknown nodes got in", n)
		}
		a.ways.greeted(99_999, 7)
		if err := say(99_999, 7); err != nil {
			t.Error("a node that was met is kept out:", err)
		}
		who := inventedRecord(t, c.uni, 1)
		a.mergeRecords(must(t)(encodeRecords([]*storedRecord{who})), nobody, 0)
		if err := say(who.ID, who.Boot); err != nil {
			t.Error("a node is kept out though its record speaks of it:", err)
		}
		time.Sleep(time.Minute)
		for boot := range uint64(100) {
			if say(who.ID, 1000+boot) == nil {
				a.noteAlive(who.ID, 1000+boot, a.addr)
			}
		}
		a.Mesh.mu.Lock()
		got := a.peers[who.ID].living.len()
		a.Mesh.mu.Unlock()
		if got != maxProcesses {
			t.Errorf("one node has %d processes", got)
		}
	})
}

// A node that changes its record a thousand times a second is taken in now and then, and agreed with when it comes to rest.
func TestHastyNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 92)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b))
		taken, last := 0, uint64(0)
		for i := range 5000 {
			if err := b.SetRecord(func(r *Record) { r.Build = fmt.Sprint(i) }); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
			if k, _ := a.Node(b.id); k.Seq != last {
				taken, last = taken+1, k.Seq
			}
		}
		if taken > recordBurst+5*recordRate+2 {
			t.Errorf("%d of 5000 changes were taken in", taken)
		}
		c.eventually(20*time.Second, "agreement", func() bool { k, _ := a.Node(b.id); return k.Build == "4999" })
		if c.logged("changes its record too often") == 0 {
			t.Error("nobody says so")
		}
	})
}

// One node holds a few connections, one host some more, and the others get in.
func TestSeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 93)
		a := c.node().start()
		var leave []func()
		take := func(host string, id NodeID, why purpose) error {
			l, err := a.seat(host, introduction{id: id, purpose: why})
			if err == nil {
				leave = append(leave, l)
			}
			return err
		}
		for range 1000 {
			_ = take("10.0.0.1", 1, purposeMessage)
		}
		if n := len(leave); n != connsPerNode {
			t.Errorf("one node holds %d connections", n)
		}
		for range 10 {
			_ = take("10.0.0.2", 2, purposeGossip)
		}
		if n := len(leave) - connsPerNode; n != gossipPerNode {
			t.Errorf("one node holds %d streams of gossip", n)
		}
		for i := range 1000 {
			_ = take("10.0.0.1", NodeID(10+i), purposeMessage)
			_ = take(byUDP, NodeID(2000+i), purposeMessage)
		}
		if n := len(leave); n != gossipPerNode+connsPerHost+connsByUDP {
			t.Errorf("two hosts hold %d connections", n)
		}
		if err := take("10.0.0.3", 3, purposeMessage); err != nil {
			t.Error("another host is kept out:", err)
		}
		if err := take("10.0.0.9", 1, purposeMessage); !errors.Is(err, errConns) {
			t.Error(err)
		}
		for _, l := range leave {
			l()
		}
		a.Mesh.mu.Lock()
		defer a.Mesh.mu.Unlock()
		if d := a.door; d.peers != 0 || d.gossips != 0 || len(d.byNode)+len(d.byHost)+len(d.gossip) != 0 {
			t.Errorf("left: %+v", d)
		}
	})
}

// What is large takes room, of which one node gets a part, and whoever waits for it gets it when it is there.
func TestLarder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l larder
		never := make(chan struct{})
		const piece = 8 << 20
		got := 0
		for id := NodeID(1); id < 10; id++ {
			for range 10 {
				if l.take(id, piece, time.Millisecond, never) {
					got++
				}
			}
			if got > larderPerNode/piece*int(id) {
				t.Fatalf("%d pieces for %d nodes", got, id)
			}
		}
		if got != larderSize/piece {
			t.Errorf("%d pieces", got)
		}
		go func() {
			time.Sleep(time.Second)
			l.free(1, piece)
		}()
		begin := time.Now()
		if !l.take(9, piece, 3*time.Second, never) || time.Since(begin) != time.Second {
			t.Error("nobody tells who waits that there is room")
		}
		closed := make(chan struct{})
		close(closed)
		if l.take(9, piece, time.Hour, closed) {
			t.Error("there was room")
		}
	})
	if larderPerNode < maxSync+maxSyncPart || larderPerNode < maxFrame {
		t.Error("a sync, or a message, has no room")
	}
}

// Whatever does not make sense is reported with the node that sent it, once.
func TestOdditiesNameTheSender(t *testing.T) {
	for name, send := range map[string]func(m *Mesh, from NodeID, u UniverseInfo){
		"a gossip packet that makes no sense": func(m *Mesh, from NodeID, _ UniverseInfo) {
			m.Deliver([]byte{byte(kindMember), 9, 1, 2}, Addr{Node: from}, time.Now())
		},
		"a change that makes no sense": func(m *Mesh, from NodeID, _ UniverseInfo) {
			m.Deliver([]byte{byte(kindMember), memberChange, 1, 2}, Addr{Node: from}, time.Now())
		},
		"changes that make no sense": func(m *Mesh, from NodeID, _ UniverseInfo) {
			m.Deliver([]byte{byte(kindChanges), 1, 2, 3}, Addr{Node: from}, time.Now())
		},
		"a digest that makes no sense": func(m *Mesh, from NodeID, _ UniverseInfo) {
			m.Deliver([]byte{byte(kindDigest), 1, 2}, Addr{Node: from}, time.Now())
		},
		"node records that make no sense": func(m *Mesh, from NodeID, u UniverseInfo) {
			m.takeChange(must(t)(encodeChange(u.ID, recordsName, []byte("junk"))), from)
		},
		"a node record that makes no sense": func(m *Mesh, from NodeID, u UniverseInfo) {
			m.takeChange(must(t)(encodeChange(u.ID, recordsName, must(t)(encodeRecords([]*storedRecord{{raw: []byte{1}}})))), from)
		},
		"a node record was left out": func(m *Mesh, from NodeID, u UniverseInfo) {
			r := inventedRecord(t, u, 5)
			r.raw = bytes.Clone(r.raw)
			r.raw[40] ^= 1
			m.takeChange(must(t)(encodeChange(u.ID, recordsName, must(t)(encodeRecords([]*storedRecord{r})))), from)
		},
		`the state "bag" that another node sent`: func(m *Mesh, from NodeID, u UniverseInfo) {
			m.takeChange(must(t)(encodeChange(u.ID, "bag", []byte("junk"))), from)
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 94)
			a := c.node().start()
			time.Sleep(time.Second)
			who := testIdentity(9).ID()
			for range 2400 {
				send(a.Mesh, who, c.uni)
				time.Sleep(time.Millisecond)
			}
			var got []string
			for _, e := range c.log.FilterLevelExact(zapcore.WarnLevel).All() {
				got = append(got, e.Message)
				if e.ContextMap()["from"] != who.String() {
					t.Errorf("%q names %v", e.Message, e.ContextMap()["from"])
				}
			}
			if len(got) != 1 || !strings.HasPrefix(got[0], name) {
				t.Errorf("%q: the log says %q", name, got)
			}
		})
	}
}

// Nobody has this node send packets of memberlist's to an address of their choice.
func TestNoAnswerElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 95)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b))
		victim := netip.MustParseAddrPort("192.168.9.9:53")
		var hit int
		c.net.Tap(func(_ string, _, to netip.AddrPort, _ []byte) {
			if to.Addr() == victim.Addr() {
				hit++
			}
		})
		ping := packed("SeqNo", 1, "Node", "", "SourceAddr", victim.Addr().AsSlice(), "SourcePort", int(victim.Port()), "SourceNode", "x")
		indirect := packed("SeqNo", 1, "Target", victim.Addr().AsSlice(), "Port", int(victim.Port()), "Node", "x", "Nack", false)
		for range 10 {
			a.Deliver(append([]byte{byte(kindMember), 0}, ping...), Addr{Node: b.id}, time.Now())
			a.Deliver(append([]byte{byte(kindMember), 1}, indirect...), Addr{Node: b.id}, time.Now())
		}
		time.Sleep(2 * time.Second)
		if hit != 0 {
			t.Errorf("%d packets for somebody else", hit)
		}
		if n := c.logged("Failed to decode"); n != 0 {
			t.Errorf("%d of these were no messages: %v", n, c.log.FilterMessageSnippet("Failed to decode").All()[0].Message)
		}
	})
}

// Who answers is alive, whatever is said of its death, and be it in an incarnation beyond which there is none.
func TestDeathInTheLastIncarnation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 96)
		all := []*testNode{c.node().start(), c.node("n1").start(), c.node("n1").start()}
		c.eventually(2*time.Second, "whole", whole(all...))
		victim, begin := all[1], time.Now()
		for i := range 1 {
			kind := []byte{3, 5}[i%2] // suspect, dead
			say := packed("Incarnation", 1<<32-1, "Node", memberName(victim.id, victim.boot), "From", "x")
			for _, n := range all {
				n.Deliver(append([]byte{byte(kindMember), kind}, say...), Addr{Node: invented(t, 1).ID()}, time.Now())
			}
			for range 2400 {
				time.Sleep(100 * time.Millisecond)
				for _, n := range all {
					if !whole(n, victim)() {
						k, _ := n.Node(victim.id)
						t.Fatalf("%s says of %s after %v: %v", n.cfg.Name, victim.cfg.Name, time.Since(begin), k.Status)
					}
				}
			}
		}
		time.Sleep(2 * time.Minute)
		if !whole(all...)() {
			t.Error("not whole in the end")
		}
		for _, n := range all {
			n.Mesh.mu.Lock()
			if n.deathChecks != 0 {
				t.Errorf("%s still asks whether somebody is dead", n.cfg.Name)
			}
			n.Mesh.mu.Unlock()
		}
		if err := victim.Stop(t.Context(), false); err != nil { // and who is dead, is dead
			t.Fatal(err)
		}
		c.eventually(30*time.Second, "the victim is gone", func() bool { k, _ := all[0].Node(victim.id); return k.Status != Alive })
	})
}

// packed is a small map as MessagePack.
func packed(kv ...any) []byte {
	b := []byte{0x80 | byte(len(kv)/2)}
	for _, v := range kv {
		switch v := v.(type) {
		case string:
			b = append(append(b, 0xd9, byte(len(v))), v...)
		case []byte:
			b = append(append(b, 0xa0|byte(len(v))), v...)
		case int:
			b = binary.BigEndian.AppendUint32(append(b, 0xce), uint32(v))
		case bool:
			b = append(b, 0xc2)
		}
	}
	return b
}

// Incarnations beyond which nobody could object are refused, whatever form they have.
func TestIncarnations(t *testing.T) {
	name := func(n byte, value ...byte) []byte {
		return append([]byte{n, 0x81, 0xab, 'I', 'n', 'c', 'a', 'r', 'n', 'a', 't', 'i', 'o', 'n'}, value...)
	}
	for text, c := range map[string]struct {
		b    []byte
		good bool
	}{
		"suspect":               {name(3, 0xce, 0x40, 0, 0, 0), true},
		"suspect, too great":    {name(3, 0xce, 0x40, 0, 0, 1), false},
		"dead, too great":       {name(5, 0xce, 0xff, 0xff, 0xff, 0xff), false},
		"alive":                 {name(4, 0xce, 0x80, 0, 0, 0), true},
		"alive, too great":      {name(4, 0xce, 0x80, 0, 0, 1), false},
		"in one byte":           {name(5, 7), true},
		"in eight bytes":        {name(5, 0xcf, 0, 0, 0, 0, 0, 0, 0, 7), true},
		"eight bytes, great":    {name(5, 0xcf, 0, 0, 0, 1, 0, 0, 0, 7), false},
		"negative":              {name(5, 0xff), false},
		"signed":                {name(5, 0xd2, 0xff, 0xff, 0xff, 0xff), false},
		"as text":               {name(5, 0xa1, '7'), false},
		"cut short":             {name(5, 0xce, 0, 0, 0), false},
		"without a value":       {name(5), false},
		"nothing":               {[]byte{5}, false},
		"an empty map":          {[]byte{5, 0x80}, true},
		"a list":                {[]byte{5, 0x93, 0xce, 0xff, 0xff, 0xff, 0xff, 0xa1, 'x', 0xa1, 'y'}, false},
		"a large map":           {append([]byte{5, 0xde, 0, 1}, name(5, 0xce, 0xff, 0xff, 0xff, 0xff)[2:]...), false},
		"a long name":           {append([]byte{5, 0x81, 0xd9, 11}, name(5, 0xce, 0xff, 0xff, 0xff, 0xff)[3:]...), false},
		"twice":                 {append(append([]byte{5, 0x82}, name(5, 7)[2:]...), name(5, 0xce, 0xff, 0xff, 0xff, 0xff)[2:]...), false},
		"text beyond the end":   {[]byte{5, 0x81, 0xda, 0xff, 0xff, 'x'}, false},
		"a ping with the field": {name(0, 0xce, 0xff, 0xff, 0xff, 0xff), true},
	} {
		if err := checkIncarnation(c.b); (err == nil) != c.good {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func withCRC(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{memberCRC}, crc32.ChecksumIEEE(b)), b...)
}

func TestInspect(t *testing.T) {
	ping, alive, echo, change := []byte{0, 1}, []byte{4, 0x80}, []byte{4, 3}, []byte{8, 'x'}
	for name, c := range map[string]struct {
		in, rest []byte
		changes  string
		odd      bool
	}{
		"ping":           {in: ping, rest: ping},
		"checksum":       {in: withCRC(ping), rest: ping},
		"bad checksum":   {in: []byte{12, 1, 2, 3, 4, 0, 1}, odd: true},
		"change":         {in: change, changes: "x"},
		"compound":       {in: compound([][]byte{ping, change, alive, change}), rest: compound([][]byte{ping, alive}), changes: "xx"},
		"echo":           {in: echo},
		"echo inside":    {in: compound([][]byte{ping, echo, alive}), rest: compound([][]byte{ping, alive})},
		"only changes":   {in: withCRC(compound([][]byte{change, change})), changes: "xx"},
		"empty":          {in: nil, odd: true},
		"empty inside":   {in: []byte{12, 0, 0, 0, 0}, odd: true},
		"empty part":     {in: []byte{7, 1, 0, 0}, odd: true},
		"compressed":     {in: []byte{9, 1}, odd: true},
		"encrypted":      {in: []byte{10, 1}, odd: true},
		"label":          {in: []byte{244, 1, 'x', 0}, odd: true},
		"nested":         {in: compound([][]byte{compound([][]byte{ping, change}), alive}), rest: alive, odd: true},
		"bomb inside":    {in: compound([][]byte{{9, 1}, change}), changes: "x", odd: true},
		"no lengths":     {in: []byte{7, 3, 0, 1}, odd: true},
		"cut short":      {in: []byte{7, 2, 0, 2, 0, 9, 0, 1, 1}, rest: ping, odd: true},
		"exchange":       {in: []byte{6, 1}, odd: true},
		"number missing": {in: []byte{7}, odd: true},
	} {
		var changes []byte
		rest, err := inspect(c.in, func(b []byte) { changes = append(changes, b...) }, func(b []byte) bool { return string(b) == string(echo) })
		if !bytes.Equal(rest, c.rest) || string(changes) != c.changes || (err != nil) != c.odd {
			t.Errorf("%s: %v, %q, %v", name, rest, changes, err)
		}
	}
}

// memberlist sees nothing but messages of types that are let through, however they are wrapped.
func FuzzInspect(f *testing.F) {
	f.Add([]byte{0, 1})
	f.Add(append([]byte{5}, packed("Incarnation", 1<<32-1, "Node", "x", "From", "y")...))
	f.Add(withCRC(compound([][]byte{{0, 1}, {8, 'x'}, {4, 2}})))
	f.Add(compound([][]byte{{9, 1}, compound([][]byte{{0, 1}})}))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		rest, _ := inspect(b, func(c []byte) { total += len(c) }, func([]byte) bool { return false })
		if total+len(rest) > len(b) {
			t.Fatalf("%d bytes became %d", len(b), total+len(rest))
		}
		if len(rest) == 0 {
			return
		}
		parts := [][]byte{rest}
		if rest[0] == memberCompound {
			var err error
			if parts, err = partsOf(rest, nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range parts {
			if len(p) == 0 || !letThrough(p[0]) {
				t.Fatalf("%v is let through", p)
			}
		}
	})
}

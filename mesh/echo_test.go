// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"
)

func TestEchoes(t *testing.T) {
	var e echoes
	now := time.Now()
	thing := func(i int) []byte { return binary.BigEndian.AppendUint32([]byte("thing"), uint32(i)) }
	expect := func(i int, at time.Duration, want bool) {
		t.Helper()
		if got := e.note(thing(i), now.Add(at)); got != want {
			t.Errorf("%d after %v: %v", i, at, got)
		}
	}
	e.forget(thing(0))
	expect(1, 0, false)
	expect(1, 0, true)
	expect(2, echoMemory-1, false)
	expect(1, echoMemory, true)
	expect(2, 2*echoMemory-1, true)
	expect(1, 2*echoMemory, false) // memory is that long at least, and twice that at most
	expect(1, 9*echoMemory, false)
	e.forget(thing(1))
	expect(1, 9*echoMemory, false)
	for i := range 10 * maxEchoes {
		expect(100+i, 9*echoMemory, false)
		if i >= maxEchoes {
			expect(100+i-maxEchoes+1, 9*echoMemory, true)
		}
	}
	if n := len(e.now) + len(e.before); n > 2*maxEchoes {
		t.Errorf("%d are remembered", n)
	}
	expect(1, 9*echoMemory, false)
}

// What comes a second time is not taken in again, unless there was no room for it the first time.
func TestEchoIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		m, err := New(c.node().cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := m.Stop(t.Context(), false); err != nil {
				t.Error(err)
			}
		}()
		word := func(node string) []byte { return append([]byte{memberAlive}, packed("Node", node)...) }
		alive := word("somebody")
		for _, one := range []struct {
			b    []byte
			want int
		}{{alive, 1}, {alive, 0}, {[]byte{0, 1}, 1}, {[]byte{0, 1}, 1}, {compound([][]byte{alive, {0, 1}}), 1}, {word("somebodys"), 1}} {
			m.transport.deliver(one.b, 5, time.Now())
			if n := len(m.transport.packets); n != one.want {
				t.Errorf("%q: %d packets for memberlist, not %d", one.b, n, one.want)
			}
			for len(m.transport.packets) > 0 {
				if p := <-m.transport.packets; len(p.Buf) > len(alive)+1 {
					t.Errorf("%q for memberlist", p.Buf)
				}
			}
		}
		for range packetQueue {
			m.transport.deliver([]byte{0, 1}, 5, time.Now())
		}
		last := word("somebodylast")
		m.transport.deliver(last, 5, time.Now())
		for len(m.transport.packets) > 0 {
			<-m.transport.packets
		}
		m.transport.deliver(last, 5, time.Now())
		if n := len(m.transport.packets); n != 1 {
			t.Errorf("what there was no room for is lost: %d packets", n)
		}
		for i := range mergeQueue {
			m.takeChange(binary.BigEndian.AppendUint32(nil, uint32(i)), 5)
		}
		m.takeChange([]byte("more"), 5)
		for len(m.merges) > 0 {
			<-m.merges
		}
		for range 2 {
			m.takeChange([]byte("more"), 5)
		}
		if n := len(m.merges); n != 1 {
			t.Errorf("%d of a change that came twice, the first time when there was no room", n)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestChangesOnePacket(t *testing.T) {
	all := [][]byte{[]byte("a"), bytes.Repeat([]byte("b"), maxGossip), []byte("cc")}
	b := encodeChanges(all)
	var got [][]byte
	if err := decodeChanges(b, func(c []byte) { got = append(got, c) }); err != nil || !slices.EqualFunc(got, all, bytes.Equal) {
		t.Errorf("%d changes, %v", len(got), err)
	}
	for n := 1; n < len(b); n++ {
		whole := n == changeHead+1 || n == 2*changeHead+1+maxGossip
		if err := decodeChanges(b[:n], func([]byte) {}); (err == nil) != whole {
			t.Errorf("%d of %d bytes: %v", n, len(b), err)
		}
	}
}

func FuzzChanges(f *testing.F) {
	f.Add(encodeChanges([][]byte{[]byte("one"), []byte("two")}))
	f.Add([]byte{0, 0})
	f.Add([]byte{255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var all [][]byte
		size := 0
		err := decodeChanges(b, func(c []byte) {
			all = append(all, c)
			size += changeHead + len(c)
		})
		if size > len(b) || err == nil && !bytes.Equal(encodeChanges(all), b) {
			t.Fatalf("%d bytes out of %d, %v", size, len(b), err)
		}
	})
}

// What changed while nobody was alive is told to whoever comes first.
func TestChangesWaitForSomebody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 91)
		a, b := c.node().start(), c.node("n1").start()
		c.eventually(2*time.Second, "whole", whole(a, b))
		b.host.Dark(true)
		c.eventually(time.Minute, "alone", func() bool { return a.status(b) == Failed })
		a.add("late")
		b.host.Dark(false)
		c.eventually(time.Minute, "it is told", func() bool { return b.bag.has("late") })
	})
}

// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/rand"
	"errors"
	"io"
	mrand "math/rand/v2"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestIndexTableAgainstMap runs the table beside a map.
func TestIndexTableAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table indexTable
		table.init()
		src := mrand.NewChaCha8([32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seed")))
		golden := map[uint32]*indexEntry{}
		var known []uint32
		pick := func() uint32 {
			if len(known) == 0 || rapid.IntRange(0, 9).Draw(t, "stranger") == 0 {
				return rapid.Uint32().Draw(t, "index")
			}
			return rapid.SampledFrom(known).Draw(t, "index")
		}
		t.Repeat(map[string]func(*rapid.T){
			"reserve": func(t *rapid.T) {
				for range rapid.IntRange(1, 60).Draw(t, "n") {
					p := &Peer{}
					i, err := table.reserve(src, p)
					if err != nil {
						t.Fatal(err)
					}
					if golden[i] != nil {
						t.Fatalf("index %x was given out twice", i)
					}
					golden[i] = &indexEntry{index: i, peer: p}
					known = append(known, i)
				}
			},
			"publish": func(*rapid.T) {
				i := pick()
				k := &Keypair{local: i, peer: &Peer{}}
				table.publish(k)
				if e := golden[i]; e != nil {
					golden[i] = &indexEntry{index: i, peer: k.peer, keypair: k}
				}
			},
			"remove": func(*rapid.T) {
				i := pick()
				table.remove(i)
				delete(golden, i)
			},
			"": func(t *rapid.T) {
				for _, i := range known {
					got, want := table.get(i), golden[i]
					if (got == nil) != (want == nil) || got != nil && *got != *want {
						t.Fatalf("index %x: %v, want %v", i, got, want)
					}
				}
				if table.used != len(golden) || len(table.slots.Load().place) < 2*len(golden) {
					t.Fatalf("%d entries in %d places, want %d", table.used, len(table.slots.Load().place), len(golden))
				}
			},
		})
	})
}

func TestIndexTableNoRandomness(t *testing.T) {
	var table indexTable
	table.init()
	if _, err := table.reserve(strings.NewReader(""), &Peer{}); !errors.Is(err, io.EOF) {
		t.Errorf("error: %v", err)
	}
	if table.used != 0 {
		t.Errorf("%d entries", table.used)
	}
}

// TestIndexTableConcurrent: an index that stays is found while others come and go.
func TestIndexTableConcurrent(t *testing.T) {
	var table indexTable
	table.init()
	stay := &Peer{}
	index, err := table.reserve(rand.Reader, stay)
	must(t, err)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			var mine []uint32
			for range 2000 {
				i, err := table.reserve(rand.Reader, &Peer{})
				if err != nil {
					t.Error(err)
					return
				}
				mine = append(mine, i)
			}
			for _, i := range mine {
				table.remove(i)
			}
		})
		wg.Go(func() {
			for range 100_000 {
				if e := table.get(index); e == nil || e.peer != stay {
					t.Error("lost the entry that stays")
					return
				}
			}
		})
	}
	wg.Wait()
	if table.used != 1 {
		t.Errorf("%d entries are left, want 1", table.used)
	}
}

// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"maps"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Elements are read as the library reads them.
func TestReadSet(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Plain = plain()
	h.apply(t, d)
	c := h.connection(t)
	out := nftables.Set{Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}, Name: "out4"}
	before, err := c.GetSetElements(&out)
	must(t, err)
	must(t, c.SetDeleteElements(&out, before[:1]))
	must(t, c.SetAddElements(&out, before[:1]))
	must(t, c.Flush())
	for _, set := range append(plainSets(), setKind{name: "discovery"}) {
		list, err := c.GetSetElements(&nftables.Set{Table: out.Table, Name: set.name})
		must(t, err)
		want := map[element]uint64{}
		for _, e := range list {
			want[element{string(e.Key), string(e.KeyEnd)}] = counted(e.Counter)
		}
		got, err := readSet(h.ns, set.name)
		if err != nil || !maps.Equal(got, want) || len(got) == 0 && set.name[:3] != "seg" && set.lasting == 0 {
			t.Errorf("%s: %v, want %v, %v", set.name, got, want, err)
		}
	}
	if _, err := readSet(h.ns, "absent"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a set that is not there: %v", err)
	}
}

func counted(c *expr.Counter) uint64 {
	if c == nil {
		return 0
	}
	return c.Packets
}

func TestReadElementsRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"cut in the header":    {8, 0, 3},
		"of no length":         {0, 0, 3, 0},
		"longer than is there": {9, 0, 3, 0, 1, 2, 3, 4},
		"an element cut off":   {10, 0, 3, 0, 9, 0, 1, 0, 1, 1, 0, 0},
		"a count of 4 bytes":   {24, 0, 3, 0, 20, 0, 1, 0, 16, 0, 7, 0, 12, 0, 2, 0, 8, 0, 2, 0, 1, 2, 3, 4},
	} {
		if readElements(b, map[element]uint64{}) {
			t.Errorf("%s: taken", name)
		}
	}
	got := map[element]uint64{}
	whole := []byte{
		44, 0, 3, 0, 40, 0, 1, 0,
		12, 0, 1, 0, 8, 0, 1, 0, 'k', 'e', 'y', '4',
		24, 0, 7, 0, 20, 0, 2, 0, 12, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 0, 9, 0,
	}
	if !readElements(whole, got) || len(got) != 1 || got[element{key: "key4"}] != 258 {
		t.Errorf("got %v", got)
	}
}

func FuzzReadElements(f *testing.F) {
	f.Add([]byte{8, 0, 3, 0, 4, 0, 1, 0})
	f.Add([]byte{20, 0, 3, 0, 16, 0, 1, 0, 12, 0, 1, 0, 8, 0, 1, 0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		all := map[element]uint64{}
		readElements(b, all)
		if len(all) > len(b) {
			t.Errorf("%d elements of %d bytes", len(all), len(b))
		}
	})
}

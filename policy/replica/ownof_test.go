// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// OwnOf, told which keys have changed, comes to the same as Own of all there is.
func TestOwnOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all, some, other := New(1, 1, roomy()), New(1, 1, roomy()), New(2, 1, roomy())
		values := map[string][]byte{}
		key := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("k", rapid.IntRange(0, 9).Draw(t, "key")) })
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "elsewhere") == 0 { // which has items of the same keys
				if _, _, err := other.Own(map[string][]byte{key.Draw(t, "theirs"): []byte("theirs")}); err != nil {
					t.Fatal(err)
				}
				for _, s := range []*Set{all, some} {
					if _, _, err := s.Merge(other.Encode(), nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			changed := map[string]bool{}
			for range rapid.IntRange(0, 4).Draw(t, "changes") {
				k := key.Draw(t, "changed")
				changed[k] = true
				if v := rapid.IntRange(0, 3).Draw(t, "value"); v == 0 {
					delete(values, k)
				} else {
					values[k] = fmt.Append(nil, v)
				}
			}
			of := maps.Clone(values)
			maps.DeleteFunc(of, func(k string, _ []byte) bool { return !changed[k] })
			delta, touched, err := all.Own(values)
			delta2, touched2, err2 := some.OwnOf(slices.Sorted(maps.Keys(changed)), of)
			if err != nil || err2 != nil || string(delta) != string(delta2) || !slices.Equal(touched, touched2) {
				t.Fatalf("%x, %q, %v; of some %x, %q, %v", delta, touched, err, delta2, touched2, err2)
			}
			if all.Digest() != some.Digest() {
				t.Fatalf("%v\nof some %v", all.Items(), some.Items())
			}
		}
		if all.Disturbed()+some.Disturbed() > 0 {
			t.Error("nobody has changed what this node has written")
		}
	})
}

// What others change of this node's is noticed: only Own, of all, puts it right.
func TestDisturbed(t *testing.T) {
	a := New(1, 1, roomy())
	if _, _, err := a.Own(map[string][]byte{"x": []byte("1")}); err != nil {
		t.Fatal(err)
	}
	b := New(1, 1, roomy()) // the same node, with an earlier disk
	if _, _, err := b.Own(map[string][]byte{"y": []byte("2")}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Merge(b.Encode(), nil); err != nil {
		t.Fatal(err)
	}
	if a.Disturbed() != 1 {
		t.Errorf("disturbed %d times", a.Disturbed())
	}
	if changed := a.Prune(func(w uint64) bool { return w == 1 }); len(changed) == 0 || a.Disturbed() != 2 {
		t.Errorf("%q are gone, disturbed %d times", changed, a.Disturbed())
	}
}

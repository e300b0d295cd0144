// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestBacklogClear(t *testing.T) {
	run := t.TempDir()
	b := NewBacklog(run)
	if removed, err := b.Clear(); err != nil || removed != nil {
		t.Errorf("nothing is there: %v, %v", removed, err)
	}
	one, two := release("a"), release("b")
	for _, r := range []Release{one, two} {
		if err := b.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(run, backlogDir)
	ours := []string{filepath.Join(dir, newEntry), filepath.Join(dir, entryName(one)), filepath.Join(dir, entryName(two)), filepath.Join(dir, entryName(one)+asideSuffix)}
	theirs := filepath.Join(dir, "abcd")
	for _, path := range []string{ours[0], ours[3], theirs} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := b.Clear()
	slices.Sort(ours)
	if slices.Sort(removed); err != nil || !slices.Equal(removed, ours) {
		t.Errorf("%v: removed %v, not %v", err, removed, ours)
	}
	if err := os.Remove(theirs); err != nil {
		t.Error(err)
	}
	if removed, err := b.Clear(); err != nil || !slices.Equal(removed, []string{dir}) {
		t.Errorf("an empty directory: %v, %v", removed, err)
	}
	if entries, err := os.ReadDir(run); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package dirs

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMakeAndRemove(t *testing.T) {
	root := t.TempDir()
	deep := filepath.Join(root, "a", "b", "c")
	made, err := Make(deep)
	if err != nil || len(made) != 3 {
		t.Fatalf("made %v, %v", made, err)
	}
	if again, err := Make(deep); err != nil || len(again) != 0 {
		t.Errorf("made again: %v, %v", again, err)
	}
	file := filepath.Join(root, "a", "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	made.Remove()
	if _, err := os.Stat(filepath.Join(root, "a", "b")); err == nil {
		t.Error("an empty directory stayed")
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("something that was not made here is gone: %v", err)
	}
	_, err = Make(filepath.Join(file, "x", "y"))
	want := "directory " + filepath.Join(file, "x", "y") + " cannot be made: not a directory"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// SPDX-License-Identifier: Apache-2.0

package token

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func fresh(t *testing.T, n int) (ts []Token) {
	t.Helper()
	for range n {
		tok, err := New(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ts = append(ts, tok)
	}
	return ts
}

func TestKeptRoundTrip(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadKept(dir); !Missing(err) {
		t.Fatalf("an empty directory: %v", err)
	}
	ts := fresh(t, 4)
	for i, k := range []Kept{
		{Send: ts[0]},
		{Send: ts[0], Next: ts[1:2]},
		{Send: ts[1], Old: ts[:1]},
		{Send: ts[1], Next: ts[2:3], Old: []Token{ts[0], ts[3]}},
		{Send: ts[2], Old: []Token{ts[0], ts[1], ts[3]}},
		{Send: ts[2]},
	} {
		for range 2 { // the second time does nothing
			if err := WriteKept(dir, k); err != nil {
				t.Fatal(err)
			}
			got, err := ReadKept(dir)
			if err != nil {
				t.Fatal(err)
			}
			if !got.Send.Equal(k.Send) || !sameTokens(got.Next, k.Next) || !sameTokens(got.Old, k.Old) {
				t.Fatalf("step %d: what was written is not what is read", i)
			}
		}
		for _, path := range Files(dir) {
			if st, err := os.Stat(path); err == nil && st.Mode() != 0o600 {
				t.Errorf("%s has mode %v", path, st.Mode())
			}
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != FileName {
		t.Errorf("in the end there are %v, %v", left, err)
	}
}

// TestKeptAfterCrash cuts each change short at every place where it touches the disk, by a file that cannot be written, and
// looks at what is left: nothing that was there before and is to be there after is missing, and the change can be completed.
func TestKeptAfterCrash(t *testing.T) {
	ts := fresh(t, 4)
	states := []Kept{
		{Send: ts[0]},
		{Send: ts[0], Next: ts[1:2]},
		{Send: ts[1], Old: ts[:1]},
		{Send: ts[1]},
		{Send: ts[1], Next: ts[2:3], Old: []Token{ts[0], ts[3]}},
		{Send: ts[2], Old: []Token{ts[0], ts[1], ts[3]}},
	}
	for _, from := range states {
		for _, to := range states {
			for _, blocked := range []string{FileName, nextName, oldName} {
				dir := t.TempDir()
				if err := WriteKept(dir, from); err != nil {
					t.Fatal(err)
				}
				// A directory in the place of the unfinished file, with something in it, cannot be removed.
				stone := filepath.Join(dir, blocked+UnfinishedSuffix)
				if err := os.MkdirAll(filepath.Join(stone, "x"), 0o700); err != nil {
					t.Fatal(err)
				}
				err := WriteKept(dir, to)
				if err != nil && !strings.Contains(err.Error(), "make room there, or make it writable, and try again") {
					t.Errorf("the error does not say what to do: %v", err)
				}
				got, rerr := ReadKept(dir)
				if rerr != nil {
					t.Fatal(rerr)
				}
				if !got.Send.Equal(from.Send) && !got.Send.Equal(to.Send) {
					t.Fatal("after the crash a third token is sent under")
				}
				for _, tok := range from.All() {
					if slices.ContainsFunc(to.All(), tok.Equal) && !slices.ContainsFunc(got.All(), tok.Equal) {
						t.Fatalf("a token was lost with %s blocked", blocked)
					}
				}
				if err := os.RemoveAll(stone); err != nil {
					t.Fatal(err)
				}
				if err := WriteKept(dir, to); err != nil {
					t.Fatal(err)
				}
				if got, err = ReadKept(dir); err != nil || !got.Send.Equal(to.Send) || !sameTokens(got.Next, to.Next) || !sameTokens(got.Old, to.Old) {
					t.Fatalf("the change was not completed: %v", err)
				}
			}
		}
	}
}

func TestKeptRefuses(t *testing.T) {
	dir := t.TempDir()
	ts := fresh(t, maxRead+1)
	if err := WriteKept(dir, Kept{Send: ts[0]}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, oldName)
	var many strings.Builder
	for _, tok := range ts {
		many.WriteString(tok.Reveal() + "\n")
	}
	for text, want := range map[string]string{
		"weft-rubbish\n": "token file " + path + ": what was given is not a Weft token (12 characters, not 45); copy it whole from `weft token --raw` on a node of the mesh",
		many.String(): "token file " + path + " holds more than 18 tokens; put the one that another node's `weft token --raw` prints into " +
			filepath.Join(dir, FileName) + ", and remove it",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadKept(dir); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestIDsDiffer(t *testing.T) {
	seen := map[ID]bool{}
	for _, tok := range fresh(t, 200) {
		id, err := tok.ID()
		if err != nil || id == 0 || seen[id] {
			t.Fatalf("id %v, %v", id, err)
		}
		seen[id] = true
	}
	if id, err := fixed(t).ID(); err != nil || id.String() == "00000000" || len(id.String()) != 8 {
		t.Errorf("id %v, %v", id, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package token

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func fixed(t *testing.T) Token {
	t.Helper()
	tok, err := New(bytes.NewReader(bytes.Repeat([]byte{7}, secretSize)))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestRoundTrip(t *testing.T) {
	for range 100 {
		tok, err := New(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse("  " + tok.Reveal() + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if !got.Equal(tok) {
			t.Fatalf("parse(reveal) differs for %s", tok.Reveal())
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := fixed(t).Reveal()
	changed := []byte(good)
	if changed[9] == 'q' {
		changed[9] = 'r'
	} else {
		changed[9] = 'q'
	}
	for name, c := range map[string]struct{ in, want string }{
		"empty":     {"", `what was given is not a Weft token (it does not begin with "weft-"); copy it from ` + "`weft token --raw` on a node of the mesh"},
		"short":     {good[:20], "what was given is not a Weft token (20 characters, not 45); copy it whole from `weft token --raw` on a node of the mesh"},
		"character": {good[:44] + "!", "what was given is not a Weft token (it has a character no token has); copy it from `weft token --raw` on a node of the mesh"},
		"changed":   {string(changed), "what was given is not a Weft token (its checksum is wrong: a character was changed); copy it from `weft token --raw` on a node of the mesh"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(c.in)
			if !errors.Is(err, ErrFormat) || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestNeverPrinted(t *testing.T) {
	tok := fixed(t)
	secret := strings.TrimPrefix(tok.Reveal(), prefix)
	j, err := json.Marshal(map[string]any{"token": tok, "pointer": &tok})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(tok), fmt.Sprintf("%v %+v %#v %s", tok, tok, tok, tok), fmt.Sprintf("%v", struct{ T Token }{tok}), string(j)} {
		if strings.Contains(s, secret) || strings.Contains(s, "7 7 7") {
			t.Errorf("secret shown in %q", s)
		}
	}
}

func TestKeysDiffer(t *testing.T) {
	a, err := fixed(t).Keys()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[32]byte]bool{a.Gossip: true, a.Hello: true, a.Preshared: true, a.Control: true}
	if len(seen) != 4 {
		t.Error("two labels gave the same key")
	}
	b, err := fixed(t).Keys()
	if err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Error("the same token gave different keys")
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "token")
	tok := fixed(t)
	_, err := ReadFile(path)
	want := "token file " + path + " does not exist; write into it what `weft token --raw` prints on a node of the mesh, with mode 0600"
	if !Missing(err) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if err := os.WriteFile(path+UnfinishedSuffix, []byte("left by a crash"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, tok); err != nil {
		t.Fatal(err)
	}
	got, err := ReadFile(path)
	if err != nil || !got.Equal(tok) {
		t.Fatalf("read back: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = ReadFile(path)
	want = "token file " + path + " may be read by others (mode 0640); run: chmod 600 " + path
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := ReadFile(dir); err == nil || !strings.Contains(err.Error(), "is no regular file") {
		t.Errorf("a directory: %v", err)
	}
	left, err := filepath.Glob(path + UnfinishedSuffix)
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files left: %v %v", left, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("weft-")
	f.Add("weft-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := Parse(s)
		if err == nil && tok.Reveal() != strings.TrimSpace(s) {
			t.Errorf("%q parsed to another token", s)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

// Package token holds the mesh's one secret. A token is made once, by the node
// that founds a mesh, and whoever holds it may join; every key that the mesh
// needs is derived from it.
//
// Invariants: a token has 160 bits of randomness and a checksum, so that a
// mistyped one is told apart from a wrong one before anything is sent; it is
// never printed by accident (String hides it) and never read from a file that
// others may read. The package is pure but for what reads and writes files.
// The command line, internal/rotation, internal/kube and
// internal/node import it.
package token

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	prefix      = "weft-"
	secretSize  = 20
	checkSize   = 5
	encodedSize = (secretSize + checkSize) * 8 / 5
)

// ErrFormat says that a string is not a token.
var ErrFormat = errors.New("is not a Weft token")

// Token is the secret of one mesh. The zero value is no token.
type Token struct {
	secret [secretSize]byte
	set    bool
}

// Keys are the keys derived from a token by HKDF-SHA256 (RFC 5869), each under
// its own label, so that none tells anything about another.
type Keys struct {
	Gossip    [32]byte // AES-256-GCM key of gossip packets and streams
	Hello     [32]byte // HMAC key of the hello that opens a gossip stream
	Preshared [32]byte // pre-shared key of the data path's handshakes
	Control   [32]byte // secret of the seal of control datagrams
	Rotation  [32]byte // HMAC key of what is said of the rotation to this token
}

// New makes a token from 20 bytes of rand.
func New(rand io.Reader) (Token, error) {
	t := Token{set: true}
	if _, err := io.ReadFull(rand, t.secret[:]); err != nil {
		return Token{}, fmt.Errorf("making a token: %w", err)
	}
	return t, nil
}

// Parse reads a token as [Token.Reveal] writes it; surrounding white space is
// ignored. It fails with an error that wraps [ErrFormat].
func Parse(s string) (Token, error) {
	s = strings.TrimSpace(s)
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return Token{}, fmt.Errorf("what was given %w (it does not begin with %q); copy it from `weft token --raw` on a node of the mesh", ErrFormat, prefix)
	}
	if len(rest) != encodedSize {
		return Token{}, fmt.Errorf("what was given %w (%d characters, not %d); copy it whole from `weft token --raw` on a node of the mesh",
			ErrFormat, len(s), len(prefix)+encodedSize)
	}
	raw, err := encoding().DecodeString(rest)
	if err != nil {
		return Token{}, fmt.Errorf("what was given %w (it has a character no token has); copy it from `weft token --raw` on a node of the mesh", ErrFormat)
	}
	t := Token{set: true}
	copy(t.secret[:], raw)
	sum := t.checksum()
	if subtle.ConstantTimeCompare(sum[:], raw[secretSize:]) != 1 {
		return Token{}, fmt.Errorf("what was given %w (its checksum is wrong: a character was changed); copy it from `weft token --raw` on a node of the mesh", ErrFormat)
	}
	return t, nil
}

// ReadFile reads the token in the file at path. It refuses a file that anyone
// but its owner may read or write. A missing file is fs.ErrNotExist.
func ReadFile(path string) (Token, error) {
	b, err := readFile(path)
	if err != nil {
		return Token{}, err
	}
	t, err := Parse(string(b))
	if err != nil {
		return Token{}, fmt.Errorf("token file %s: %w", path, err)
	}
	return t, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(filepath.Clean(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("token file %s %w; write into it what `weft token --raw` prints on a node of the mesh, with mode 0600", path, missing{})
	}
	if err != nil {
		return nil, fmt.Errorf("token file cannot be read: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("token file cannot be read: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("token file %s is no regular file; name the file that holds the token", path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("token file %s may be read by others (mode %04o); run: chmod 600 %s", path, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return nil, fmt.Errorf("token file cannot be read: %w", err)
	}
	return b, nil
}

// UnfinishedSuffix ends the name of the file that WriteFile renames at last; one
// that a crash left behind may be removed.
const UnfinishedSuffix = ".new"

// WriteFile puts the token into the file at path with mode 0600, atomically and
// durably: after a crash the file holds the old token or the new one.
func WriteFile(path string, t Token) error {
	if err := writeFile(path, t.Reveal()+"\n"); err != nil {
		return fmt.Errorf("writing the token to %s: %w; make room there, or make it writable, and try again", path, err)
	}
	return nil
}

func writeFile(path, text string) error {
	unfinished := path + UnfinishedSuffix
	if err := os.Remove(unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(filepath.Clean(unfinished), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(text); err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(unfinished, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(unfinished))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(filepath.Clean(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// missing is fs.ErrNotExist in plain words.
type missing struct{}

func (missing) Error() string        { return "does not exist" }
func (missing) Is(target error) bool { return target == fs.ErrNotExist }

// Missing tells whether err means that there is no token file.
func Missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// IsZero tells whether t is no token.
func (t Token) IsZero() bool { return !t.set }

// Equal compares two tokens in constant time.
func (t Token) Equal(o Token) bool {
	return t.set == o.set && subtle.ConstantTimeCompare(t.secret[:], o.secret[:]) == 1
}

// Reveal returns the token as text, for its file or for the user who asked to
// see it; nothing else may call it.
func (t Token) Reveal() string {
	sum := t.checksum()
	return prefix + encoding().EncodeToString(append(t.secret[:], sum[:]...))
}

// String hides the secret.
func (t Token) String() string { return "(hidden)" }

// GoString hides the secret.
func (t Token) GoString() string { return "token.Token(hidden)" }

// MarshalText hides the secret from encoders.
func (t Token) MarshalText() ([]byte, error) { return []byte("(hidden)"), nil }

// Keys derives the keys of the mesh.
func (t Token) Keys() (Keys, error) {
	var k Keys
	for _, d := range []struct {
		label string
		key   *[32]byte
	}{
		{"weft v1 gossip", &k.Gossip},
		{"weft v1 hello", &k.Hello},
		{"weft v1 handshake", &k.Preshared},
		{"weft v1 control", &k.Control},
		{"weft v1 rotation", &k.Rotation},
	} {
		b, err := hkdf.Key(sha256.New, t.secret[:], []byte("weft token v1"), d.label, len(d.key))
		if err != nil {
			return Keys{}, fmt.Errorf("deriving the mesh's keys: %w", err)
		}
		copy(d.key[:], b)
	}
	return k, nil
}

func (t Token) checksum() [checkSize]byte {
	h := sha256.New()
	h.Write([]byte("weft token checksum"))
	h.Write(t.secret[:])
	return [checkSize]byte(h.Sum(nil)[:checkSize])
}

func encoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

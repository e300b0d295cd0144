// SPDX-License-Identifier: Apache-2.0

package envelope

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// salt separates these keys from all others that are derived from a token.
const salt = "weft control datagram v1"

// Key seals and opens. The zero value is none. It prints as its ID, whatever the verb.
type Key struct {
	id   uint32
	aead cipher.AEAD
}

// NewKey derives a key and its ID from a secret of the mesh's token, by HKDF-SHA256 (RFC 5869). It fails only where the program is
// restricted to other ciphers than ChaCha20 (FIPS 140).
func NewKey(secret [32]byte) (Key, error) {
	derived, err := hkdf.Key(sha256.New, secret[:], []byte(salt), "key", chacha20poly1305.KeySize)
	if err != nil {
		return Key{}, fmt.Errorf("deriving the key of control datagrams: %w", err)
	}
	id, err := hkdf.Key(sha256.New, secret[:], []byte(salt), "key id", 4)
	if err != nil {
		return Key{}, fmt.Errorf("deriving the key ID of control datagrams: %w", err)
	}
	aead, err := chacha20poly1305.NewX(derived)
	if err != nil {
		return Key{}, fmt.Errorf("making the cipher of control datagrams: %w", err)
	}
	return Key{id: binary.BigEndian.Uint32(id), aead: aead}, nil
}

// ID returns the key's ID, which is public.
func (k Key) ID() uint32 { return k.id }

// Valid tells whether k is a key.
func (k Key) Valid() bool { return k.aead != nil }

// String returns the ID in hexadecimal.
func (k Key) String() string { return fmt.Sprintf("%08x", k.id) }

// Format writes what String returns for every verb and flag.
func (k Key) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, k.String()) }

// Keyring has the keys of a node. The zero value neither seals nor opens.
type Keyring struct {
	Primary Key   // seals, and opens
	Accept  []Key // open too
}

// IDs returns the IDs of the keys that open.
func (r *Keyring) IDs() []uint32 {
	var ids []uint32
	for _, k := range append([]Key{r.Primary}, r.Accept...) {
		if k.Valid() {
			ids = append(ids, k.id)
		}
	}
	return ids
}

// Seal appends a datagram with that header and body to dst, which must not overlap body, and returns it. The nonce comes from rand, which must
// be a cryptographic source. The ID of the key is put into the header. Errors are ErrKey without a primary key, ErrSize for a body longer
// than MaxBody, ErrVersion or ErrRoute for a header that Parse would refuse, and those of rand; then nothing has been appended. It does not
// allocate if dst has room for MaxSize bytes more.
func (r *Keyring) Seal(dst []byte, h Header, body []byte, rand io.Reader) ([]byte, error) {
	if !r.Primary.Valid() {
		return dst, ErrKey
	}
	if len(body) > MaxBody {
		return dst, ErrSize
	}
	if err := h.check(); err != nil {
		return dst, err
	}
	h.Key = r.Primary.id
	start := len(dst)
	b := h.appendTo(dst)
	end := len(b)
	for range nonceSize / 8 {
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	nonce := b[end:]
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return dst, fmt.Errorf("making the nonce of a control datagram: %w", err)
	}
	b = r.Primary.aead.Seal(b, nonce, body, b[start:end])
	b[start+3] = h.At
	return b, nil
}

// Open opens the datagram b, appends its body to dst, which must not overlap b, and returns its header and the body. A holder of the token has made all of
// it but At. Errors are those of Parse, ErrKey if no key has the ID, and ErrAuth. b is as it was when Open returns, but may not be read
// meanwhile. It does not allocate if dst has room for the body.
func (r *Keyring) Open(dst, b []byte) (h Header, body []byte, err error) {
	if h, err = Parse(b); err != nil {
		return Header{}, nil, err
	}
	b[3] = 0
	body, err = r.open(dst, b, &h)
	b[3] = h.At
	if err != nil {
		return Header{}, nil, err
	}
	return h, body, nil
}

// open tries the keys with the ID of the header; two may have the same.
func (r *Keyring) open(dst, b []byte, h *Header) ([]byte, error) {
	header, rest := b[:h.size()], b[h.size():]
	err := ErrKey
	for i := -1; i < len(r.Accept); i++ {
		k := r.Primary
		if i >= 0 {
			k = r.Accept[i]
		}
		if !k.Valid() || k.id != h.Key {
			continue
		}
		out, bad := k.aead.Open(dst, rest[:nonceSize], rest[nonceSize:], header)
		if bad == nil {
			return out[len(dst):], nil
		}
		err = ErrAuth
	}
	return nil, err
}

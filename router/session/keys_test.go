// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// RFC 7748 §6.1.
func TestPublicKnownAnswer(t *testing.T) {
	var k PrivateKey
	b, err := hex.DecodeString("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
	must(t, err)
	copy(k[:], b)
	const want = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
	if got := k.Public(); hex.EncodeToString(got[:]) != want {
		t.Fatalf("public key of RFC 7748's Bob: %x, want %s", got[:], want)
	}
}

func TestNewPrivateKey(t *testing.T) {
	k, err := NewPrivateKey(bytes.NewReader(bytes.Repeat([]byte{0xff}, 32)))
	must(t, err)
	if k[0] != 0xf8 || k[31] != 0x7f {
		t.Errorf("not clamped: %02x..%02x", k[0], k[31])
	}
	if _, err := NewPrivateKey(strings.NewReader("short")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short randomness: %v", err)
	}
}

func TestParsePublicKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := PublicKey(rapid.SliceOfN(rapid.Byte(), KeySize, KeySize).Draw(t, "key"))
		got, err := ParsePublicKey(k.String())
		if err != nil || got != k {
			t.Fatalf("%v: %v, %v", k, got, err)
		}
		b, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		var back PublicKey
		if err := json.Unmarshal(b, &back); err != nil || back != k {
			t.Fatalf("%s: %v, %v", b, back, err)
		}
	})
	for _, s := range []string{"", "x", "AAAA", strings.Repeat("A", 44), strings.Repeat("A", 42) + "B=", strings.Repeat("A", 43) + "=\n" + "A"} {
		if k, err := ParsePublicKey(s); !errors.Is(err, ErrKey) || k != (PublicKey{}) {
			t.Errorf("%q: %v, %v", s, k, err)
		}
		k := PublicKey{1}
		if err := k.UnmarshalText([]byte(s)); !errors.Is(err, ErrKey) || k != (PublicKey{1}) {
			t.Errorf("unmarshal %q: %v, %v", s, k, err)
		}
	}
}

// TestSecretsNeverPrint looks for the secret in every form that a careless print could give it.
func TestSecretsNeverPrint(t *testing.T) {
	private := newKey(t)
	psk := PresharedKey(newKey(t))
	remote := newKey(t)
	m := newMachine(t, private)
	p := addPeer(t, m, PeerConfig{Public: remote.Public(), Preshared: psk})
	_ = initiation(t, p, epoch)
	session, _ := newDuo(t, Weft, Weft).shake(t, epoch)

	type nested struct {
		Name    string
		Private PrivateKey
		Config  PeerConfig
	}
	type careless struct {
		m *Machine
		p *Peer
	}
	values := []any{
		private, &private, psk, &psk,
		[]PrivateKey{private},
		map[string]PresharedKey{"k": psk},
		Config{Private: private, Rand: rand.Reader},
		PeerConfig{Preshared: psk},
		nested{Private: private, Config: PeerConfig{Preshared: psk}},
		m, p, session,
		careless{m, p},
		m.own, p.preshared, *p.preshared[0], fmt.Errorf("wrapped %v %x", private, psk[:0]),
	}
	var out bytes.Buffer
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%08b", "%c"} {
			_, _ = fmt.Fprintf(&out, verb+"\n", v)
		}
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
	}
	text := strings.ToLower(out.String())
	for _, secret := range [][32]byte{private, psk} {
		decimal := strings.Trim(fmt.Sprintf("%d", secret[:]), "[]")
		for _, form := range []string{
			hex.EncodeToString(secret[:]),
			strings.ToLower(base64.StdEncoding.EncodeToString(secret[:]))[:40],
			decimal, strings.ReplaceAll(decimal, " ", ","), string(secret[:]),
			strings.Trim(fmt.Sprintf("%#v", secret[:]), "[]byte{}"),
		} {
			if strings.Contains(text, strings.ToLower(form)) {
				t.Errorf("secret shows as %q", form)
			}
		}
	}
	if !strings.Contains(text, hidden) {
		t.Error("secrets do not show as hidden")
	}
	if got := private.String() + psk.String(); got != hidden+hidden {
		t.Errorf("String: %s", got)
	}
}

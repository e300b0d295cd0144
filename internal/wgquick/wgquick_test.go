// SPDX-License-Identifier: Apache-2.0

package wgquick_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"image"
	"image/color"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/makiuchi-d/gozxing"
	"github.com/makiuchi-d/gozxing/qrcode"
	"golang.org/x/crypto/curve25519"

	"github.com/weftnet/weft/internal/wgquick"
)

// full is a configuration with everything, at its usual length.
func full() wgquick.Config {
	key := func(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }
	return wgquick.Config{
		Comment: "for people", PrivateKey: key('p'), PublicKey: key('q'),
		Addresses: []netip.Addr{netip.MustParseAddr("10.32.255.254"), netip.MustParseAddr("fd57:6566:7400::f:fffe")},
		DNS:       []netip.Addr{netip.MustParseAddr("10.32.0.53"), netip.MustParseAddr("fd57:6566:7400::35")},
		MTU:       1280, NodeKey: key('n'), PresharedKey: key('s'),
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd57:6566:7400::/108")},
		Endpoint:   "[2001:db8:1234:5678:9abc:def0:1234:5678]:51820", Keepalive: 25 * time.Second,
	}
}

func TestText(t *testing.T) {
	const want = `# for people
[Interface]
PrivateKey = cHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHA=
Address = 10.32.255.254/32, fd57:6566:7400::f:fffe/128
DNS = 10.32.0.53, fd57:6566:7400::35
MTU = 1280

[Peer]
PublicKey = bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4=
PresharedKey = c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M=
AllowedIPs = 10.32.0.0/12, fd57:6566:7400::/108
Endpoint = [2001:db8:1234:5678:9abc:def0:1234:5678]:51820
PersistentKeepalive = 25
`
	if got := full().Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	c := full()
	c.Comment, c.PrivateKey, c.DNS, c.MTU, c.Keepalive, c.Addresses = "", "", nil, 0, 0, c.Addresses[:1]
	const sparse = `[Interface]
# put here the private key that belongs to the public key cXFxcXFxcXFxcXFxcXFxcXFxcXFxcXFxcXFxcXFxcXE=:
# PrivateKey = 
Address = 10.32.255.254/32

[Peer]
PublicKey = bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4=
PresharedKey = c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M=
AllowedIPs = 10.32.0.0/12, fd57:6566:7400::/108
Endpoint = [2001:db8:1234:5678:9abc:def0:1234:5678]:51820
`
	if got := c.Text(); got != sparse {
		t.Errorf("got\n%s\nwant\n%s", got, sparse)
	}
}

func TestNewKey(t *testing.T) {
	private, public, err := wgquick.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := base64.StdEncoding.DecodeString(private)
	if err != nil || len(k) != 32 || k[0]&7 != 0 || k[31]&0xc0 != 0x40 {
		t.Errorf("%d bytes, %v", len(k), err)
	}
	want, err := curve25519.X25519(k, curve25519.Basepoint)
	if err != nil || public != base64.StdEncoding.EncodeToString(want) {
		t.Errorf("public key %s, %v", public, err)
	}
	if again, _, _ := wgquick.NewKey(rand.Reader); again == private {
		t.Error("the same key twice")
	}
	broken := errors.New("no randomness")
	if _, _, err := wgquick.NewKey(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// screen paints what a terminal shows of a QR code, each module of the given size in pixels.
func screen(t *testing.T, text string, module int) image.Image {
	t.Helper()
	const on, off = "\x1b[38;5;16;48;5;231m", "\x1b[0m" // black on white
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	var rows [][]bool // black
	for _, l := range lines {
		body, begins := strings.CutPrefix(l, on)
		body, ends := strings.CutSuffix(body, off)
		if !begins || !ends || strings.Contains(body, "\x1b") {
			t.Fatalf("line %q does not set and reset its colours", l)
		}
		var upper, lower []bool
		for _, r := range body {
			upper = append(upper, r == '█' || r == '▀')
			lower = append(lower, r == '█' || r == '▄')
		}
		rows = append(rows, upper, lower)
	}
	img := image.NewGray(image.Rect(0, 0, len(rows[0])*module, len(rows)*module))
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			img.SetGray(x, y, color.Gray{Y: 255})
			if rows[y/module][x/module] {
				img.SetGray(x, y, color.Gray{})
			}
		}
	}
	return img
}

// TestQR reads the code off the screen, as a phone does.
func TestQR(t *testing.T) {
	c := full()
	c.Comment, c.DNS, c.Endpoint = "", nil, "203.0.113.255:51820"
	for name, text := range map[string]string{"usual": c.Text(), "largest": full().Text(), "short": "hello"} {
		code, err := wgquick.QR(text)
		if err != nil {
			t.Fatal(err)
		}
		img := screen(t, code, 3)
		bitmap, err := gozxing.NewBinaryBitmapFromImage(img)
		if err != nil {
			t.Fatal(err)
		}
		got, err := qrcode.NewQRCodeReader().Decode(bitmap, nil)
		if err != nil || got.GetText() != text {
			t.Errorf("%s: read %q, %v; want %q", name, got, err, text)
		}
		for x := range img.Bounds().Dx() {
			for y := range 4 * 3 {
				if r, _, _, _ := img.At(x, y).RGBA(); r == 0 {
					t.Fatalf("%s: the quiet zone is not quiet at %d, %d", name, x, y)
				}
			}
		}
		if w := img.Bounds().Dx() / 3; name == "usual" && w > 80 {
			t.Errorf("the usual configuration takes %d columns", w)
		}
	}
	if _, err := wgquick.QR(strings.Repeat("x", 4000)); err == nil || err.Error() != "making a QR code of 4000 bytes: text too long to encode as QR" {
		t.Errorf("got %v", err)
	}
}

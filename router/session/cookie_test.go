// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// exhaust brings a machine under load at now.
func exhaust(m *Machine, now time.Time) {
	for range 2*DefaultHandshakeRate + 1 {
		m.gate.busy(now)
	}
}

// TestCookie plays the whole exchange: refused, cookie, accepted; for initiations and responses.
func TestCookie(t *testing.T) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			d := newDuo(t, s, s)
			now := epoch
			exhaust(d.b, now)
			first := initiation(t, d.ab, now)
			r, err := d.b.Receive(nil, first, addrA, now)
			if !errors.Is(err, ErrUnderLoad) || r.Peer != nil || len(r.Reply) != CookieSize {
				t.Fatalf("under load: %+v, %v", r, err)
			}
			cookie := r.Reply
			for bit := range len(cookie) * 8 {
				bad := bytes.Clone(cookie)
				bad[bit/8] ^= 1 << (bit % 8)
				if _, err := d.a.Receive(nil, bad, addrB, now); err == nil && bit/8 != 1 {
					t.Fatalf("cookie with bit %d changed was accepted", bit)
				}
				if !d.ab.jar.waiting {
					d.ab.jar.waiting = true // the suite of a cookie does not matter
				}
			}
			if r := receive(t, d.a, cookie, addrB, now); r.Peer != nil || r.Established || len(r.Reply) > 0 {
				t.Errorf("cookie: %+v", r)
			}
			if _, err := d.a.Receive(nil, cookie, addrB, now); !errors.Is(err, ErrReplay) {
				t.Errorf("cookie again: %v", err)
			}
			if _, err := d.b.Receive(nil, first, addrA, now); !errors.Is(err, ErrUnderLoad) {
				t.Errorf("message without the cookie: %v", err)
			}

			now = now.Add(RekeyTimeout + MaxJitter)
			exhaust(d.b, now)
			second, _ := d.ab.Tick(nil, now)
			for _, from := range []string{"192.0.2.1:6784", "192.0.2.2:6783", "[2001:db8::1]:6783"} {
				if _, err := d.b.Receive(nil, second, netip.MustParseAddrPort(from), now); !errors.Is(err, ErrUnderLoad) {
					t.Errorf("with the cookie of another address than %s: %v", from, err)
				}
			}
			bad := bytes.Clone(second)
			bad[len(bad)-1]++
			if _, err := d.b.Receive(nil, bad, addrA, now); !errors.Is(err, ErrUnderLoad) {
				t.Errorf("with a wrong mac2: %v", err)
			}
			mapped := netip.AddrPortFrom(netip.AddrFrom16(addrA.Addr().As16()), addrA.Port())
			r = receive(t, d.b, second, mapped, now)

			// Now the initiator is under load, and the responder must prove its address.
			exhaust(d.a, now)
			response := r.Reply
			r, err = d.a.Receive(nil, response, addrB, now)
			if !errors.Is(err, ErrUnderLoad) || len(r.Reply) != CookieSize {
				t.Fatalf("response under load: %+v, %v", r, err)
			}
			receive(t, d.b, r.Reply, addrA, now)
			now = now.Add(RekeyTimeout + MaxJitter)
			exhaust(d.a, now)
			third, _ := d.ab.Tick(nil, now)
			r = receive(t, d.b, third, addrA, now)
			if r = receive(t, d.a, r.Reply, addrB, now); !r.Established {
				t.Fatal("no session")
			}
			carry(t, d.ab, d.b, []byte("works"), now)
		})
	}
}

func TestCookieLifetime(t *testing.T) {
	d := newDuo(t, WireGuard, WireGuard)
	exhaust(d.b, epoch)
	r, _ := d.b.Receive(nil, initiation(t, d.ab, epoch), addrA, epoch)
	receive(t, d.a, r.Reply, addrB, epoch)
	for _, c := range []struct {
		age  time.Duration
		want error
	}{{CookieRefreshTime - time.Second, nil}, {CookieRefreshTime + time.Second, ErrUnderLoad}} {
		now := epoch.Add(c.age)
		exhaust(d.b, now)
		d.ab.Reset()
		if _, err := d.b.Receive(nil, initiation(t, d.ab, now), addrA, now); !errors.Is(err, c.want) {
			t.Errorf("after %v: %v, want %v", c.age, err, c.want)
		}
	}
}

func TestCookieForNobody(t *testing.T) {
	d := newDuo(t, WireGuard, WireGuard)
	exhaust(d.b, epoch)
	r, _ := d.b.Receive(nil, initiation(t, d.ab, epoch), addrA, epoch)
	d.a.RemovePeer(d.ab)
	if _, err := d.a.Receive(nil, r.Reply, addrB, epoch); !errors.Is(err, ErrIndex) {
		t.Errorf("cookie for a handshake that is gone: %v", err)
	}
}

func TestSourceLimitUnderLoad(t *testing.T) {
	d := newDuo(t, WireGuard, WireGuard)
	exhaust(d.b, epoch)
	r, _ := d.b.Receive(nil, initiation(t, d.ab, epoch), addrA, epoch)
	receive(t, d.a, r.Reply, addrB, epoch)
	now := epoch.Add(RekeyTimeout + MaxJitter)
	exhaust(d.b, now)
	msg, _ := d.ab.Tick(nil, now)
	receive(t, d.b, msg, addrA, now)
	for i := range 10 { // from a friend, which has what it has beside what it had as a stranger
		want := ErrReplay
		if i >= sourceBurst {
			want = ErrFlood
		}
		if r, err := d.b.Receive(nil, msg, addrA, now); !errors.Is(err, want) || len(r.Reply) > 0 {
			t.Errorf("message %d of one address: %v, want %v", i+2, err, want)
		}
	}
}

func TestCookieNoRandomness(t *testing.T) {
	for n := range 56 {
		d := newDuo(t, WireGuard, WireGuard)
		exhaust(d.b, epoch)
		d.b.rand.r = &flaky{left: n}
		r, err := d.b.Receive(nil, initiation(t, d.ab, epoch), addrA, epoch)
		if !errors.Is(err, io.ErrNoProgress) && !errors.Is(err, io.ErrUnexpectedEOF) || len(r.Reply) > 0 {
			t.Fatalf("%d bytes: %+v, %v", n, r, err)
		}
	}
}

// TestCookieAgainstReference exchanges messages with the reference's own cookie code.
func TestCookieAgainstReference(t *testing.T) {
	private := newKey(t)
	public := private.Public()
	now := time.Now() // the reference reads the clock
	src := addressBytes(addrA)
	msg := make([]byte, InitiationSize)
	_, _ = rand.Read(msg)
	msg[0], msg[1] = 1, 0

	t.Run("they check", func(t *testing.T) {
		var checker device.CookieChecker
		checker.Init(device.NoisePublicKey(public))
		jar := cookieJar{keys: newGuardKeys(public)}
		must(t, jar.seal(msg, now))
		if !checker.CheckMAC1(msg) || checker.CheckMAC2(msg, src) {
			t.Fatal("mac1 is wrong, or mac2 right too early")
		}
		reply, err := checker.CreateReply(msg, 7, src)
		must(t, err)
		wire := appendWord(nil, TypeCookie, WireGuard)
		wire = append(wire, 7, 0, 0, 0)
		wire = append(append(wire, reply.Nonce[:]...), reply.Cookie[:]...)
		must(t, jar.accept(wire, now))
		must(t, jar.seal(msg, now))
		if !checker.CheckMAC1(msg) || !checker.CheckMAC2(msg, src) {
			t.Fatal("mac2 is wrong")
		}
	})
	t.Run("we check", func(t *testing.T) {
		checker := cookieChecker{keys: newGuardKeys(public)}
		var jar device.CookieGenerator
		jar.Init(device.NoisePublicKey(public))
		clear(msg[len(msg)-2*macSize:])
		jar.AddMacs(msg)
		if !checker.checkMAC1(msg) || checker.checkMAC2(msg, addrA, now) {
			t.Fatal("mac1 is wrong, or mac2 right too early")
		}
		wire, err := checker.reply(nil, msg, addrA, now, rand.Reader)
		must(t, err)
		reply := device.MessageCookieReply{Type: 3, Receiver: 7}
		copy(reply.Nonce[:], wire[cookieNonceAt:])
		copy(reply.Cookie[:], wire[cookieSealedAt:])
		if !jar.ConsumeReply(&reply) {
			t.Fatal("our cookie reply is refused")
		}
		jar.AddMacs(msg)
		if !checker.checkMAC1(msg) || !checker.checkMAC2(msg, addrA, now) {
			t.Fatal("mac2 is wrong")
		}
	})
}

func TestMACErrors(t *testing.T) {
	if _, err := mac([]byte(strings.Repeat("x", 33)), nil); err == nil {
		t.Error("a key of 33 bytes is accepted")
	}
}

// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// eachSuite runs a test with a fresh session per suite.
func eachSuite(t *testing.T, f func(t *testing.T, ka, kb *Keypair)) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			ka, kb := newDuo(t, s, s).shake(t, epoch)
			f(t, ka, kb)
		})
	}
}

func TestSealLayout(t *testing.T) {
	eachSuite(t, func(t *testing.T, ka, kb *Keypair) {
		first := ka.counter.Load()
		for i, n := range []int{0, 1, 16, 1400, 1401} {
			prefix := []byte("before")
			msg, err := ka.Seal(prefix, bytes.Repeat([]byte{0xaa}, n))
			must(t, err)
			if !bytes.HasPrefix(msg, []byte("before")) {
				t.Fatal("what was in dst is gone")
			}
			msg = msg[len(prefix):]
			if want := (n+15)/16*16 + Overhead; len(msg) != want {
				t.Errorf("%d bytes become %d, want %d", n, len(msg), want)
			}
			if want := []byte{TypeData, byte(ka.suite), 0, 0}; !bytes.Equal(msg[:4], want) {
				t.Errorf("type word % x, want % x", msg[:4], want)
			}
			if Receiver(msg) != kb.local || counterOf(msg) != first+uint64(i) {
				t.Errorf("receiver %x, counter %d; want %x, %d", Receiver(msg), counterOf(msg), kb.local, first+uint64(i))
			}
			if bytes.Contains(msg, []byte{0xaa, 0xaa, 0xaa, 0xaa}) {
				t.Error("plaintext shows")
			}
		}
	})
}

// TestSealAnywhere: dst may be short, roomy, or hold the plaintext.
func TestSealAnywhere(t *testing.T) {
	eachSuite(t, func(t *testing.T, ka, kb *Keypair) {
		plaintext := make([]byte, 100)
		_, _ = rand.Read(plaintext)
		check := func(name string, msg []byte, err error) {
			t.Helper()
			must(t, err)
			got, err := kb.Open(msg, epoch)
			if err != nil || !bytes.Equal(got, pad(plaintext)) {
				t.Errorf("%s: %v, %x", name, err, got)
			}
		}
		msg, err := ka.Seal(nil, plaintext)
		check("nil", msg, err)
		msg, err = ka.Seal(make([]byte, 0, 50), plaintext)
		check("short", msg, err)
		buf := make([]byte, 200)
		msg, err = ka.Seal(buf[:0], plaintext)
		check("roomy", msg, err)
		if &msg[0] != &buf[0] {
			t.Error("roomy: allocated nevertheless")
		}
		for _, at := range []int{0, 1, 15, 16, 17, 40, 100} {
			copy(buf[at:], plaintext)
			msg, err = ka.Seal(buf[:0], buf[at:at+100])
			check(fmt.Sprintf("in place at %d", at), msg, err)
		}
	})
}

// TestSealOver: what follows the packet in its frame comes out of it as it was, and the datagram is that of SealFlags.
func TestSealOver(t *testing.T) {
	eachSuite(t, func(t *testing.T, ka, kb *Keypair) {
		frame := make([]byte, 200)
		_, _ = rand.Read(frame)
		before := bytes.Clone(frame)
		out := make([]byte, 0, 300)
		for n := range 100 {
			for _, room := range []int{Padded(n), Padded(n) + 1, len(frame)} {
				msg, err := ka.SealOver(out, frame[:room], n, 0)
				must(t, err)
				if !bytes.Equal(frame, before) {
					t.Fatalf("%d bytes: sealing has changed the frame", n)
				}
				if n >= 8 && bytes.Contains(msg, frame[:8]) {
					t.Errorf("%d bytes: plaintext shows", n)
				}
				got, err := kb.Open(msg, epoch)
				if err != nil || !bytes.Equal(got, pad(frame[:n])) {
					t.Errorf("%d bytes: %v, %x", n, err, got)
				}
			}
		}
		ka.forget()
		if msg, err := ka.SealOver(out, frame, 10, 0); !errors.Is(err, ErrExpired) || len(msg) != 0 {
			t.Errorf("with a key that is forgotten: %x, %v", msg, err)
		}
	})
}

// TestAlteredData flips every bit of a datagram, cuts and extends it.
func TestAlteredData(t *testing.T) {
	eachSuite(t, func(t *testing.T, ka, kb *Keypair) {
		for _, n := range []int{0, 40} {
			msg, err := ka.Seal(nil, make([]byte, n))
			must(t, err)
			for bit := range len(msg) * 8 {
				bad := bytes.Clone(msg)
				bad[bit/8] ^= 1 << (bit % 8)
				if b, err := kb.Open(bad, epoch); err == nil {
					t.Fatalf("bit %d: opened as %x", bit, b)
				}
			}
			for size := range len(msg) {
				if _, err := kb.Open(bytes.Clone(msg[:size]), epoch); err == nil {
					t.Fatalf("opened when cut to %d bytes", size)
				}
			}
			if _, err := kb.Open(append(bytes.Clone(msg), 0), epoch); !errors.Is(err, ErrAuth) {
				t.Fatalf("with a byte more: %v", err)
			}
			if _, err := kb.Open(msg, epoch); err != nil {
				t.Fatalf("the true one after all that: %v", err)
			}
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	eachSuite(t, func(t *testing.T, ka, kb *Keypair) {
		fresh := func() []byte {
			msg, err := ka.Seal(nil, []byte("x"))
			must(t, err)
			return msg
		}
		with := func(at int, b byte) []byte {
			msg := fresh()
			msg[at] = b
			return msg
		}
		used := fresh()
		twice := bytes.Clone(used)
		_, err := kb.Open(used, epoch)
		must(t, err)
		huge := fresh()
		binary.LittleEndian.PutUint64(huge[8:], RejectAfterMessages)
		for _, c := range []struct {
			name string
			msg  []byte
			at   time.Duration
			want error
		}{
			{"fine", fresh(), 0, nil},
			{"just in time", fresh(), RejectAfterTime - 1, nil},
			{"too late", fresh(), RejectAfterTime, ErrExpired},
			{"nothing", nil, 0, ErrShort},
			{"shorter than empty", fresh()[:Overhead-1], 0, ErrShort},
			{"handshake", with(0, TypeResponse), 0, ErrType},
			{"unknown flag", with(2, 2), 0, ErrType},
			{"unknown flag", with(3, 1), 0, ErrType},
			{"flag that was not sealed", with(2, byte(OpenChecksum)), 0, map[Suite]error{WireGuard: ErrType, Weft: ErrAuth}[ka.suite]},
			{"other suite", with(1, byte(ka.suite)^1), 0, ErrSuite},
			{"other session", with(4, byte(kb.local)^1), 0, ErrIndex},
			{"twice", twice, 0, ErrReplay},
			{"counter beyond the limit", huge, 0, ErrExpired},
		} {
			if _, err := kb.Open(c.msg, epoch.Add(c.at)); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
		}
	})
}

func TestSealFlags(t *testing.T) {
	eachSuite(t, func(t *testing.T, ka, kb *Keypair) {
		msg, err := ka.SealFlags(nil, []byte("x"), OpenChecksum)
		if ka.suite == WireGuard {
			if !errors.Is(err, ErrSuite) || msg != nil {
				t.Errorf("%x, %v", msg, err)
			}
			return
		}
		must(t, err)
		_, err = kb.Open(bytes.Clone(msg), epoch)
		must(t, err)
		if DataFlags(msg) != OpenChecksum {
			t.Errorf("flags %x", DataFlags(msg))
		}
	})
}

func TestOpenTo(t *testing.T) {
	eachSuite(t, func(t *testing.T, ka, kb *Keypair) {
		want := bytes.Repeat([]byte{7}, 100)
		msg, err := ka.Seal(nil, want)
		must(t, err)
		bad := bytes.Clone(msg)
		bad[50]++
		dst := bytes.Repeat([]byte{1}, 200)
		for _, m := range [][]byte{bad, msg[:10], msg} {
			got, err := kb.OpenTo(dst[:30], m, epoch)
			if len(m) == len(msg) && m[50] == msg[50] {
				must(t, err)
				if !bytes.Equal(got, pad(want)) || &got[0] != &dst[30] {
					t.Errorf("got %x", got)
				}
			} else if err == nil {
				t.Error("accepted")
			}
			if !bytes.Equal(dst[:30], bytes.Repeat([]byte{1}, 30)) || !bytes.Equal(dst[30+112:], bytes.Repeat([]byte{1}, 200-142)) {
				t.Error("bytes elsewhere have changed")
			}
		}
	})
}

// TestReplayWindow compares with a set of all counters seen: what is at most 8128 behind
// the newest is accepted if and only if it is new, and nothing older is.
func TestReplayWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Sessions on paper: the window is the same for both suites.
		k := &Keypair{suite: Weft, created: epoch, local: 1, remote: 1}
		if err := k.arm([32]byte{1}, [32]byte{1}); err != nil {
			t.Fatal(err)
		}
		seen := map[uint64]bool{}
		var newest uint64
		for range rapid.IntRange(1, 60).Draw(t, "n") {
			var n uint64
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				n = newest + rapid.Uint64Range(0, 20000).Draw(t, "ahead")
			case 1:
				n = newest - min(newest, rapid.Uint64Range(0, 100).Draw(t, "behind"))
			case 2:
				n = newest - min(newest, rapid.Uint64Range(8100, 8300).Draw(t, "at the edge"))
			default:
				n = newest + rapid.Uint64Range(0, 3).Draw(t, "next")
			}
			k.counter.Store(n)
			msg, err := k.Seal(nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = k.Open(msg, epoch)
			want := !seen[n] && (n > newest || newest-n <= 8128)
			if got := err == nil; got != want || err != nil && !errors.Is(err, ErrReplay) {
				t.Fatalf("counter %d after %d, seen before %v: %v", n, newest, seen[n], err)
			}
			if want {
				seen[n] = true
				newest = max(newest, n)
			}
		}
	})
}

// TestCounterLimits: after 2^60 messages a new key is due on both sides; at the end nothing is sealed
// and the counter does not wrap.
func TestCounterLimits(t *testing.T) {
	d := newDuo(t, Weft, Weft)
	ka, kb := d.shake(t, epoch)
	for _, c := range []struct {
		k *Keypair
		p *Peer
	}{{ka, d.ab}, {kb, d.ba}} {
		setCounter(c.k, RekeyAfterMessages)
		if c.p.Sent(epoch, false) {
			t.Error("due at 2^60 messages")
		}
		setCounter(c.k, RekeyAfterMessages+1)
		if !c.p.Sent(epoch, false) {
			t.Error("not due after 2^60 messages")
		}
		setCounter(c.k, RejectAfterMessages-1)
		if c.p.Key(epoch) != c.k {
			t.Error("refused too early")
		}
		_, err := c.k.Seal(nil, nil)
		must(t, err)
		for range 3 {
			if msg, err := c.k.Seal([]byte{7}, nil); !errors.Is(err, ErrExpired) || len(msg) != 1 {
				t.Errorf("used up: %d bytes, %v", len(msg), err)
			}
		}
		if c.k.counter.Load() != RejectAfterMessages {
			t.Errorf("counter is %d", c.k.counter.Load())
		}
		if c.p.Key(epoch) != nil {
			t.Error("a key that is used up is given out")
		}
	}
}

// TestConcurrentSealOpen: several threads seal, several open, each datagram twice; counters are
// unique, and each datagram is accepted once.
func TestConcurrentSealOpen(t *testing.T) {
	eachSuite(t, func(t *testing.T, ka, kb *Keypair) {
		const threads, each = 4, 500
		var mu sync.Mutex
		var all [][]byte
		var wg sync.WaitGroup
		for range threads {
			wg.Go(func() {
				var mine [][]byte
				for i := range each {
					msg, err := ka.Seal(nil, binary.LittleEndian.AppendUint32(nil, uint32(i)))
					if err != nil {
						t.Error(err)
						return
					}
					mine = append(mine, msg)
				}
				mu.Lock()
				all = append(all, mine...)
				mu.Unlock()
			})
		}
		wg.Wait()
		counters := map[uint64]bool{}
		for _, msg := range all {
			if n := counterOf(msg); counters[n] {
				t.Fatalf("counter %d was used twice", n)
			} else {
				counters[n] = true
			}
		}
		opened := make([]int, threads)
		for i := range threads {
			mine := make([][]byte, 0, len(all)/2)
			for j := range all {
				if j%2 == i%2 { // every datagram goes to two threads
					mine = append(mine, bytes.Clone(all[j]))
				}
			}
			if i >= 2 {
				slices.Reverse(mine)
			}
			wg.Go(func() {
				for _, msg := range mine {
					switch _, err := kb.Open(msg, epoch); {
					case err == nil:
						opened[i]++
					case !errors.Is(err, ErrReplay):
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if sum := opened[0] + opened[1] + opened[2] + opened[3]; sum != len(all) {
			t.Errorf("%d datagrams were accepted, want %d", sum, len(all))
		}
	})
}

// TestPacketPathDoesNotAllocate pins the whole path: look-up, key, seal, open.
func TestPacketPathDoesNotAllocate(t *testing.T) {
	for _, s := range suites {
		d := newDuo(t, s, s)
		ka, kb := d.shake(t, epoch)
		for _, n := range []int{0, 64, 1400, 1408} {
			plaintext, out := make([]byte, n), make([]byte, 0, 2048)
			if got := testing.AllocsPerRun(200, func() {
				msg, err := d.ab.Key(epoch).Seal(out, plaintext)
				if err != nil {
					t.Fatal(err)
				}
				k := d.b.Keypair(Receiver(msg))
				if k != kb {
					t.Fatal("wrong session")
				}
				if _, err := k.Open(msg, epoch); err != nil {
					t.Fatal(err)
				}
				if _, err := k.Open(msg, epoch); err == nil { // refusing costs nothing either
					t.Fatal("opened twice")
				}
				d.ab.Sent(epoch, false)
				d.ba.Received(epoch, k, false)
				d.ba.Sent(epoch, false) // and there is an answer
				d.ab.Received(epoch, ka, false)
			}); got != 0 {
				t.Errorf("%s, %d bytes: %v allocations", s, n, got)
			}
		}
	}
}

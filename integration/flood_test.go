// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// weftPort is where daemons listen.
const weftPort = 6783

// publicKey returns the public key of the host's node, for which handshakes must be made. A node tells it to its peers only; this
// one is read from its disk.
func publicKey(t *testing.T, h *lab.Host) [32]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.DataDir(), "weft.db"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`"private_key":"([A-Za-z0-9+/]{43}=)"`).FindSubmatch(b)
	if found == nil {
		t.Fatalf("no key in the database of %s", h.Name())
	}
	private, err := base64.StdEncoding.DecodeString(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(key.PublicKey().Bytes())
}

// initiations makes handshake initiations with random keys (WireGuard's whitepaper, §5.4.2), with the right mac1 for the public key or a wrong one.
func initiations(t *testing.T, n int, to [32]byte, valid bool) [][]byte {
	t.Helper()
	const size, macSize = 148, 16
	key := blake2s.Sum256(append([]byte("mac1----"), to[:]...))
	var all [][]byte
	for range n {
		b := make([]byte, size)
		if _, err := rand.Read(b[4 : size-macSize]); err != nil {
			t.Fatal(err)
		}
		b[0] = 1
		if valid {
			h, err := blake2s.New128(key[:])
			if err != nil {
				t.Fatal(err)
			}
			_, _ = h.Write(b[:size-2*macSize]) // hashes do not fail
			h.Sum(b[:size-2*macSize])
		}
		all = append(all, b)
	}
	return all
}

// raw builds an IPv4 packet with a UDP datagram without checksum, from one port of Weft's to another.
func raw(from netip.AddrPort, to netip.Addr, payload []byte) []byte {
	b := datagram(from.Addr(), to, payload)
	binary.BigEndian.PutUint16(b[20:], from.Port())
	binary.BigEndian.PutUint16(b[22:], weftPort)
	return b
}

// sender sends whole IPv4 packets from a namespace.
type sender struct {
	fd int
	to unix.SockaddrInet4
}

func newSender(t *testing.T, n *lab.Namespace, to netip.Addr) *sender {
	t.Helper()
	s := &sender{to: unix.SockaddrInet4{Addr: to.As4()}}
	err := n.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // with the header included
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

func (s *sender) send(t *testing.T, packets ...[]byte) {
	t.Helper()
	for _, p := range packets {
		for _, f := range fragments(p) {
			if err := s.try(f); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// fragments cuts an IPv4 packet without options to what fits the link.
func fragments(p []byte) (all [][]byte) {
	const header, room = 20, 1480
	if len(p) <= header+room {
		return [][]byte{p}
	}
	for at := header; at < len(p); at += room {
		end := min(at+room, len(p))
		f := slices.Concat(p[:header], p[at:end])
		offset := uint16((at - header) / 8)
		if end < len(p) {
			offset |= 0x2000 // more fragments
		}
		binary.BigEndian.PutUint16(f[4:], binary.BigEndian.Uint16(p[header+8:])) // random enough
		binary.BigEndian.PutUint16(f[6:], offset)
		all = append(all, f)
	}
	return all
}

func (s *sender) try(p []byte) error {
	for {
		err := unix.Sendto(s.fd, p, 0, &s.to)
		if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// flood sends packets over and over, perSecond at most, until it is told to stop.
type flood struct {
	stop chan struct{}
	done sync.WaitGroup
	sent int
	took time.Duration
	err  error
}

// flood begins one.
func (s *sender) flood(packets [][]byte, perSecond int) *flood {
	f := &flood{stop: make(chan struct{})}
	f.done.Go(func() {
		start := time.Now()
		defer func() { f.took = time.Since(start) }()
		for {
			select {
			case <-f.stop:
				return
			default:
			}
			due := int(time.Since(start).Seconds() * float64(perSecond))
			if f.sent >= due {
				time.Sleep(time.Millisecond)
				continue
			}
			for ; f.sent < due; f.sent++ {
				if f.err = s.try(packets[f.sent%len(packets)]); f.err != nil {
					return
				}
				if f.sent%256 == 255 {
					break // look at stop
				}
			}
			f.sent++
		}
	})
	return f
}

// end stops the flood.
func (f *flood) end(t *testing.T) {
	t.Helper()
	close(f.stop)
	f.done.Wait()
	if f.err != nil {
		t.Fatal(f.err)
	}
}

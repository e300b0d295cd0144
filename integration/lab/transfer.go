// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// A Transfer is one finished TCP transfer.
type Transfer struct {
	Bytes    int64
	Duration time.Duration // from the connection's first byte to the last one received
	Checksum string        // SHA-256 of what was received, empty unless asked for
}

// BitsPerSecond returns the throughput.
func (t Transfer) BitsPerSecond() float64 { return float64(t.Bytes) * 8 / t.Duration.Seconds() }

// blockLen is the length of the block that the payload repeats. It is a prime, so that no buffer size divides it and data
// that arrive in the wrong place differ from what they should be.
const blockLen = 1<<20 + 7

// markerEvery is the distance of markers within a block, in bytes: less than what a packet carries.
const markerEvery = 512

// payload returns a block of random bytes with the lab's marker in it.
func (l *Lab) payload() []byte {
	b := make([]byte, blockLen)
	seed := sha256.Sum256([]byte(l.marker))
	r := rand.NewChaCha8(seed)
	_, _ = r.Read(b) // never fails
	for i := 0; i+markerEvery <= len(b); i += markerEvery {
		copy(b[i:], l.marker)
	}
	return b
}

// Transfer sends size bytes over TCP from one namespace to an address in another one, and compares every byte that arrives
// with the one that was sent. The payload holds [Lab.Marker].
func (l *Lab) Transfer(ctx context.Context, from, to *Namespace, addr netip.Addr, size int64) (Transfer, error) {
	return l.transfer(ctx, from, to, addr, size, nil)
}

// TransferSum is [Lab.Transfer] that also computes the checksum on the receiving side, at the cost of some throughput, and
// compares it with the one computed over what was sent.
func (l *Lab) TransferSum(ctx context.Context, from, to *Namespace, addr netip.Addr, size int64) (Transfer, error) {
	got, want := sha256.New(), sha256.New()
	t, err := l.transfer(ctx, from, to, addr, size, got)
	if err != nil {
		return t, err
	}
	t.Checksum = hex.EncodeToString(got.Sum(nil))
	if _, err := io.CopyN(want, &repeater{block: l.payload()}, size); err != nil {
		return t, err
	}
	if sent := hex.EncodeToString(want.Sum(nil)); sent != t.Checksum {
		return t, fmt.Errorf("transfer from %s to %v: SHA-256 of what was sent is %s, of what arrived %s", from.name, addr, sent, t.Checksum)
	}
	return t, nil
}

func (l *Lab) transfer(ctx context.Context, from, to *Namespace, addr netip.Addr, size int64, sum hash.Hash) (Transfer, error) {
	fail := func(err error) (Transfer, error) {
		return Transfer{}, fmt.Errorf("transfer from %s to %v on %s: %w", from.name, addr, to.name, err)
	}
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		return fail(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()

	type received struct {
		Transfer
		err error
	}
	result := make(chan received, 1)
	go func() {
		defer func() { _ = listener.Close() }()
		conn, err := listener.Accept()
		if err != nil {
			result <- received{err: err}
			return
		}
		t, err := l.receive(ctx, conn, size, sum)
		result <- received{t, err}
	}()

	serr := l.send(ctx, from, listener.Addr().String(), size)
	if serr != nil {
		_ = listener.Close() // nobody may have connected
	}
	got := <-result
	if err := errors.Join(context.Cause(ctx), serr, got.err); err != nil {
		return fail(err)
	}
	return got.Transfer, nil
}

func (l *Lab) send(ctx context.Context, from *Namespace, addr string, size int64) error {
	var conn net.Conn
	err := from.Do(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	_, err = io.CopyN(conn, &repeater{block: l.payload()}, size)
	if err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

func (l *Lab) receive(ctx context.Context, conn net.Conn, size int64, sum hash.Hash) (Transfer, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	want := &repeater{block: l.payload()}
	start := time.Now()
	buf := make([]byte, 256<<10)
	var total int64
	for total < size {
		n, err := conn.Read(buf)
		if at, ok := want.match(buf[:n]); !ok {
			return Transfer{}, fmt.Errorf("byte %d differs from what was sent", total+int64(at))
		}
		if sum != nil {
			sum.Write(buf[:n])
		}
		total += int64(n)
		if err != nil && total < size {
			return Transfer{}, fmt.Errorf("receiving: %d of %d bytes: %w", total, size, err)
		}
	}
	t := Transfer{Bytes: total, Duration: time.Since(start)}
	if n, err := conn.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		return Transfer{}, fmt.Errorf("after %d bytes: %d more, %w", size, n, err)
	}
	return t, nil
}

// repeater reads as its block, over and over again.
type repeater struct {
	block []byte
	pos   int
}

func (r *repeater) Read(b []byte) (int, error) {
	n := copy(b, r.block[r.pos:])
	r.pos = (r.pos + n) % len(r.block)
	return n, nil
}

// match reads as many bytes as b holds and compares them with b. If they differ, it returns where.
func (r *repeater) match(b []byte) (at int, ok bool) {
	for at < len(b) {
		n := min(len(b)-at, len(r.block)-r.pos)
		if !bytes.Equal(b[at:at+n], r.block[r.pos:r.pos+n]) {
			for b[at] == r.block[r.pos] {
				at++
				r.pos++
			}
			return at, false
		}
		at += n
		r.pos = (r.pos + n) % len(r.block)
	}
	return at, true
}

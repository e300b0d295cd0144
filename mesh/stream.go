// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// stream is a connection after the hello: everything on it is sealed under keys
// of this connection alone, so nothing can be read, altered, replayed or spliced
// in from another one. A record is
//
//	4 bytes   length n of the plaintext, big endian, 1 to maxChunk
//	n+16      AES-256-GCM of the plaintext; the 4 bytes are additional data,
//	          the nonce is the count of records before it in this direction
//
// An error of either direction is final for it. One goroutine may read and one
// write at a time; Close and the deadlines may be used from anywhere.
type stream struct {
	net.Conn // for addresses, deadlines and Close

	key           [32]byte          // that the hello was made with
	transcript    [sha256.Size]byte // of the hello
	in, out       cipher.AEAD
	inSeq, outSeq uint64
	inErr, outErr error
	plain         []byte // read and not yet handed out
	inBuf, outBuf []byte
}

const (
	chunkHead = 4
	maxChunk  = 16 << 10
	gcmTag    = 16
)

var errSeal = errors.New("a record of the stream does not open: it was altered on the way")

// newStream derives the two keys of a connection from the hello key and the hash
// of all that was said before.
func newStream(conn net.Conn, key [32]byte, transcript [sha256.Size]byte, dialler bool) (*stream, error) {
	forth, err := streamAEAD(key, transcript, "weft stream 1 dialler")
	if err != nil {
		return nil, err
	}
	back, err := streamAEAD(key, transcript, "weft stream 1 acceptor")
	if err != nil {
		return nil, err
	}
	if dialler {
		return &stream{Conn: conn, key: key, transcript: transcript, in: back, out: forth}, nil
	}
	return &stream{Conn: conn, key: key, transcript: transcript, in: forth, out: back}, nil
}

func streamAEAD(key [32]byte, salt [sha256.Size]byte, info string) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, key[:], salt[:], info, 32)
	if err != nil {
		return nil, fmt.Errorf("derive a stream key: %w", err)
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, fmt.Errorf("derive a stream key: %w", err)
	}
	return cipher.NewGCM(block)
}

// seal appends the next record that holds p, at most maxChunk bytes, to b.
func (s *stream) seal(b, p []byte) []byte {
	var nonce [12]byte
	binary.BigEndian.PutUint64(nonce[4:], s.outSeq)
	s.outSeq++
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	return s.out.Seal(b, nonce[:], p, b[at:at+chunkHead])
}

// Write sends p in as many records as it takes.
func (s *stream) Write(p []byte) (n int, err error) {
	for len(p) > 0 && s.outErr == nil {
		c := p[:min(len(p), maxChunk)]
		s.outBuf = s.seal(s.outBuf[:0], c)
		if _, s.outErr = s.Conn.Write(s.outBuf); s.outErr == nil {
			n += len(c)
			p = p[len(c):]
		}
	}
	return n, s.outErr
}

// Read returns what is left of the current record, or waits for the next.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(s.plain) == 0 {
		if s.inErr == nil {
			s.plain, s.inErr = s.next()
		}
		if s.inErr != nil {
			return 0, s.inErr
		}
	}
	n := copy(p, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

// next reads and opens one record. The result is valid until the next call.
func (s *stream) next() ([]byte, error) {
	var head [chunkHead]byte
	if _, err := io.ReadFull(s.Conn, head[:]); err != nil {
		return nil, err // io.EOF between two records is the end
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxChunk {
		return nil, errSeal
	}
	if cap(s.inBuf) < int(n)+gcmTag {
		s.inBuf = make([]byte, int(n)+gcmTag)
	}
	b := s.inBuf[:int(n)+gcmTag]
	if _, err := io.ReadFull(s.Conn, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	var nonce [12]byte
	binary.BigEndian.PutUint64(nonce[4:], s.inSeq)
	s.inSeq++
	plain, err := s.in.Open(b[:0], nonce[:], b, head[:])
	if err != nil {
		return nil, errSeal
	}
	return plain, nil
}

// writeFrame sends b behind its length, and readFrame returns such a thing of at
// most limit bytes in memory of its own. What is allocated grows with what
// really arrived.
func (s *stream) writeFrame(b []byte) error {
	buf := make([]byte, 0, chunkHead+len(b))
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(b)))
	_, err := s.Write(append(buf, b...))
	return err
}

func (s *stream) readFrame(limit int) ([]byte, error) {
	n, err := s.readLength(limit)
	if err != nil {
		return nil, err
	}
	return s.readRest(n)
}

// readLength reads how many bytes the next frame has, which readRest returns.
func (s *stream) readLength(limit int) (int, error) {
	var head [chunkHead]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return 0, err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > int64(limit) {
		return 0, fmt.Errorf("a frame of %d bytes: %w", n, ErrTooLarge)
	}
	return int(n), nil
}

func (s *stream) readRest(n int) ([]byte, error) {
	b := make([]byte, 0, min(n, smallFrame))
	for {
		m, err := io.ReadFull(s, b[len(b):cap(b)])
		b = b[:len(b)+m]
		switch {
		case errors.Is(err, io.EOF) && n > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case len(b) == n:
			return b, nil
		}
		b = append(make([]byte, 0, min(n, 2*len(b))), b...)
	}
}

// within sets a deadline for both directions, d from now; 0 removes it.
func (s *stream) within(d time.Duration) error {
	if d == 0 {
		return s.SetDeadline(time.Time{})
	}
	return s.SetDeadline(time.Now().Add(d))
}

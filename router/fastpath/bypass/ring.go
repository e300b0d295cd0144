// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringSize is how many bytes of requests may wait; the kernel drops what is more, and asks again.
const ringSize = 1 << 16

// Bits of the length of a record (linux/bpf.h).
const (
	ringBusy    = 1 << 31 // it is being written
	ringDiscard = 1 << 30
	ringHead    = 8 // bytes before a record
)

// A ring is the user's side of a map of the kind BPF_MAP_TYPE_RINGBUF. It has one reader.
type ring struct {
	file     *os.File
	consumer []byte // a page: how far it was read
	producer []byte // a page: how far it was written; then the data, twice
	size     uint64
	closed   atomic.Bool
}

// newRing takes a descriptor of the map, which stays the caller's.
func newRing(fd int, size uint32) (*ring, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(own, true); err != nil {
		_ = unix.Close(own) // nothing is written
		return nil, err
	}
	r := &ring{file: os.NewFile(uintptr(own), "ring"), size: uint64(size)}
	page := os.Getpagesize()
	if r.consumer, err = unix.Mmap(own, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		r.producer, err = unix.Mmap(own, int64(page), page+2*int(size), unix.PROT_READ, unix.MAP_SHARED)
	}
	if err != nil {
		r.close()
		return nil, fmt.Errorf("mapping the ring of requests: %w", err)
	}
	return r, nil
}

// wake ends what waits in next, for good.
func (r *ring) wake() {
	r.closed.Store(true)
	_ = r.file.Close() // nothing is written
}

// close frees the ring, of which nobody reads any more.
func (r *ring) close() {
	r.wake()
	for _, m := range [][]byte{r.consumer, r.producer} {
		if m != nil {
			_ = unix.Munmap(m) // it was mapped
		}
	}
	r.consumer, r.producer = nil, nil
}

// next waits until there are records and calls each with them, whose bytes are the ring's until each returns. After wake the error is os.ErrClosed.
func (r *ring) next(each func(record []byte)) error {
	raw, err := r.file.SyscallConn()
	if err == nil {
		some := false
		err = raw.Read(func(uintptr) bool {
			some = r.drain(each) || some
			return some
		})
	}
	if err != nil && r.closed.Load() {
		return os.ErrClosed
	}
	return err
}

// drain calls each with the records that are there, and says whether there were any.
func (r *ring) drain(each func(record []byte)) (some bool) {
	read, written := position(r.consumer), position(r.producer)
	at, data := read.Load(), r.producer[os.Getpagesize():]
	for end := written.Load(); at < end; end = written.Load() {
		head := data[at&(r.size-1):]
		n := atomic.LoadUint32((*uint32)(unsafe.Pointer(&head[0])))
		if n&ringBusy != 0 {
			break
		}
		size := uint64(n &^ (ringBusy | ringDiscard))
		if n&ringDiscard == 0 {
			each(head[ringHead : ringHead+size])
		}
		some = true
		at += (ringHead + size + 7) &^ 7
		read.Store(at)
	}
	return some
}

// position is the number at the beginning of a page.
func position(page []byte) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&page[0])) }

// A request is what the exit asks for: that a flow of the epoch be admitted.
type request struct {
	epoch uint32
	flow  flowKey
}

// A flowKey is the key of a flow in the map of its family.
type flowKey struct {
	index int // among forms
	key   [keyMax]byte
}

// bytes is the key as the map has it.
func (k *flowKey) bytes() []byte { return k.key[:forms()[k.index].keySize] }

// readRequest reads a record; false if it is none.
func readRequest(b []byte) (r request, ok bool) {
	if len(b) < requestKey {
		return r, false
	}
	family := binary.NativeEndian.Uint32(b[requestFamily:])
	for _, f := range forms() {
		if uint32(f.l4) == family && len(b) >= requestKey+f.keySize {
			r.epoch, r.flow.index = binary.NativeEndian.Uint32(b[requestEpoch:]), f.index
			copy(r.flow.key[:f.keySize], b[requestKey:])
			return r, true
		}
	}
	return r, false
}

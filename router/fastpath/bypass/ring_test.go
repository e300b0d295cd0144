// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// What is written to the ring is read in order, again and again around its end; what does not fit is lost, and nothing else.
func TestRing(t *testing.T) {
	const size = 4096 // a page
	fd, err := newMap("test", unix.BPF_MAP_TYPE_RINGBUF, 0, 0, size)
	must(t, err)
	defer unix.Close(fd)
	numbers, err := newMap("test", unix.BPF_MAP_TYPE_ARRAY, 4, 8, 1)
	must(t, err)
	defer unix.Close(numbers)
	a := newAssembler() // counts, and writes the number in a record of 28 bytes
	a.storeImm(word32, r10, stackZero, 0)
	a.wide(r1, wideMap, numbers)
	a.mathReg(mov, r2, r10)
	a.math(add, r2, stackZero)
	a.call(callLookup)
	a.jump(equal, r0, 0, "end")
	a.load(word64, r2, r0, 0)
	a.math(add, r2, 1)
	a.store(word64, r0, 0, r2)
	for o := -32; o < 0; o += 8 {
		a.store(word64, r10, o, r2)
	}
	a.wide(r1, wideMap, fd)
	a.mathReg(mov, r2, r10)
	a.math(add, r2, -32)
	a.math(mov, r3, 28)
	a.math(mov, r4, 0)
	a.call(callOutput)
	a.label("end")
	a.math(mov, r0, resultNext)
	a.exit()
	code, err := a.program()
	must(t, err)
	program, err := newProgram("test", code)
	must(t, err)
	defer unix.Close(program)
	r, err := newRing(fd, size)
	must(t, err)
	defer r.close()
	write := func(n int) {
		for range n {
			try(t, program, samples()[0].packet(), 0)
		}
	}
	var got []uint64
	read := func(record []byte) {
		if len(record) != 28 {
			t.Errorf("a record has %d bytes", len(record))
		}
		got = append(got, binary.NativeEndian.Uint64(record))
	}
	for round := range 50 {
		write(1 + 7*round%90)
		must(t, r.next(read))
	}
	for i, n := range got {
		if n != uint64(i+1) {
			t.Fatalf("record %d is the %dth one", i, n)
		}
	}
	last := got[len(got)-1]
	got = nil
	write(500)
	must(t, r.next(read))
	if len(got) < 50 || len(got) > size/32 || got[0] != last+1 || !slices.IsSorted(got) {
		t.Errorf("of 500 records in %d bytes %d were read", size, len(got))
	}
	done := make(chan error)
	go func() { done <- r.next(read) }()
	r.wake()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

// A request that is read is the one that the exit has written.
func TestRequests(t *testing.T) {
	for _, s := range samples() {
		b := binary.NativeEndian.AppendUint32(nil, testEpoch)
		b = binary.NativeEndian.AppendUint32(b, uint32(s.form.l4))
		b = append(b, s.form.key(s.packet(), 7)...)
		r, ok := readRequest(b)
		if !ok || r.epoch != testEpoch || !slices.Equal(r.flow.bytes(), b[requestKey:]) {
			t.Errorf("%+v", r)
		}
		c := r.flow.conn()
		if c.src.Addr() != s.src || c.dst.Addr() != s.dst || c.src.Port() != 1000 || c.dst.Port() != 2000 || c.protocol != s.proto {
			t.Errorf("%+v", c)
		}
		if _, ok := readRequest(b[:len(b)-1]); ok {
			t.Error("half a request is one")
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(make([]byte, 52))
	f.Add(append([]byte{1, 0, 0, 0, 34, 0, 0, 0}, make([]byte, 20)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := readRequest(b); ok {
			if c := r.flow.conn(); c.src.Addr().BitLen() != 8*forms()[r.flow.index].addr {
				t.Error(c)
			}
		}
	})
}

// Whatever the kernel says, an entry that is taken for one has two directions, and nothing else happens.
func FuzzRecord(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 7, 0, 0, 0, 0, 9})
	f.Add([]byte{2, 0, 0, 0, 52, 0, 1, 0x80, 20, 0, 1, 0x80, 8, 0, 1, 0, 10, 32, 1, 2, 8, 0, 2, 0, 10, 32, 2, 2, 28, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 2, 0, 1, 1, 0, 0, 6, 0, 3, 0, 1, 2, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r record
		if r.decode(b) && (!r.original.src.IsValid() || !r.reply.dst.IsValid()) {
			t.Errorf("%+v", r)
		}
	})
}

func FuzzRules(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte("\x28\x00\x00\x00\x06\x0a\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x08\x00\x01\x00dup\x00"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _, _ = scan(b) })
}

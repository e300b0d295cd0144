// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// A flow of the tests, and a packet of it. The kernel runs programs as if packets came by the loopback, whose hardware address is zero.
type sample struct {
	form     form
	src, dst netip.Addr
	proto    byte
	payload  int
}

const (
	testEpoch   = 5
	testSegment = 200
	testDevice  = 99
)

var (
	testMAC    = []byte{2, 3, 4, 5, 6, 7}
	testHeader = []byte{0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x22, 0x44, 0x66, 0x88, 0xaa, 0xcc}
)

func samples() []sample {
	fs := forms()
	var out []sample
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		out = append(out, sample{fs[0], v4(1, 2), v4(2, 2), proto, 100}, sample{fs[1], v6(1, 2), v6(2, 2), proto, 100})
	}
	return out
}

// packet returns the packet, from the ethernet header on.
func (s sample) packet() []byte {
	transport := make([]byte, 8)
	if s.proto == unix.IPPROTO_TCP {
		transport = make([]byte, 20)
		transport[12], transport[13] = 5<<4, 0x10
	}
	binary.BigEndian.PutUint16(transport, 1000)
	binary.BigEndian.PutUint16(transport[2:], 2000)
	size := len(transport) + s.payload
	p := slices.Concat(make([]byte, 6), testMAC, binary.BigEndian.AppendUint16(nil, s.form.ethertype))
	if s.form.v6 {
		p = append(p, 0x60, 1, 2, 3, byte(size>>8), byte(size), s.proto, 64)
	} else {
		p = append(p, 0x45, 0x10, byte((size+20)>>8), byte(size+20), 7, 7, 0x40, 0, 64, s.proto, 0, 0)
	}
	p = slices.Concat(p, s.src.AsSlice(), s.dst.AsSlice())
	if !s.form.v6 {
		binary.BigEndian.PutUint16(p[24:], checksum(p[14:34]))
	}
	return slices.Concat(p, transport, make([]byte, s.payload))
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// key returns that of the flow of a packet.
func (f form) key(p []byte, device uint32) []byte {
	k := slices.Concat(p[f.src:f.src+f.addr], p[f.dst:f.dst+f.addr], p[f.l4:f.l4+4])
	k = binary.NativeEndian.AppendUint32(k, device)
	return binary.NativeEndian.AppendUint32(k, uint32(p[f.proto]))
}

// loadTest loads the programs and lets them know the flows of the samples.
func loadTest(t *testing.T) *Bypass {
	t.Helper()
	b, err := New(Config{Universe: universe, Log: zap.NewNop()})
	must(t, err)
	t.Cleanup(b.Close)
	b.setEpoch(t, testEpoch)
	for _, s := range samples() {
		b.flow(t, s, func([]byte) {})
	}
	return b
}

func (b *Bypass) setEpoch(t *testing.T, epoch uint32) {
	t.Helper()
	must(t, element(unix.BPF_MAP_UPDATE_ELEM, b.tables.epoch, make([]byte, 4), binary.NativeEndian.AppendUint32(nil, epoch)))
}

// flow writes the flow of a sample, as change leaves it.
func (b *Bypass) flow(t *testing.T, s sample, change func(flow []byte)) {
	t.Helper()
	b.flowBy(t, s, 1, change)
}

// flowBy is flow, for packets that come by a device.
func (b *Bypass) flowBy(t *testing.T, s sample, device uint32, change func(flow []byte)) {
	t.Helper()
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now))
	v := make([]byte, flowSize)
	binary.NativeEndian.PutUint64(v[flowTime:], uint64(now.Nano()))
	binary.NativeEndian.PutUint32(v[flowEpoch:], testEpoch)
	binary.NativeEndian.PutUint32(v[flowDevice:], testDevice)
	binary.NativeEndian.PutUint32(v[flowSegment:], testSegment)
	copy(v[flowHeader:], testHeader)
	copy(v[flowMAC:], testMAC)
	change(v)
	must(t, element(unix.BPF_MAP_UPDATE_ELEM, b.tables.flows[s.form.index], s.form.key(s.packet(), device), v))
}

// What the entry hands on is what a router hands on: the TTL is one less, the checksum is right, the ethernet header is the flow's, all else as it was.
func TestEntryForwards(t *testing.T) {
	b := loadTest(t)
	for _, s := range samples() {
		for _, ttl := range []byte{2, 64, 128, 255} {
			for id := range 600 { // all kinds of checksums
				p := s.packet()
				p[s.form.ttl] = ttl
				if !s.form.v6 {
					binary.BigEndian.PutUint16(p[18:], uint16(id*109))
					binary.BigEndian.PutUint16(p[24:], 0)
					binary.BigEndian.PutUint16(p[24:], checksum(p[14:34]))
				} else if id > 0 {
					break
				}
				want := slices.Clone(p)
				copy(want, testHeader)
				want[s.form.ttl]--
				if !s.form.v6 {
					binary.BigEndian.PutUint16(want[24:], 0)
					binary.BigEndian.PutUint16(want[24:], checksum(want[14:34]))
				}
				b.refresh(t, s)
				if result, got := try(t, b.in.fd, p, 0); result != resultRedirect || !bytes.Equal(got, want) {
					t.Fatalf("%s, protocol %d: %d\n% x\n% x", s.form.name, s.proto, result, got[:50], want[:50])
				}
			}
		}
	}
}

// refresh makes sure that the flow is fresh.
func (b *Bypass) refresh(t *testing.T, s sample) { b.flow(t, s, func([]byte) {}) }

// What a flow does not allow goes through the stack as it came.
func TestEntryLetsPass(t *testing.T) {
	b := loadTest(t)
	for _, s := range samples() {
		f := s.form
		old := func(by uint64) func([]byte) {
			return func(v []byte) {
				binary.NativeEndian.PutUint64(v[flowTime:], binary.NativeEndian.Uint64(v[flowTime:])-by)
			}
		}
		none := func([]byte) {}
		for _, x := range []struct {
			name    string
			flow    func(flow []byte)
			packet  func(p []byte) []byte
			segment uint32
			epoch   uint32
			around  bool
		}{
			{"as it was", none, nil, 0, testEpoch, true},
			{"half a second old", old(fresh / 2), nil, 0, testEpoch, true},
			{"a second old", old(fresh + 20_000_000), nil, 0, testEpoch, false},
			{"another epoch", none, nil, 0, testEpoch + 1, false},
			{"a pause", none, nil, 0, 0, false},
			{"the sender's hardware address", none, func(p []byte) []byte { p[11]++; return p }, 0, testEpoch, false},
			{"to somebody else", none, func(p []byte) []byte { p[0] = 2; return p }, 0, testEpoch, false},
			{"to everybody", none, func(p []byte) []byte { return append(bytes.Repeat([]byte{0xff}, 6), p[6:]...) }, 0, testEpoch, false},
			{"TTL 1", none, func(p []byte) []byte { p[f.ttl] = 1; return p }, 0, testEpoch, false},
			{"TTL 0", none, func(p []byte) []byte { p[f.ttl] = 0; return p }, 0, testEpoch, false},
			{"the beginning of a connection", none, s.flags(0x02), 0, testEpoch, s.proto == unix.IPPROTO_UDP},
			{"the end of a connection", none, s.flags(0x11), 0, testEpoch, s.proto == unix.IPPROTO_UDP},
			{"a reset", none, s.flags(0x14), 0, testEpoch, s.proto == unix.IPPROTO_UDP},
			{"urgent", none, s.flags(0x38), 0, testEpoch, true},
			{"the source", none, func(p []byte) []byte { p[f.src+f.addr-1]++; return p }, 0, testEpoch, false},
			{"the port", none, func(p []byte) []byte { p[f.l4+1]++; return p }, 0, testEpoch, false},
			{"no IP", none, func(p []byte) []byte { p[12], p[13] = 8, 6; return p }, 0, testEpoch, false},
			{"too large", none, func(p []byte) []byte { return append(p, make([]byte, testSegment)...) }, 0, testEpoch, false},
			{"as large as allowed", none, func(p []byte) []byte { return append(p, make([]byte, testSegment+14-len(p))...) }, 0, testEpoch, true},
			{"one byte more", none, func(p []byte) []byte { return append(p, make([]byte, testSegment+15-len(p))...) }, 0, testEpoch, false},
			{"to be cut small", none, func(p []byte) []byte { return append(p, make([]byte, 1000)...) }, 100, testEpoch, true},
			{"to be cut too large", none, func(p []byte) []byte { return append(p, make([]byte, 1000)...) }, 181, testEpoch, false},
			{"cut off", none, func(p []byte) []byte { return p[:f.l4+7] }, 0, testEpoch, false},
		} {
			b.setEpoch(t, x.epoch)
			b.flow(t, s, x.flow)
			p := s.packet()
			if x.packet != nil {
				p = x.packet(p)
			}
			result, got := try(t, b.in.fd, p, x.segment)
			if (result == resultRedirect) != x.around || !x.around && (result != resultNext || !bytes.Equal(got, p)) {
				t.Errorf("%s, protocol %d, %s: %d", f.name, s.proto, x.name, result)
			}
		}
	}
}

// flags gives a TCP packet other ones.
func (s sample) flags(f byte) func([]byte) []byte {
	return func(p []byte) []byte {
		if s.proto == unix.IPPROTO_TCP {
			p[s.form.l4+13] = f
		}
		return p
	}
}

// What begins or ends a connection ends the flow of its direction, so that the stack sees what follows.
func TestEndsEndFlows(t *testing.T) {
	b := loadTest(t)
	for _, s := range samples() {
		if s.proto != unix.IPPROTO_TCP {
			continue
		}
		for _, f := range []byte{0x01, 0x02, 0x04, 0x11, 0x12, 0x14} {
			b.refresh(t, s)
			if result, _ := try(t, b.in.fd, s.packet(), 0); result != resultRedirect {
				t.Fatalf("%s: %d", s.form.name, result)
			}
			for _, p := range [][]byte{s.flags(f)(s.packet()), s.packet()} {
				if result, got := try(t, b.in.fd, p, 0); result != resultNext || !bytes.Equal(got, p) {
					t.Errorf("%s, flags %#x: %d", s.form.name, f, result)
				}
			}
		}
	}
}

// A packet of a flow that comes by another device than the flow's is none of it.
func TestFlowsHaveDevices(t *testing.T) {
	b, err := New(Config{Universe: universe, Log: zap.NewNop()})
	must(t, err)
	t.Cleanup(b.Close)
	b.setEpoch(t, testEpoch)
	for _, s := range samples() {
		for device, want := range map[uint32]int32{2: resultNext, 1: resultRedirect} { // packets of tests come by 1
			b.flowBy(t, s, device, func([]byte) {})
			if result, _ := try(t, b.in.fd, s.packet(), 0); result != want {
				t.Errorf("%s, protocol %d, device %d: %d", s.form.name, s.proto, device, result)
			}
			must(t, element(unix.BPF_MAP_DELETE_ELEM, b.tables.flows[s.form.index], s.form.key(s.packet(), device), nil))
		}
	}
}

// belongs is the oracle: whether a packet may be taken around the stack, of the flow of a sample.
func (s sample) belongs(p []byte) bool {
	f := s.form
	if len(p) < f.l4+8 || len(p)-14 > testSegment || !bytes.Equal(p[:6], make([]byte, 6)) || !bytes.Equal(p[6:12], testMAC) ||
		binary.BigEndian.Uint16(p[12:]) != f.ethertype || p[f.proto] != s.proto || p[f.ttl] < 2 {
		return false
	}
	if f.v6 && p[14]>>4 != 6 || !f.v6 && (p[14] != 0x45 || binary.BigEndian.Uint16(p[20:])&0x3fff != 0) {
		return false
	}
	if s.proto == unix.IPPROTO_TCP && (len(p) < f.l4+20 || p[f.l4+13]&7 != 0) {
		return false
	}
	return bytes.Equal(f.key(p, 1), f.key(s.packet(), 1))
}

// Whatever becomes of a packet's bytes, the program takes around the stack what the oracle lets it, and changes nothing else.
func TestEntryAgainstOracle(t *testing.T) {
	b := loadTest(t)
	all := samples()
	rapid.Check(t, func(r *rapid.T) {
		s := all[rapid.IntRange(0, len(all)-1).Draw(r, "sample")]
		p := s.packet()
		for range rapid.IntRange(0, 2).Draw(r, "changes") {
			i := rapid.IntRange(0, s.form.l4+19).Draw(r, "at")
			if rapid.Bool().Draw(r, "bit") {
				p[i] ^= 1 << rapid.IntRange(0, 7).Draw(r, "which")
			} else {
				p[i] = rapid.Byte().Draw(r, "byte")
			}
		}
		p = p[:rapid.IntRange(ethernet+40, len(p)).Draw(r, "size")] // the kernel makes no packet of half a header
		if rapid.Bool().Draw(r, "whole") {
			p = append(p, make([]byte, rapid.IntRange(0, 100).Draw(r, "more"))...)
		}
		want := slices.ContainsFunc(all, func(s sample) bool { return s.belongs(p) })
		for _, s := range all {
			b.refresh(t, s)
		}
		result, got := try(t, b.in.fd, p, 0)
		if (result == resultRedirect) != want || !want && !bytes.Equal(got, p) {
			r.Fatalf("%d, want %v\n% x", result, want, p)
		}
	})
}

// No packet that bears no number makes a flow when it leaves.
func TestExitNeedsNote(t *testing.T) {
	b := loadTest(t)
	for _, s := range samples() {
		s.src = s.src.Next()
		p := s.packet()
		if result, got := try(t, b.out.fd, p, 0); result != resultNext || !bytes.Equal(got, p) {
			t.Errorf("%d", result)
		}
		v := make([]byte, flowSize)
		for device := range uint32(3) {
			if err := element(unix.BPF_MAP_LOOKUP_ELEM, b.tables.flows[s.form.index], s.form.key(p, device), v); err == nil {
				t.Error("there is a flow")
			}
		}
	}
}

// Programs for one family have nothing of the other one, in which the kernel would find dead code.
func TestOneFamily(t *testing.T) {
	for _, u := range universe {
		b, err := New(Config{Universe: []netip.Prefix{u}, Log: zap.NewNop()})
		must(t, err)
		b.setEpoch(t, testEpoch)
		for _, s := range samples() {
			want := int32(resultNext)
			if s.form.v6 == u.Addr().Is6() {
				b.refresh(t, s)
				want = resultRedirect
			}
			if got, _ := try(t, b.in.fd, s.packet(), 0); got != want {
				t.Errorf("%v: protocol %d of %s: %d", u, s.proto, s.form.name, got)
			}
		}
		b.Close()
	}
}

// Nobody outside of the universe has flows, even if one were known.
func TestOutsideOfUniverse(t *testing.T) {
	for _, u := range []string{"10.32.1.0/24", "10.32.2.0/24", "10.32.1.2/31", "10.40.0.0/13"} {
		b, err := New(Config{Universe: []netip.Prefix{netip.MustParsePrefix(u)}, Log: zap.NewNop()})
		must(t, err)
		b.setEpoch(t, testEpoch)
		b.refresh(t, samples()[0])
		if got, _ := try(t, b.in.fd, samples()[0].packet(), 0); got != resultNext {
			t.Errorf("%s: %d", u, got)
		}
		b.Close()
	}
}

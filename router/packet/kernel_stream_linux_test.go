// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel as the sender: sockets whose traffic leaves by a TUN device with
// all offloads, so that headers and superpackets are of the kernel's making.

const streamMTU = 1420

// stream is a socket and the device that its packets come out of.
type stream struct {
	tun, sock int
	peer      netip.Addr
	proto     uint8
}

// newStream opens a socket connected to peer, port 7; TCP is still connecting.
func newStream(t *testing.T, peer netip.Addr, proto uint8) *stream {
	t.Helper()
	s := &stream{peer: peer, proto: proto}
	kind := unix.SOCK_STREAM
	if proto == protoUDP {
		kind = unix.SOCK_DGRAM
	}
	inNamespace(t, func() (err error) {
		if s.tun, err = openTUN(t, "in", unix.IFF_VNET_HDR, streamMTU, kernelIn4, kernelIn6); err != nil {
			return err
		}
		const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN | unix.TUN_F_USO4 | unix.TUN_F_USO6
		if err := unix.IoctlSetInt(s.tun, unix.TUNSETOFFLOAD, offloads); err != nil {
			return err
		}
		family := unix.AF_INET
		var to unix.Sockaddr
		if peer.Is4() {
			to = &unix.SockaddrInet4{Port: 7, Addr: peer.As4()}
		} else {
			family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: 7, Addr: peer.As16()}
		}
		if s.sock, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		closeLater(t, s.sock)
		if err := unix.Connect(s.sock, to); !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		return nil
	})
	return s
}

// next returns the segments of the next read that holds traffic of the socket,
// verified.
func (s *stream) next(t *testing.T) (segments [][]byte, h VNetHdr) {
	t.Helper()
	for {
		b := readTUN(t, s.tun)
		if err := h.Decode(b); err != nil {
			t.Fatal(err)
		}
		var p Packet
		if err := p.Parse(b[VNetHdrLen:]); err != nil || p.Dst != s.peer || p.Proto != s.proto {
			continue
		}
		segments, err := split(t, b[VNetHdrLen:], h)
		if err != nil {
			t.Fatalf("%+v: %v", h, err)
		}
		for _, seg := range segments {
			if len(seg) > streamMTU {
				t.Fatalf("a segment of %d bytes", len(seg))
			}
			verify(t, seg, netip.Addr{})
		}
		return segments, h
	}
}

func peers() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.91.0.2"), netip.MustParseAddr("fd91::2")}
}

func TestSplitKernelUDP(t *testing.T) {
	for _, peer := range peers() {
		t.Run(peer.String(), func(t *testing.T) {
			s := newStream(t, peer, protoUDP)
			if err := unix.SetsockoptInt(s.sock, unix.SOL_UDP, unix.UDP_SEGMENT, 1000); err != nil {
				t.Fatal(err)
			}
			sent := pattern(11, 9501)
			if _, err := unix.Write(s.sock, sent); err != nil {
				t.Fatal(err)
			}
			segments, h := s.next(t)
			if h.GSOType != VNetGSOUDPL4 || len(segments) != 10 {
				t.Fatalf("%d datagrams, %+v", len(segments), h)
			}
			var got []byte
			for _, seg := range segments {
				var p Packet
				if err := p.Parse(seg); err != nil {
					t.Fatal(err)
				}
				got = append(got, seg[p.HeaderLen+8:]...)
			}
			if !bytes.Equal(got, sent) {
				t.Error("payload changed")
			}
		})
	}
}

func TestSplitKernelTCP(t *testing.T) {
	for _, peer := range peers() {
		t.Run(peer.String(), func(t *testing.T) {
			s := newStream(t, peer, protoTCP)
			start := s.accept(t)
			sent := pattern(13, 9000) // less than the first congestion window
			if n, err := unix.Write(s.sock, sent); err != nil || n != len(sent) {
				t.Fatal(n, err)
			}
			got := make([]byte, 0, len(sent))
			super := 0
			for len(got) < len(sent) {
				segments, h := s.next(t)
				if h.GSOType != VNetGSONone {
					super++
				}
				for _, seg := range segments {
					var p Packet
					if err := p.Parse(seg); err != nil {
						t.Fatal(err)
					}
					tcp := seg[p.HeaderLen:]
					data := tcp[tcp[12]>>4*4:]
					// Skip the acknowledgement of the handshake and repetitions.
					if seq := binary.BigEndian.Uint32(tcp[4:]); seq == start+uint32(len(got)) {
						got = append(got, data...)
					} else if len(data) > 0 && seq-start > uint32(len(got)) {
						t.Fatalf("segment at %d, expected %d", seq-start, len(got))
					}
				}
			}
			if super == 0 {
				t.Error("the kernel sent no superpacket")
			}
			if !bytes.Equal(got, sent) {
				t.Error("payload changed")
			}
		})
	}
}

// accept answers the SYN of the kernel and returns the sequence number of the
// first byte that it will send. The SYN's segment size is clamped on the way.
func (s *stream) accept(t *testing.T) uint32 {
	t.Helper()
	segments, _ := s.next(t)
	syn := segments[0]
	var p Packet
	if err := p.Parse(syn); err != nil {
		t.Fatal(err)
	}
	if !ClampMSS(syn, &p, streamMTU-1) || ClampMSS(syn, &p, streamMTU-1) {
		t.Error("the kernel's segment size is not that of its MTU")
	}
	verify(t, syn, netip.Addr{})

	tcp := syn[p.HeaderLen:]
	seq := binary.BigEndian.Uint32(tcp[4:])
	answer := spec{src: p.Dst, dst: p.Src, ttl: 64, proto: protoTCP, transport: make([]byte, 24)}
	copy(answer.transport, []byte{tcp[2], tcp[3], tcp[0], tcp[1], 0, 0, 1, 0})
	binary.BigEndian.PutUint32(answer.transport[8:], seq+1)
	copy(answer.transport[12:], []byte{0x60, 0x12, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 0x05, 0x00})
	// The kernel needs a moment before it takes packets to a new IPv6 address:
	// repeat the answer until it is connected.
	for range 50 {
		if _, err := unix.Write(s.tun, append(make([]byte, VNetHdrLen), answer.build(false)...)); err != nil {
			t.Fatal(err)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.sock), Events: unix.POLLOUT}}, 100)
		if n > 0 {
			return seq + 1
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
	t.Fatal("the kernel does not take our answer to its SYN")
	return 0
}

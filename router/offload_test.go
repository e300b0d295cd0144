// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// super is a superpacket as the kernel hands it over, and what it stands for.
func super(t *testing.T, src, dst netip.Addr, proto byte, size, each int) (h packet.VNetHdr, frame []byte, want [][]byte) {
	t.Helper()
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = byte(rand.Uint32())
	}
	h = packet.VNetHdr{Flags: packet.VNetNeedsCsum, GSOSize: uint16(each), CsumStart: 20}
	if proto == 6 {
		frame = tcp(src, dst, 0x18, 0, string(payload))
		h.CsumOffset, h.GSOType = 16, packet.VNetGSOTCPv4
	} else {
		frame = udp(src, dst, string(payload))
		h.CsumOffset, h.GSOType = 6, packet.VNetGSOUDPL4
	}
	if src.Is6() {
		h.CsumStart = 40
		if proto == 6 {
			h.GSOType = packet.VNetGSOTCPv6
		}
	}
	if size <= each {
		h.GSOType, h.GSOSize = packet.VNetGSONone, 0
	}
	binary.BigEndian.PutUint16(frame[h.CsumStart+h.CsumOffset:], pseudo(src, dst, proto, len(frame)-int(h.CsumStart)))
	var s packet.Splitter
	if err := s.Init(bytes.Clone(frame), h); err != nil {
		t.Fatal(err)
	}
	for b, ok := s.Next(); ok; b, ok = s.Next() {
		checkSums(t, b)
		want = append(want, bytes.Clone(b))
	}
	return h, frame, want
}

// Whatever either side offloads, what arrives are the very packets that left, their checksums complete.
func TestOffloadsBetweenHosts(t *testing.T) {
	for i := range 8 {
		from := shape{shards: 1, vnet: true, suite: session.Suite(i & 1)}
		to := shape{shards: 1, vnet: i&2 != 0, suite: from.suite}
		known := i&4 != 0 // there is a key when the first leaves
		t.Run(fmt.Sprintf("to vnet %v, %v, known %v", to.vnet, to.suite, known), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := routertest.NewNet(1)
				a, b := newHost(t, net, 1, from), newHost(t, net, 2, to)
				a.setPeers(peer(2, to))
				b.setPeers(peer(1, from))
				a.start()
				b.start()
				defer a.stop()
				defer b.stop()
				if known {
					establish(a, b)
				}
				for family := range 2 {
					src, dst := addr4(1, 9), addr4(2, 9)
					if family == 1 {
						src, dst = addr6(1, 9), addr6(2, 9)
					}
					for _, proto := range []byte{6, 17} {
						for _, size := range []int{1, 1300, 1301, 30000} {
							h, frame, want := super(t, src, dst, proto, size, 1300)
							a.queues[0].InjectSuper(h, frame)
							time.Sleep(time.Second)
							b.want(want...)
						}
					}
				}
				a.wantDrops(nil)
				b.wantDrops(nil)
			})
		})
	}
}

// Packets of several flows and kinds that come at once are delivered in their order.
func TestMixedBatch(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		var want [][]byte
		for i := range 30 {
			flow := addr4(1, 9+i%3)
			seg := tcp(flow, addr4(2, 9), 0x10, 0, "some data of a stream")
			binary.BigEndian.PutUint32(seg[24:], uint32(1+i/3*21))
			binary.BigEndian.PutUint16(seg[4:], uint16(i/3))
			seg[10], seg[11], seg[36], seg[37] = 0, 0, 0, 0
			binary.BigEndian.PutUint16(seg[10:], ^checksum(0, seg[:20]))
			binary.BigEndian.PutUint16(seg[36:], ^checksum(pseudo(flow, addr4(2, 9), 6, len(seg)-20), seg[20:]))
			want = append(want, seg)
			if i%4 == 3 {
				want = append(want, udp(addr4(1, 9), addr4(2, 9), "in between"))
			}
		}
		for _, w := range want {
			a.queues[0].Inject(w)
		}
		b.want(want...)
	})
}

// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// withTOS returns a copy of an IP packet with another type of service or traffic class.
func withTOS(b []byte, tos uint8) []byte {
	b = slices.Clone(b)
	if b[0]>>4 == 6 {
		b[0], b[1] = b[0]&0xf0|tos>>4, b[1]&0x0f|tos<<4
		return b
	}
	b[1], b[10], b[11] = tos, 0, 0
	binary.BigEndian.PutUint16(b[10:], ^checksum(0, b[:20]))
	return b
}

// road is what happens to the TOS of datagrams on the way.
type road struct {
	mu   sync.Mutex
	mark func(tos uint8) uint8
	seen []uint8 // as sent
}

func newRoad(net *routertest.Net) *road {
	r := &road{}
	net.SetMarks(func(_, _ netip.AddrPort, tos uint8) uint8 {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen = append(r.seen, tos)
		if r.mark != nil {
			tos = r.mark(tos)
		}
		return tos
	})
	return r
}

func (r *road) set(mark func(tos uint8) uint8) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mark, r.seen = mark, nil
}

func (r *road) sent() []uint8 {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

// What the network marks on the outside is on the inside at the end, by the table of RFC 6040, and nothing else is changed.
func TestCongestionMarks(t *testing.T) {
	const dscp = 0xb8
	inEachShape(t, func(t *testing.T, net *routertest.Net, a, b *host) {
		way := newRoad(net)
		establish(a, b)
		b.delivered()
		for inner := range uint8(4) {
			for outer := range uint8(4) {
				for _, plain := range [][]byte{
					udp(addr4(1, 9), addr4(2, 9), "congested"), tcp(addr6(1, 9), addr6(2, 9), 0x18, 0, "congested"),
				} {
					name := fmt.Sprintf("inner %02b, outer %02b", inner, outer)
					before := b.drops()
					way.set(func(uint8) uint8 { return 0x20 | outer })
					a.queues[0].Inject(withTOS(plain, dscp|inner))
					if got := way.sent(); len(got) != 1 || got[0] != inner|underlay.LightTOS {
						t.Errorf("%s: sent with %x", name, got)
					}
					combined := max(inner&1<<1|inner>>1, outer&1<<1|outer>>1) // the more severe; 01 is more than 10
					combined = combined&1<<1 | combined>>1
					switch {
					case inner == packet.NotECT && outer == packet.CE:
						b.want()
						before[router.DropECN]++
					case inner == packet.NotECT:
						b.want(withTOS(plain, dscp))
					default:
						b.want(withTOS(plain, dscp|combined))
					}
					if after := b.drops(); !maps.Equal(before, after) {
						t.Errorf("%s: drops went from %v to %v", name, before, after)
					}
				}
			}
		}
		lines := b.log.FilterMessageSnippet("congestion marks").All()
		if len(lines) != 1 || lines[0].ContextMap()["peer"] != "host1" {
			t.Errorf("log: %v", lines)
		}
	})
}

// Every datagram bears the mark of its own packet, in whatever company, also if the packet has waited for a key, and the DSCP only if that is wanted; else it
// says that these are light.
// Handshakes are AF41.
func TestTOSOfDatagrams(t *testing.T) {
	for _, copied := range []bool{false, true} {
		for _, s := range shapes {
			synctest.Test(t, func(t *testing.T) {
				net := routertest.NewNet(1)
				way := newRoad(net)
				change := func(c *router.Config) { c.CopyDSCP, c.ID = copied, 0 } // no nodes: there are no pings
				a, b := newHostWith(t, net, 1, s, change), newHostWith(t, net, 2, s, change)
				a.setPeers(peer(2, s))
				b.setPeers(peer(1, s))
				a.start()
				b.start()
				defer a.stop()
				defer b.stop()
				mask, light := uint8(packet.ECNMask), uint8(underlay.LightTOS)
				if copied {
					mask, light = 0xff, 0
				}
				tos := []uint8{0, 0, 1, 1, 2, 0xb8, 0xba, 0xba, 3, 2, 2, 0x28}
				for _, want := range [][]uint8{{0x88, 0x88, 0}, nil} { // initiation, response and keepalive; at first
					way.set(nil)
					var packets [][]byte
					for i, v := range tos {
						p := withTOS(udp(addr4(1, 9), addr4(2, 9), fmt.Sprint("packet ", i%2)), v)
						packets = append(packets, p)
						a.queues[0].Inject(p)
						want = append(want, v&mask|light)
					}
					b.want(packets...)
					if got := way.sent(); !slices.Equal(got, want) {
						t.Errorf("%v, copied %v: sent with\n%x, want\n%x", s, copied, got, want)
					}
					time.Sleep(time.Second)
				}
			})
		}
	}
}

// Superpackets are marked as a whole, and what arrives of them packet by packet.
func TestMarkedSuperpackets(t *testing.T) {
	for _, suite := range []session.Suite{session.WireGuard, session.Weft} {
		for _, src := range []int{4, 6} {
			synctest.Test(t, func(t *testing.T) {
				s := shape{shards: 1, vnet: true, suite: suite}
				net := routertest.NewNet(1)
				way := newRoad(net)
				a, b := pair(t, net, s)
				defer a.stop()
				defer b.stop()
				establish(a, b)
				b.delivered()
				from, to := addr4(1, 9), addr4(2, 9)
				if src == 6 {
					from, to = addr6(1, 9), addr6(2, 9)
				}
				h, frame, want := super(t, from, to, 6, 13000, 1300)
				for i := range want {
					mark := uint8(packet.ECT0)
					if i%3 == 1 {
						mark = packet.CE
					}
					want[i] = withTOS(want[i], 0x28|mark)
				}
				n := -1
				way.set(func(tos uint8) uint8 {
					if n++; n%3 == 1 && tos&packet.ECNMask == packet.ECT0 {
						return packet.CE
					}
					return tos
				})
				a.queues[0].InjectSuper(h, withTOS(frame, 0x28|packet.ECT0))
				b.want(want...)
				for _, p := range want {
					checkSums(t, p)
				}
			})
		}
	}
}

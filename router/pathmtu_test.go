// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
)

// sealedLen is the length of the datagram that carries a packet of n bytes.
func sealedLen(n int) int {
	return session.Overhead + (n+session.Padding-1)&^(session.Padding-1)
}

// sized is a packet of n bytes; its kind tells what may be done with it.
func sized(src, dst netip.Addr, n int) []byte {
	headers := 28
	if src.Is6() {
		headers = 48
	}
	return udp(src, dst, strings.Repeat("x", n-headers))
}

// mayFragment clears the don't-fragment bit of an IPv4 packet and gives it an identification.
func mayFragment(b []byte, id uint16) []byte {
	b = bytes.Clone(b)
	binary.BigEndian.PutUint16(b[4:], id)
	b[6], b[10], b[11] = 0, 0, 0
	binary.BigEndian.PutUint16(b[10:], ^checksum(0, b[:20]))
	return b
}

// fragments are what becomes of an IPv4 packet on a path of mtu bytes.
func fragments(t *testing.T, b []byte, mtu int) (all [][]byte) {
	t.Helper()
	var p packet.Packet
	var f packet.Fragmenter
	b = bytes.Clone(b)
	if err := p.Parse(b); err != nil || !f.Init(b, &p, mtu) {
		t.Fatalf("%v, DF %v", err, p.DF)
	}
	for part, ok := f.Next(); ok; part, ok = f.Next() {
		all = append(all, bytes.Clone(part))
	}
	return all
}

// path returns what a says of its way to the other host.
func (h *host) path() string {
	synctest.Wait()
	s := h.PeerStats()[0]
	return fmt.Sprintf("%d %v", s.MTU, s.Confirmed)
}

func (h *host) wantPath(mtu int, confirmed bool) {
	h.t.Helper()
	if got, want := h.path(), fmt.Sprintf("%d %v", mtu, confirmed); got != want {
		h.t.Errorf("host %d: path MTU %s, want %s; %+v", h.i, got, want, h.Stats())
	}
}

// keepSending makes h send large packets to the other host until the returned function is called.
func (h *host) keepSending(to int) (stop func()) {
	var done atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !done.Load() {
			h.queues[0].Inject(sized(addr4(h.i, 9), addr4(to, 9), 1200))
			time.Sleep(100 * time.Millisecond)
		}
	}()
	return func() { done.Store(true); <-ended }
}

func TestPathIsConfirmed(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		a.wantPath(localMTU, false)
		establish(a, b)
		a.wantPath(localMTU, true)
		b.wantPath(localMTU, true)
		// One probe each way was enough, and idle hosts send none.
		for _, h := range []*host{a, b} {
			time.Sleep(time.Minute)
			if s := h.Stats(); s.ProbesTx > 2 || s.ProbesAcked != s.ProbesTx {
				t.Errorf("host %d: %d probes, %d acknowledged", h.i, s.ProbesTx, s.ProbesAcked)
			}
		}
		for _, h := range []*host{a, b} {
			if n := h.log.FilterMessageSnippet("packets reach").Len(); n != 0 {
				t.Errorf("host %d says %v", h.i, h.log.All())
			}
		}
	})
}

// A path that is narrower than the MTU is found, without ICMP and although it drops fragments too, and all kinds of packets fare as
// they should from then on.
func TestNarrowPath(t *testing.T) {
	for _, width := range []int{1392, 1376, 1200, 1008} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			inEachShape(t, func(t *testing.T, net *routertest.Net, a, b *host) {
				net.SetWidth(sealedLen(width))
				establish(a, b)
				time.Sleep(2 * time.Second)
				a.wantPath(width, true)
				b.wantPath(width, true)
				b.delivered()
				for family, src := range []netip.Addr{addr4(1, 9), addr6(1, 9)} {
					dst, least := addr4(2, 9), width
					if family == 1 {
						dst, least = addr6(2, 9), max(width, 1280)
					}
					fits := sized(src, dst, least)
					a.queues[0].Inject(fits)
					a.queues[0].Inject(sized(src, dst, least+1))
					b.want(fits)
					if got := a.delivered(); len(got) != 1 {
						t.Errorf("%d packets came back for one that is too large", len(got))
					} else if mtu := int(binary.BigEndian.Uint16(got[0][26+20*family:])); mtu != least {
						t.Errorf("the sender is told %d, want %d", mtu, least)
					}
				}
				large := mayFragment(sized(addr4(1, 9), addr4(2, 9), localMTU), 77)
				a.queues[0].Inject(large)
				b.want(fragments(t, large, width)...)
				// The segment size goes by the path also where IPv6 packets could be larger.
				for _, from := range []netip.Addr{addr4(1, 9), addr6(1, 9)} {
					to, want := addr4(2, 9), width-40
					if from.Is6() {
						to, want = addr6(2, 9), width-60
					}
					a.queues[0].Inject(tcp(from, to, 2, 1460, ""))
					if got := b.delivered(); len(got) != 1 || int(binary.BigEndian.Uint16(got[0][len(got[0])-2:])) != want {
						t.Errorf("%x, want a segment size of %d", got, want)
					}
				}
				lines := a.log.FilterMessage("only smaller packets reach a peer; senders are told, where packets must not be fragmented").All()
				if len(lines) != 1 || fmt.Sprint(lines[0].ContextMap()) != fmt.Sprintf("map[from:%d peer:host2 to:%d]", localMTU, width) {
					t.Errorf("log: %v", lines)
				}
			})
		})
	}
}

// Runs of datagrams whose checksums are open arrive as they left, in fragments or pieces where need be.
func TestSuperpacketsOverNarrowPath(t *testing.T) {
	for _, s := range []shape{{shards: 1, vnet: true}, {shards: 1, vnet: true, suite: session.Weft}} {
		synctest.Test(t, func(t *testing.T) {
			net := routertest.NewNet(1)
			a, b := pair(t, net, s)
			defer a.stop()
			defer b.stop()
			net.SetWidth(sealedLen(1200))
			establish(a, b)
			time.Sleep(2 * time.Second)
			b.delivered()
			h, frame, segments := super(t, addr6(1, 9), addr6(2, 9), 17, 7000, 1280-48)
			a.queues[0].InjectSuper(h, frame)
			b.want(segments...)

			h, frame, segments = super(t, addr4(1, 9), addr4(2, 9), 17, 7000, 1380)
			a.queues[0].InjectSuper(h, mayFragment(frame, 5))
			var want [][]byte
			for i, segment := range segments {
				want = append(want, fragments(t, mayFragment(segment, uint16(5+i)), 1200)...)
			}
			b.want(want...)
			a.wantDrops(nil)
			b.wantDrops(nil)
		})
	}
}

// The search of a path that loses packets of a size is over before TCP has given up for long; when it carries them again, that
// is noticed too.
func TestBlackHole(t *testing.T) {
	inEachShape(t, func(t *testing.T, net *routertest.Net, a, b *host) {
		establish(a, b)
		stop := a.keepSending(2)
		time.Sleep(10*time.Second + 300*time.Millisecond)
		net.SetWidth(sealedLen(1376))
		start := time.Now()
		for a.path() != "1376 true" {
			time.Sleep(10 * time.Millisecond)
			if took := time.Since(start); took > 3*time.Second {
				t.Fatalf("%s after %v", a.path(), took)
			}
		}
		time.Sleep(10 * time.Second)
		a.wantPath(1376, true)
		net.SetWidth(0)
		time.Sleep(65 * time.Second)
		a.wantPath(localMTU, true)
		stop()
		b.wantPath(localMTU, true)
		if n := a.log.FilterMessage("larger packets reach a peer").Len(); n != 1 || a.log.Len() != 2 {
			t.Errorf("log: %v", a.log.All())
		}
	})
}

// A peer that drops what is no IP packet, as all but Weft do, gets packets of the configured size.
func TestPeerWithoutProbes(t *testing.T) {
	for _, told := range []bool{false, true} {
		inEachShape(t, func(t *testing.T, net *routertest.Net, a, b *host) {
			quiet := peer(2, shapes[0])
			quiet.Suite, quiet.NoProbes, quiet.MTU = a.PeerStats()[0].Suite, told, 1300
			a.setPeers(quiet)
			var acks atomic.Int32
			net.SetFilter(func(from, _ netip.AddrPort, d []byte) bool {
				if from == at(2) && len(d) == sealedLen(16) { // an acknowledgement
					acks.Add(1)
					return false
				}
				return true
			})
			establish(a, b)
			stop := a.keepSending(2)
			time.Sleep(time.Minute)
			stop()
			b.delivered()
			a.wantPath(1300, false)
			p := sized(addr4(1, 9), addr4(2, 9), 1300)
			a.queues[0].Inject(p)
			b.want(p)
			if s := a.Stats(); s.ProbesAcked != 0 || told != (s.ProbesTx == 0) || s.ProbesTx > 200 {
				t.Errorf("told %v: %d probes, %d acknowledged", told, s.ProbesTx, s.ProbesAcked)
			}
			if told != (acks.Load() == 0) {
				t.Errorf("told %v: %d acknowledgements", told, acks.Load())
			}
		})
	}
}

// Where the link of the host itself becomes narrow, nothing is lost at all.
func TestNarrowLink(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		b.delivered()
		for _, c := range a.conns {
			c.SetLink(sealedLen(1300))
		}
		p := sized(addr4(1, 9), addr4(2, 9), localMTU)
		a.queues[0].Inject(p)
		b.want(p)
		time.Sleep(time.Second)
		a.wantPath(1312, true) // which is sealed into datagrams of the same size
		a.queues[0].Inject(p)
		if got := a.delivered(); len(got) != 1 {
			t.Errorf("%d packets came back", len(got))
		}
		if s := a.PeerStats()[0]; s.LastError != "" {
			t.Errorf("error %q", s.LastError)
		}
	})
}

// A host that moves to another network finds out at once how wide that is.
func TestPathAfterRoaming(t *testing.T) {
	inEachShape(t, func(t *testing.T, net *routertest.Net, a, b *host) {
		net.SetWidth(sealedLen(1200))
		establish(a, b)
		time.Sleep(3 * time.Second)
		a.wantPath(1200, true)
		net.SetWidth(0)
		b.move(netip.MustParseAddrPort("198.51.100.7:6783"))
		b.queues[0].Inject(udp(addr4(2, 9), addr4(1, 9), "from elsewhere"))
		time.Sleep(time.Second)
		a.wantPath(localMTU, true)
	})
}

// A full socket postpones probes; it does not look like a narrow path.
func TestProbesOverFullSocket(t *testing.T) {
	inEachShape(t, func(t *testing.T, _ *routertest.Net, a, b *host) {
		establish(a, b)
		stop := a.keepSending(2)
		defer stop()
		time.Sleep(3 * time.Second)
		for range 20 {
			for _, full := range []bool{true, false} {
				for _, c := range a.conns {
					c.SetFull(full)
				}
				time.Sleep(700 * time.Millisecond)
			}
		}
		a.wantPath(localMTU, true)
		if a.log.Len() != 0 {
			t.Errorf("log: %v", a.log.All())
		}
	})
}

// What a peer may say to the router, and what not.
func TestMessagesOfPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, routertest.NewNet(1), shapes[0])
		defer a.stop()
		defer b.stop()
		establish(a, b)
		b.delivered()
		before := b.Stats()
		// A workload cannot speak for the router: what it sends is no IP packet.
		a.queues[0].Inject(append([]byte{0x10, 1, 1, 0, 0, 32}, make([]byte, 26)...))
		a.wantDrops(map[router.Reason]uint64{router.DropLocal: 1})
		b.want()
		if after := b.Stats(); after.TxPackets != before.TxPackets || after.RxPackets != before.RxPackets {
			t.Errorf("%+v, then %+v", before, after)
		}
	})
}

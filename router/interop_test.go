// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/underlay"
)

// These tests run a router against the reference, wireguard-go's device, over a network in memory and in virtual time.

// netBind is the reference's socket.
type netBind struct {
	conn   *routertest.Conn
	poller router.Poller

	mu   sync.Mutex
	open bool
}

func (b *netBind) isOpen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open
}

func (b *netBind) set(open bool) {
	b.mu.Lock()
	b.open = open
	b.mu.Unlock()
	b.poller.Wake()
}

func (b *netBind) Open(p uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.set(true)
	return []conn.ReceiveFunc{b.receive}, p, nil
}

func (b *netBind) receive(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for b.isOpen() {
		if _, err := b.poller.Wait(router.ReadUDP, -1); err != nil {
			return 0, err
		}
		ms := []underlay.Message{{Buf: packets[0]}}
		if n, err := b.conn.Recv(ms); err != nil || n > 0 {
			sizes[0], eps[0] = ms[0].N, netEndpoint(ms[0].Addr)
			return n, err
		}
	}
	return 0, net.ErrClosed
}

func (b *netBind) Close() error {
	b.set(false)
	return nil
}

func (b *netBind) Send(msgs [][]byte, to conn.Endpoint) error {
	a, err := netip.ParseAddrPort(to.DstToString())
	for _, msg := range msgs {
		if err == nil {
			err = b.conn.SendTo(bytes.Clone(msg), a, 0)
		}
	}
	return err
}

func (b *netBind) SetMark(uint32) error { return nil }
func (b *netBind) BatchSize() int       { return 1 }
func (b *netBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return netEndpoint(a), err
}

type netEndpoint netip.AddrPort

func (netEndpoint) ClearSrc()             {}
func (netEndpoint) SrcToString() string   { return "" }
func (netEndpoint) SrcIP() netip.Addr     { return netip.Addr{} }
func (e netEndpoint) DstToString() string { return netip.AddrPort(e).String() }
func (e netEndpoint) DstIP() netip.Addr   { return netip.AddrPort(e).Addr() }
func (e netEndpoint) DstToBytes() []byte  { b, _ := netip.AddrPort(e).MarshalBinary(); return b }

// reference is host 2, which runs wireguard-go.
type reference struct {
	t    *testing.T
	tun  *tuntest.ChannelTUN
	conn *routertest.Conn
}

// alive keeps closed devices and their peers from the garbage collector: the finalizers of their queues would touch a bubble's channels
// from outside, which is fatal.
var alive struct {
	sync.Mutex
	all []any
}

// newReference runs one that knows host 1, with a preshared key that is not the zero one.
func newReference(t *testing.T, net *routertest.Net, psk session.PresharedKey) *reference {
	t.Helper()
	r := &reference{t: t, tun: tuntest.NewChannelTUN(), conn: net.Listen(at(2))}
	poller, err := routertest.Poll(routertest.NewQueue(false), r.conn)
	if err != nil {
		t.Fatal(err)
	}
	dev := device.NewDevice(r.tun.TUN(), &netBind{conn: r.conn, poller: poller}, device.NewLogger(device.LogLevelSilent, ""))
	key, public := privateKey(2), privateKey(1).Public()
	err = dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=1\npublic_key=%s\npreshared_key=%s\nendpoint=%s\nallowed_ip=%s\nallowed_ip=%s\n",
		hex.EncodeToString(key[:]), hex.EncodeToString(public[:]), hex.EncodeToString(psk[:]), at(1), prefixes(1)[0], prefixes(1)[1]))
	if err == nil {
		err = dev.Up()
	}
	if err != nil {
		t.Fatal(err)
	}
	alive.Lock()
	alive.all = append(alive.all, dev, dev.LookupPeer(device.NoisePublicKey(public)))
	alive.Unlock()
	t.Cleanup(dev.Close)
	return r
}

// want checks that exactly these packets arrive at the reference, within a second.
func (r *reference) want(packets ...[]byte) {
	r.t.Helper()
	for i, p := range packets {
		select {
		case got := <-r.tun.Inbound:
			if !bytes.Equal(got, p) {
				r.t.Errorf("packet %d is %x, want %x", i, got, p)
			}
		case <-time.After(time.Second):
			r.t.Errorf("packet %d of %d did not arrive at the reference", i, len(packets))
			return
		}
	}
	synctest.Wait()
	select {
	case got := <-r.tun.Inbound:
		r.t.Errorf("the reference got %x, which was not expected", got)
	default:
	}
}

func (r *reference) send(p []byte) { r.tun.Outbound <- bytes.Clone(p) }

// withReference runs a test of host 1 and the reference.
func withReference(t *testing.T, psk, theirs session.PresharedKey, f func(t *testing.T, net *routertest.Net, a *host, b *reference)) {
	t.Helper()
	for _, s := range []shape{{shards: 1, psk: psk}, {shards: 2, vnet: true, psk: psk}} {
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := routertest.NewNet(1)
				a, b := newHost(t, net, 1, s), newReference(t, net, theirs)
				a.setPeers(peer(2, s))
				a.start()
				defer a.stop()
				f(t, net, a, b)
			})
		})
	}
}

// TestInterop: either side begins; packets of all sizes cross; each follows the other to where it roams, and sessions are renewed without a loss.
func TestInterop(t *testing.T) {
	for _, weBegin := range []bool{true, false} {
		for _, psk := range []session.PresharedKey{{}, {1, 2, 3}} {
			withReference(t, psk, psk, func(t *testing.T, _ *routertest.Net, a *host, b *reference) {
				out, in := udp(addr4(1, 9), addr4(2, 9), "out"), udp(addr6(2, 9), addr6(1, 9), "in")
				ours := func() {
					t.Helper()
					a.queues[0].Inject(out)
					b.want(out)
				}
				theirs := func() {
					t.Helper()
					b.send(in)
					a.want(in)
				}
				if weBegin {
					ours()
					theirs()
				} else {
					theirs()
					ours()
				}
				for _, size := range []int{0, 1, 3, 4, 5, 16, 1000, 1360} {
					payload := string(bytes.Repeat([]byte{'x'}, size))
					for _, v := range [][2]netip.Addr{{addr4(1, 9), addr4(2, 9)}, {addr6(1, 9), addr6(2, 9)}} {
						p := udp(v[0], v[1], payload)
						a.queues[0].Inject(p)
						b.want(p)
						p = udp(v[1], v[0], payload)
						b.send(p)
						a.want(p)
					}
				}
				// The reference roams, and says so by its next packet; then we do.
				endpoint := func() netip.AddrPort { return a.PeerStats()[0].Endpoint }
				b.conn.Move(at(22))
				theirs()
				if endpoint() != at(22) {
					t.Errorf("the reference is at %v, we think at %v", at(22), endpoint())
				}
				ours()
				for _, c := range a.conns {
					c.Move(at(11))
				}
				ours()
				theirs()
				// Half an hour of renewals, of which at least some are either side's.
				for range 30 * 60 / 5 {
					ours()
					theirs()
					time.Sleep(5 * time.Second)
				}
				if s := a.PeerStats()[0]; s.State != router.Established || time.Since(s.Handshake) > 3*time.Minute {
					t.Errorf("%+v", s)
				}
				a.wantDrops(nil)
			})
		}
	}
}

// TestInteropWrongPresharedKey: nothing crosses, and we say why.
func TestInteropWrongPresharedKey(t *testing.T) {
	withReference(t, session.PresharedKey{1}, session.PresharedKey{2}, func(t *testing.T, _ *routertest.Net, a *host, b *reference) {
		a.queues[0].Inject(udp(addr4(1, 9), addr4(2, 9), "out"))
		b.send(udp(addr4(2, 9), addr4(1, 9), "in"))
		time.Sleep(time.Minute)
		a.want()
		b.want()
		if d := a.drops(); d[router.DropAuth] == 0 || a.PeerStats()[0].LastError == "" || a.PeerStats()[0].State == router.Established {
			t.Errorf("drops %v, %+v", d, a.PeerStats()[0])
		}
	})
}

// TestInteropUnderLoad: while strangers flood us, the reference gets in by a cookie with its second initiation.
func TestInteropUnderLoad(t *testing.T) {
	withReference(t, session.PresharedKey{}, session.PresharedKey{}, func(t *testing.T, net *routertest.Net, a *host, b *reference) {
		public := privateKey(1).Public()
		m, err := session.New(session.Config{Private: privateKey(3), Rand: rand.NewChaCha8([32]byte{})})
		if err != nil {
			t.Fatal(err)
		}
		p, err := m.AddPeer(session.PeerConfig{Public: public})
		if err != nil {
			t.Fatal(err)
		}
		junk, ok := p.Initiate(nil, time.Now())
		if !ok {
			t.Fatal("no initiation")
		}
		n := 0
		flood := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				for range 200 {
					n++
					net.Inject(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), 1), at(1), junk)
				}
				synctest.Wait()
			}
		}
		flood(3 * time.Second)
		in := udp(addr4(2, 9), addr4(1, 9), "in")
		b.send(in)
		flood(time.Second)
		a.want()
		flood(6 * time.Second)
		a.want(in)
		if s := a.Stats(); s.Handshakes != 1 || s.Drops[router.DropUnderLoad] < 10000 {
			t.Errorf("%+v", s)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// The judge: wireguard-go's device in this process and in virtual time, with channels for its
// network and its TUN device.

// chanBind is the device's network. in carries batches.
type chanBind struct {
	in     chan [][]byte
	out    chan []byte
	batch  int
	mu     sync.Mutex
	closed chan struct{}
}

func (b *chanBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	closed := make(chan struct{})
	b.closed = closed
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case msgs := <-b.in:
			for i, msg := range msgs {
				sizes[i], eps[i] = copy(packets[i], msg), chanEndpoint{addrA}
			}
			return len(msgs), nil
		}
	}}, port, nil
}

func (b *chanBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	return nil
}

func (b *chanBind) Send(msgs [][]byte, _ conn.Endpoint) error {
	for _, msg := range msgs {
		b.out <- bytes.Clone(msg)
	}
	return nil
}

func (b *chanBind) SetMark(uint32) error { return nil }
func (b *chanBind) BatchSize() int       { return b.batch }
func (b *chanBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return chanEndpoint{a}, err
}

type chanEndpoint struct{ a netip.AddrPort }

func (chanEndpoint) ClearSrc()             {}
func (chanEndpoint) SrcToString() string   { return "" }
func (chanEndpoint) SrcIP() netip.Addr     { return netip.Addr{} }
func (e chanEndpoint) DstToString() string { return e.a.String() }
func (e chanEndpoint) DstIP() netip.Addr   { return e.a.Addr() }
func (e chanEndpoint) DstToBytes() []byte  { b, _ := e.a.MarshalBinary(); return b }

// interop is our node and the reference.
type interop struct {
	t      *testing.T
	n      *node
	bind   *chanBind
	tun    *tuntest.ChannelTUN
	ours   map[uint64]int // packets that arrived at us
	theirs map[uint64]int // packets that arrived at them
	next   uint64
	hold   bool     // datagrams from us stay here:
	held   [][]byte // "
	seen   [5]int   // messages from them by type
}

type interopConfig struct {
	keepalive int // of the device, in seconds
	psk       PresharedKey
	theirPSK  PresharedKey
	rate      int
	batch     int // datagrams that the device may receive at once; 0: 1
}

// newInterop must be called in a bubble.
func newInterop(t *testing.T, c interopConfig) *interop {
	t.Helper()
	x := &interop{
		t: t, tun: tuntest.NewChannelTUN(), ours: map[uint64]int{}, theirs: map[uint64]int{},
		bind: &chanBind{in: make(chan [][]byte), out: make(chan []byte, 4096), batch: max(c.batch, 1)},
	}
	us, them := newKey(t), newKey(t)
	m, err := New(Config{Private: us, Rand: rand.Reader, HandshakeRate: c.rate})
	must(t, err)
	p := addPeer(t, m, PeerConfig{Public: them.Public(), Preshared: c.psk, Suite: WireGuard})
	x.n = &node{
		t: t, m: m, p: p, drops: map[error]int{},
		send: func(msg []byte) {
			if x.hold {
				x.held = append(x.held, msg)
				return
			}
			x.bind.in <- [][]byte{msg}
		},
		got: func(b []byte) { x.arrived(x.ours, b) },
	}
	dev := device.NewDevice(x.tun.TUN(), x.bind, device.NewLogger(device.LogLevelSilent, ""))
	ourPublic := us.Public()
	must(t, dev.IpcSet(fmt.Sprintf(
		"private_key=%s\nlisten_port=1\npublic_key=%s\npreshared_key=%s\nendpoint=%s\nallowed_ip=10.0.0.1/32\npersistent_keepalive_interval=%d\n",
		hex.EncodeToString(them[:]), hex.EncodeToString(ourPublic[:]), hex.EncodeToString(c.theirPSK[:]), addrA, c.keepalive)))
	must(t, dev.Up())
	keep.Lock()
	keep.alive = append(keep.alive, dev, dev.LookupPeer(device.NoisePublicKey(ourPublic)))
	keep.Unlock()
	t.Cleanup(dev.Close)
	return x
}

// keep keeps closed devices and their peers from the garbage collector: the finalizers of their
// queues would touch a bubble's channels from outside, which is fatal.
var keep struct {
	sync.Mutex
	alive []any
}

// inner returns a numbered IPv4 packet between the two ends.
func inner(id uint64, toThem bool, size int) []byte {
	b := make([]byte, max(size, 28))
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	src, dst := []byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}
	if !toThem {
		src, dst = dst, src
	}
	copy(b[12:], src)
	copy(b[16:], dst)
	binary.BigEndian.PutUint64(b[20:], id)
	for i := range b[28:] {
		b[28+i] = byte(i)
	}
	return b
}

func (x *interop) arrived(where map[uint64]int, b []byte) {
	x.t.Helper()
	if len(b) < 28 || int(binary.BigEndian.Uint16(b[2:])) > len(b) {
		x.t.Errorf("a packet of %d bytes arrived", len(b))
		return
	}
	id := binary.BigEndian.Uint64(b[20:])
	want := inner(id, b[15] == 1, int(binary.BigEndian.Uint16(b[2:])))
	if !bytes.Equal(b[:len(want)], want) {
		x.t.Errorf("packet %d was changed on the way", id)
	}
	where[id]++
}

// packet sends a packet from us or from them.
func (x *interop) packet(toThem bool, size int) uint64 {
	x.next++
	if toThem {
		x.n.packet(time.Now(), inner(x.next, true, size))
	} else {
		x.tun.Outbound <- inner(x.next, false, size)
	}
	return x.next
}

// run lets virtual time pass, and everything happen that happens meanwhile.
func (x *interop) run(d time.Duration) {
	end := time.Now().Add(d)
	for {
		next := end
		if at := x.n.p.Next(); !at.IsZero() && at.Before(next) {
			next = at
		}
		select {
		case msg := <-x.bind.out:
			// The reference arms the timer of a retransmission after it has sent: an answer in the same instant would come
			// before that, as none does on a network.
			synctest.Wait()
			x.seen[msg[0]]++
			x.n.datagram(time.Now(), msg, addrB)
		case b := <-x.tun.Inbound:
			x.arrived(x.theirs, b)
		case <-time.After(time.Until(next)):
			if !time.Now().Before(end) {
				return
			}
			x.n.tick(time.Now())
		}
	}
}

func (x *interop) expect(what string, where map[uint64]int, ids ...uint64) {
	x.t.Helper()
	for _, id := range ids {
		if where[id] != 1 {
			x.t.Errorf("%s: packet %d arrived %d times; our drops: %v", what, id, where[id], x.n.drops)
		}
	}
}

// inBubble runs a test in virtual time for each preshared key setting.
func inBubble(t *testing.T, f func(t *testing.T, c interopConfig)) {
	for name, psk := range map[string]PresharedKey{"no psk": {}, "psk": {1, 2, 3}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, interopConfig{psk: psk, theirPSK: psk}) })
		})
	}
}

func TestInteropWeInitiate(t *testing.T) {
	inBubble(t, func(t *testing.T, c interopConfig) {
		x := newInterop(t, c)
		a := x.packet(true, 100)
		x.run(time.Second)
		x.expect("ours", x.theirs, a)
		for _, size := range []int{28, 31, 32, 33, 1000, 1407, 1420} {
			a, b := x.packet(true, size), x.packet(false, size)
			x.run(time.Second)
			x.expect("ours", x.theirs, a)
			x.expect("theirs", x.ours, b)
		}
		if s := x.n.p.Stats(); !s.Initiator || s.Handshakes != 1 || x.seen[TypeInitiation] != 0 {
			t.Errorf("one handshake was enough, and ours: %+v, theirs %v", s, x.seen)
		}
	})
}

func TestInteropTheyInitiate(t *testing.T) {
	inBubble(t, func(t *testing.T, c interopConfig) {
		x := newInterop(t, c)
		b := x.packet(false, 100)
		x.run(time.Second)
		x.expect("theirs", x.ours, b)
		for _, size := range []int{28, 31, 32, 33, 1000, 1407, 1420} {
			a, b := x.packet(true, size), x.packet(false, size)
			x.run(time.Second)
			x.expect("ours", x.theirs, a)
			x.expect("theirs", x.ours, b)
		}
		if s := x.n.p.Stats(); s.Initiator || s.Handshakes != 1 || s.Attempts != 0 {
			t.Errorf("one handshake was enough, and theirs: %+v", s)
		}
	})
}

// TestInteropBothInitiate: the reference gives up its own initiation when ours arrives, and we do not, so one
// round trip settles it.
func TestInteropBothInitiate(t *testing.T) {
	inBubble(t, func(t *testing.T, c interopConfig) {
		x := newInterop(t, c)
		x.hold = true
		a := x.packet(true, 100)
		b := x.packet(false, 100)
		synctest.Wait() // their initiation is on its way now
		x.hold = false
		for _, msg := range x.held {
			x.n.send(msg)
		}
		x.run(time.Second)
		x.expect("ours", x.theirs, a)
		x.expect("theirs", x.ours, b)
	})
}

// TestInteropForAnHour: no packet is lost over many rekeys, whoever talks.
func TestInteropForAnHour(t *testing.T) {
	for _, who := range []string{"us", "them", "both"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newInterop(t, interopConfig{})
				var toThem, toUs []uint64
				for range 3600 {
					if who != "them" {
						toThem = append(toThem, x.packet(true, 64))
					}
					if who != "us" {
						toUs = append(toUs, x.packet(false, 64))
					}
					x.run(time.Second)
				}
				x.expect("ours", x.theirs, toThem...)
				x.expect("theirs", x.ours, toUs...)
				if s := x.n.p.Stats(); s.Handshakes < 20 || s.Handshakes > 40 {
					t.Errorf("%d handshakes in an hour", s.Handshakes)
				}
			})
		})
	}
}

// TestInteropAfterIdleness: sessions end by age, and begin again when there is something to say.
func TestInteropAfterIdleness(t *testing.T) {
	inBubble(t, func(t *testing.T, c interopConfig) {
		x := newInterop(t, c)
		for i, idle := range []time.Duration{0, 100 * time.Second, 170 * time.Second, 181 * time.Second, 10 * time.Minute, time.Hour} {
			x.run(idle)
			if i%2 == 0 {
				a := x.packet(true, 64)
				x.run(20 * time.Second)
				x.expect(fmt.Sprintf("ours after %v", idle), x.theirs, a)
			} else {
				b := x.packet(false, 64)
				x.run(20 * time.Second)
				x.expect(fmt.Sprintf("theirs after %v", idle), x.ours, b)
			}
		}
	})
}

// TestInteropKeepalive: their persistent keepalive keeps a session up, which we answer with nothing.
func TestInteropKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newInterop(t, interopConfig{keepalive: 10})
		x.run(10 * time.Minute)
		if x.seen[TypeData] < 50 || x.n.p.Key(time.Now()) == nil {
			t.Errorf("messages from them by type: %v", x.seen)
		}
	})
}

func TestInteropWrongPresharedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newInterop(t, interopConfig{psk: PresharedKey{1}, theirPSK: PresharedKey{2}})
		x.packet(true, 64)
		x.packet(false, 64)
		x.run(time.Minute)
		if len(x.ours)+len(x.theirs) > 0 || x.n.p.Key(time.Now()) != nil || x.n.drops[ErrAuth] == 0 {
			t.Errorf("%v %v %v", x.ours, x.theirs, x.n.drops)
		}
	})
}

// TestInteropCookieFromUs: the reference takes our cookie and comes again with it.
func TestInteropCookieFromUs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newInterop(t, interopConfig{rate: 1})
		exhaust(x.n.m, time.Now())
		b := x.packet(false, 64)
		x.run(time.Second)
		if x.n.drops[ErrUnderLoad] != 1 || x.ours[b] != 0 {
			t.Fatalf("first initiation: drops %v", x.n.drops)
		}
		for range 60 {
			exhaust(x.n.m, time.Now())
			x.run(100 * time.Millisecond)
		}
		x.expect("theirs", x.ours, b)
		if x.n.drops[ErrUnderLoad] != 1 {
			t.Errorf("second initiation: drops %v", x.n.drops)
		}
	})
}

// TestInteropCookieFromThem: we take the reference's cookie and come again with it.
func TestInteropCookieFromThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const batch = 256 // twice what the reference takes for a load
		x := newInterop(t, interopConfig{batch: batch})
		// Initiations that pass mac1 and fail later keep the reference's workers busy for longer than
		// it takes to queue more of them. It then is under load for a second, in which it has
		// emptied its queues: virtual time stands still.
		junk := make([]byte, InitiationSize)
		copy(junk[4:], bytes.Repeat([]byte{9}, initiationNoiseEnd-4))
		junk[0] = TypeInitiation
		fixMAC1(t, junk, x.n.p.public)
		burden := func() {
			t.Helper()
			for range 200 {
				x.bind.in <- slices.Repeat([][]byte{junk}, batch)
				synctest.Wait()
				loaded := len(x.bind.out) > 0
				for len(x.bind.out) > 0 {
					<-x.bind.out
				}
				if loaded {
					return
				}
			}
			t.Fatal("the reference was too quick to be brought under load")
		}
		x.hold = true
		a := x.packet(true, 64)
		burden()
		x.bind.in <- x.held[:1]
		x.held = nil
		x.run(time.Second)
		if x.seen != [5]int{TypeCookie: 1} || x.theirs[a] != 0 {
			t.Fatalf("first initiation: answers by type %v", x.seen)
		}
		if x.n.p.jar.since.IsZero() {
			t.Fatalf("the cookie was not taken: %v", x.n.drops)
		}
		x.run(5 * time.Second) // our second initiation is held
		if len(x.held) != 1 || bytes.Equal(x.held[0][InitiationSize-macSize:], make([]byte, macSize)) {
			t.Fatalf("no initiation with mac2: %x", x.held)
		}
		burden()
		x.hold = false
		x.bind.in <- x.held
		x.run(time.Second)
		if x.seen[TypeCookie] != 1 || x.seen[TypeResponse] != 1 {
			t.Errorf("second initiation: answers by type %v", x.seen)
		}
		x.expect("ours", x.theirs, a)
	})
}

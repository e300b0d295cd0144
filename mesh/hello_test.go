// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// script is a conn whose other side says what it was given and hears everything.
type script struct {
	io.Reader
	heard bytes.Buffer
}

func (s *script) Write(b []byte) (int, error)      { return s.heard.Write(b) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// recorder notes what its owner reads and writes.
type recorder struct {
	net.Conn
	in, out bytes.Buffer
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.in.Write(b[:n])
	return n, err
}

func (r *recorder) Write(b []byte) (int, error) {
	r.out.Write(b)
	return r.Conn.Write(b)
}

func testIntroduction(i int) introduction {
	who := testIdentity(i)
	return introduction{
		purpose: purposeGossip, identity: who, id: who.ID(), boot: 0xb007, name: "n", universe: testUniverse(1),
		advertise: netip.MustParseAddrPort("192.0.2.1:6783"),
	}
}

type side struct {
	s    *stream
	them introduction
	err  error
}

// shake runs a hello over a pipe. a is the dialler, whose key is ka.
func shake(t *testing.T, ka, kb [32]byte, a, b introduction) (dialler, acceptor side, ra, rb *recorder) {
	t.Helper()
	p, q := net.Pipe()
	ra, rb = &recorder{Conn: p}, &recorder{Conn: q}
	done := make(chan struct{})
	go func() {
		defer close(done)
		acceptor.s, acceptor.them, acceptor.err = receive(rb, kb, time.Second)
		if acceptor.err != nil {
			_ = q.Close()
			return
		}
		acceptor.err = acceptor.s.answer(b)
	}()
	dialler.s, dialler.them, dialler.err = greet(ra, ka, a, time.Second)
	<-done
	t.Cleanup(func() {
		_ = p.Close()
		_ = q.Close()
	})
	return dialler, acceptor, ra, rb
}

func TestHello(t *testing.T) { synctest.Test(t, helloAndStream) }

func helloAndStream(t *testing.T) {
	a, b := testIntroduction(1), testIntroduction(2)
	a.universe.Seed = bytes.Repeat([]byte{7}, maxSeed) // longer than a record of the stream
	a.universe.Ranges, a.universe.Reserve = strings.Repeat("r", maxRanges), strings.Repeat("R", maxReserve)
	a.universe.Plain = true
	a.name = strings.Repeat("n", maxName)
	d, c, ra, rb := shake(t, [32]byte{1}, [32]byte{1}, a, b)
	if d.err != nil || c.err != nil {
		t.Fatal(d.err, c.err)
	}
	if d.them.id != b.id || d.them.advertise != b.advertise || c.them.id != a.id || !bytes.Equal(c.them.universe.Seed, a.universe.Seed) ||
		c.them.name != a.name || c.them.boot != a.boot || c.them.universe.Ranges != a.universe.Ranges || c.them.universe.Reserve != a.universe.Reserve || !c.them.universe.Plain || d.them.universe.Plain {
		t.Errorf("dialler learnt %+v, acceptor %+v", d.them, c.them)
	}
	for _, heard := range [][]byte{ra.in.Bytes(), ra.out.Bytes()} {
		if bytes.Contains(heard, []byte("10.32.0.0")) {
			t.Error("the universe went in clear")
		}
	}
	// The stream works both ways, in pieces of any size.
	want := bytes.Repeat([]byte("0123456789"), 10_000)
	go func() {
		if _, err := d.s.Write(want); err != nil {
			t.Error(err)
		}
		_ = d.s.Close()
	}()
	got, err := io.ReadAll(c.s)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes arrived: %v", len(got), len(want), err)
	}
	if bytes.Contains(rb.in.Bytes(), want[:100]) {
		t.Error("the stream goes in clear")
	}
}

func TestHelloWrongToken(t *testing.T) { synctest.Test(t, helloWrongToken) }

func helloWrongToken(t *testing.T) {
	d, c, _, rb := shake(t, [32]byte{1}, [32]byte{2}, testIntroduction(1), testIntroduction(2))
	if !errors.Is(d.err, ErrWrongToken) || !errors.Is(c.err, ErrWrongToken) || d.s != nil || c.s != nil {
		t.Errorf("dialler: %v, acceptor: %v", d.err, c.err)
	}
	if rb.in.Len() != firstSize+macSize {
		t.Errorf("the dialler said %d bytes to somebody who has another token", rb.in.Len())
	}
}

// No prefix of either side's words makes the other hang or accept, and no bit of
// them can be changed.
func TestHelloTruncatedOrAltered(t *testing.T) { synctest.Test(t, helloTruncatedOrAltered) }

func helloTruncatedOrAltered(t *testing.T) {
	key := [32]byte{1}
	_, _, ra, _ := shake(t, key, key, testIntroduction(1), testIntroduction(2))
	dialled, answered := ra.out.Bytes(), ra.in.Bytes()
	for n := range len(dialled) {
		if s, _, err := receive(&script{Reader: bytes.NewReader(dialled[:n])}, key, time.Second); err == nil || s != nil && n < firstSize+macSize {
			t.Fatalf("the acceptor took %d of %d bytes", n, len(dialled))
		}
	}
	for n := range len(answered) {
		if _, _, err := greet(&script{Reader: bytes.NewReader(answered[:n])}, key, testIntroduction(1), time.Second); err == nil {
			t.Fatalf("the dialler took %d of %d bytes", n, len(answered))
		}
	}
	// Altered on the way, live: each byte of each direction in turn.
	for i := range len(dialled) {
		if err := altered(t, key, i, true); err == nil {
			t.Fatalf("byte %d of the dialler's was altered and accepted", i)
		}
	}
	for i := range len(answered) {
		if err := altered(t, key, i, false); err == nil {
			t.Fatalf("byte %d of the acceptor's was altered and accepted", i)
		}
	}
}

// flipper alters byte at of what is written.
type flipper struct {
	net.Conn
	at int
}

func (f *flipper) Write(b []byte) (int, error) {
	c := bytes.Clone(b)
	if f.at >= 0 && f.at < len(c) {
		c[f.at] ^= 0x10
	}
	f.at -= len(c)
	return f.Conn.Write(c)
}

func altered(t *testing.T, key [32]byte, at int, dialler bool) error {
	t.Helper()
	p, q := net.Pipe()
	var pc, qc net.Conn = p, q
	if dialler {
		pc = &flipper{p, at}
	} else {
		qc = &flipper{q, at}
	}
	accepted := make(chan error, 1)
	go func() {
		s, _, err := receive(qc, key, 50*time.Millisecond)
		if err == nil {
			err = s.answer(testIntroduction(2))
		}
		_ = q.Close()
		accepted <- err
	}()
	_, _, err := greet(pc, key, testIntroduction(1), 50*time.Millisecond)
	_ = p.Close()
	return errors.Join(err, <-accepted)
}

// What was said in one hello is of no use in another.
func TestHelloReplay(t *testing.T) { synctest.Test(t, helloReplay) }

func helloReplay(t *testing.T) {
	key := [32]byte{1}
	_, _, ra, _ := shake(t, key, key, testIntroduction(1), testIntroduction(2))
	dialled, answered := ra.out.Bytes(), ra.in.Bytes()
	if _, _, err := receive(&script{Reader: bytes.NewReader(dialled)}, key, time.Second); !errors.Is(err, ErrWrongToken) {
		t.Errorf("a replayed dialler: %v", err)
	}
	if _, _, err := greet(&script{Reader: bytes.NewReader(answered)}, key, testIntroduction(1), time.Second); !errors.Is(err, ErrWrongToken) {
		t.Errorf("a replayed acceptor: %v", err)
	}
	// Nor is the dialler's own proof, sent back to it.
	mirror := append(append([]byte(nil), dialled[:firstSize]...), dialled[firstSize:firstSize+macSize]...)
	if _, _, err := greet(&script{Reader: bytes.NewReader(mirror)}, key, testIntroduction(1), time.Second); !errors.Is(err, ErrWrongToken) {
		t.Errorf("a reflected dialler: %v", err)
	}
}

func TestStreamRecords(t *testing.T) {
	key, transcript := [32]byte{1}, [32]byte{2}
	var wire bytes.Buffer
	out, err := newStream(&script{Reader: nil}, key, transcript, true)
	if err != nil {
		t.Fatal(err)
	}
	one, two := out.seal(nil, []byte("one")), out.seal(nil, []byte("two"))
	read := func(parts ...[]byte) (string, error) {
		wire.Reset()
		for _, p := range parts {
			wire.Write(p)
		}
		in, err := newStream(&script{Reader: bytes.NewReader(wire.Bytes())}, key, transcript, false)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		return string(b), err
	}
	huge := []byte{0xff, 0xff, 0xff, 0xff}
	for name, c := range map[string]struct {
		parts [][]byte
		want  string
		err   error
	}{
		"in order":  {[][]byte{one, two}, "onetwo", nil},
		"repeated":  {[][]byte{one, one}, "one", errSeal},
		"swapped":   {[][]byte{two, one}, "", errSeal},
		"left out":  {[][]byte{two}, "", errSeal},
		"truncated": {[][]byte{one, two[:len(two)-1]}, "one", io.ErrUnexpectedEOF},
		"half head": {[][]byte{one, two[:2]}, "one", io.ErrUnexpectedEOF},
		"too long":  {[][]byte{huge}, "", errSeal},
		"empty":     {[][]byte{{0, 0, 0, 0}}, "", errSeal},
	} {
		if got, err := read(c.parts...); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestJudge(t *testing.T) {
	me := testIntroduction(1)
	with := func(f func(*introduction)) introduction {
		i := testIntroduction(2)
		i.boot = 5
		f(&i)
		return i
	}
	var mismatch *UniverseMismatchError
	for name, c := range map[string]struct {
		them introduction
		ok   func(error) bool
	}{
		"fits":           {with(func(*introduction) {}), func(err error) bool { return err == nil }},
		"none there":     {with(func(i *introduction) { i.universe = UniverseInfo{} }), func(err error) bool { return err == nil }},
		"self":           {with(func(i *introduction) { i.id, i.boot = me.id, me.boot }), func(err error) bool { return errors.Is(err, ErrSelf) }},
		"own id":         {with(func(i *introduction) { i.id = me.id }), func(err error) bool { return errors.Is(err, ErrClone) }},
		"told clone":     {with(func(i *introduction) { i.verdict = refusedClone }), func(err error) bool { return errors.Is(err, ErrClone) }},
		"other universe": {with(func(i *introduction) { i.universe.ID[5]++ }), func(err error) bool { return errors.As(err, &mismatch) }},
		"told other":     {with(func(i *introduction) { i.verdict = refusedOther }), func(err error) bool { return errors.As(err, &mismatch) }},
		"told none":      {with(func(i *introduction) { i.verdict = refusedNone }), func(err error) bool { return errors.Is(err, ErrNoUniverse) }},
		"told something": {with(func(i *introduction) { i.verdict = 77 }), func(err error) bool { return errors.Is(err, ErrVersion) }},
	} {
		if err := me.judge(c.them); !c.ok(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestErrorTexts(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.2:6783")
	other := testUniverse(2)
	other.Ranges = "10.0.0.0/8"
	for want, err := range map[string]error{
		"10.0.0.2:6783 refused the connection: is weft running there?":                                              &DialError{at, errRefused},
		"10.0.0.2:6783 has another token: run `weft token` on a node of that mesh and use the token that it prints": &DialError{at, ErrWrongToken},
		"10.0.0.2:6783 knows another living node with this node's id: its data directory is a copy; " +
			"run `weft reset` on one of them": &DialError{at, ErrClone},
		"this node belongs to mesh 01010203000000000000000000000000 (range 10.32.0.0/12), n7 to mesh 02010203000000000000000000000000 " +
			"(range 10.0.0.0/8): run `weft reset` here to join it, or remove --peer": &UniverseMismatchError{"n7", testUniverse(1), other},
	} {
		if err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	if !errors.Is(&DialError{at, errRefused}, ErrUnreachable) || errors.Is(&DialError{at, ErrWrongToken}, ErrUnreachable) {
		t.Error("ErrUnreachable")
	}
}

func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 20)
		a := c.node().start()
		elsewhere := c.net.Host(hostAddr(50))
		probe := func(f func(*Prober)) (Hello, error) {
			p := Prober{Network: elsewhere, Keys: c.keys, Identity: testIdentity(40), Name: "joiner"}
			f(&p)
			return p.Probe(context.Background(), a.addr)
		}
		h, err := probe(func(*Prober) {})
		if err != nil || h.ID != a.id || h.Name != "n1" || h.Universe.ID != c.uni.ID || string(h.Universe.Seed) != "\x01" || h.Boot != a.Boot() {
			t.Errorf("%+v, %v", h, err)
		}
		if len(a.Nodes()) != 1 {
			t.Error("a probe made a member")
		}
		_, err = probe(func(p *Prober) { p.Keys = testKeys(9) })
		if !errors.Is(err, ErrWrongToken) {
			t.Error(err)
		}
		_, err = probe(func(p *Prober) { p.Identity = testIdentity(1) })
		if !errors.Is(err, ErrClone) {
			t.Error(err)
		}
		_, err = probe(func(p *Prober) { p.Universe = testUniverse(3) })
		var mismatch *UniverseMismatchError
		if !errors.As(err, &mismatch) || mismatch.Theirs.ID != c.uni.ID || mismatch.Mine.ID != testUniverse(3).ID || mismatch.Host != "192.168.0.1:6783" {
			t.Error(err)
		}
		p := Prober{Network: elsewhere, Keys: c.keys, Identity: testIdentity(40)}
		_, err = p.Probe(context.Background(), netip.AddrPortFrom(hostAddr(50), 6783))
		if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "refused") {
			t.Error(err)
		}
		begin := time.Now()
		_, err = p.Probe(context.Background(), netip.MustParseAddrPort("192.168.0.99:6783"))
		if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "does not answer") || time.Since(begin) != 3*time.Second {
			t.Error(err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err = p.Probe(ctx, netip.MustParseAddrPort("192.168.0.99:6783")); err == nil || time.Since(begin) != 4*time.Second {
			t.Error(err, time.Since(begin))
		}
		c.eventually(0, "said once per host", func() bool { return c.logged("another token") == 1 })
	})
}

// Somebody who connects and says nothing, junk, or takes its time holds nothing up
// for longer than a hello may take.
func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 21)
		a := c.node().start()
		synctest.Wait()
		for i := range 30 {
			h := c.net.Host(hostAddr(100 + i))
			for range 50 {
				conn, err := h.Dial(context.Background(), a.addr)
				if err != nil {
					t.Fatal(err)
				}
				if i%2 == 0 {
					_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
					go func() { _, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: here\r\n\r\n")) }()
				}
				t.Cleanup(func() { _ = conn.Close() })
			}
		}
		synctest.Wait()
		a.Mesh.mu.Lock()
		strangers, sources, conns := a.door.strangers, len(a.door.bySource), len(a.conns)
		a.Mesh.mu.Unlock()
		if strangers > maxStrangers || conns > maxStrangers || sources > 30 {
			t.Errorf("%d strangers from %d sources, %d connections", strangers, sources, conns)
		}
		time.Sleep(3100 * time.Millisecond)
		synctest.Wait()
		a.Mesh.mu.Lock()
		strangers, sources, conns = a.door.strangers, len(a.door.bySource), len(a.conns)
		a.Mesh.mu.Unlock()
		if strangers != 0 || sources != 0 || conns != 0 {
			t.Errorf("%d strangers from %d sources, %d connections are left", strangers, sources, conns)
		}
		b := c.node("n1").start()
		c.eventually(time.Second, "a node joins", whole(a, b))
	})
}

func TestUniverseInfoString(t *testing.T) {
	u := testUniverse(1)
	if got, want := u.String(), "mesh 01010203000000000000000000000000 (range 10.32.0.0/12)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	u.Reserve = "10.33.0.0/24"
	if got, want := u.String(), "mesh 01010203000000000000000000000000 (range 10.32.0.0/12, reserve 10.33.0.0/24)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	u.Plain = true
	if got, want := u.String(), "mesh 01010203000000000000000000000000 (range 10.32.0.0/12, reserve 10.33.0.0/24, encryption off)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

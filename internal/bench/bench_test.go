// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// quick is capped by bytes, so that nothing takes its time.
var quick = Params{Time: 2 * time.Second, Streams: 3, Bytes: 16 << 20}

func newHost() Host {
	var ticks atomic.Int64
	return Host{Network: SystemNetwork{}, Addr: loopback, Usage: func() Usage {
		n := time.Duration(ticks.Add(1)) * time.Second
		return Usage{Process: 3 * n, Engine: n}
	}}
}

func newSecret(t *testing.T) Secret {
	t.Helper()
	s, err := NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open opens a session and runs it; its end comes by the channel.
func open(ctx context.Context, t *testing.T, h Host, secret Secret, p Params) (Peer, <-chan error) {
	t.Helper()
	target, err := Open(ctx, h, secret, p, loopback)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := target.Run()
		ended <- err
	}()
	return target.Ports(), ended
}

// closed fails if somebody still listens.
func closed(t *testing.T, p Peer) {
	t.Helper()
	if c, err := net.DialTimeout("tcp", p.TCP.String(), time.Second); err == nil {
		_ = c.Close()
		t.Errorf("somebody still listens on %v", p.TCP)
	}
	if c, err := net.ListenPacket("udp", p.UDP.String()); err != nil {
		t.Errorf("somebody still has %v: %v", p.UDP, err)
	} else {
		_ = c.Close()
	}
}

func TestWholeMeasurement(t *testing.T) {
	h, secret := newHost(), newSecret(t)
	peer, ended := open(t.Context(), t, newHost(), secret, quick)
	var done []Figures
	out, err := Measure(t.Context(), h, secret, quick, peer, func(p Progress) {
		if p.Done != nil {
			done = append(done, *p.Done)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the target: %v", err)
	}
	plan := Plan(quick)
	if len(out.Figures) != len(plan) || !slices.Equal(done, out.Figures) {
		t.Fatalf("figures of %d phases, %d said to be done, of %d", len(out.Figures), len(done), len(plan))
	}
	for i, f := range out.Figures {
		if f.Phase != plan[i] {
			t.Errorf("phase %d is %v, want %v", i, f.Phase, plan[i])
		}
		if f.Bytes <= 0 || f.Bytes > plan[i].Bytes || f.Elapsed <= 0 || f.Elapsed > quick.Time+time.Second {
			t.Errorf("%v: %d bytes in %v", f.Phase, f.Bytes, f.Elapsed)
		}
		if f.Here != (Usage{3 * time.Second, time.Second}) || f.There != f.Here {
			t.Errorf("%v: usage %v and %v", f.Phase, f.Here, f.There)
		}
		switch f.Kind {
		case Latency:
			if f.Samples == 0 || f.P50 <= 0 || f.P50 > f.P99 || f.P99 > f.Max {
				t.Errorf("%v: %+v", f.Phase, f)
			}
		case Streams: // nothing gets lost, and the loopback is quicker than the cap
			if f.Bytes != plan[i].Bytes || !f.Capped || f.BitsPerSecond() <= 0 {
				t.Errorf("%v: %+v", f.Phase, f)
			}
		case Packets:
			if f.Sent != plan[i].Bytes/PacketSize || f.Delivered == 0 || f.Delivered > f.Sent || !f.Capped || f.PacketsPerSecond() <= 0 {
				t.Errorf("%v: %+v", f.Phase, f)
			}
		}
	}
	closed(t, peer)
}

// The time ends a phase that its bytes do not.
func TestTimeEndsPhases(t *testing.T) {
	t.Parallel()
	secret := newSecret(t)
	p := Params{Time: time.Second, Streams: 1, Bytes: MaxBytes}
	peer, ended := open(t.Context(), t, newHost(), secret, p)
	var told int
	out, err := Measure(t.Context(), newHost(), secret, p, peer, func(p Progress) {
		if p.Done == nil && p.Bytes+p.Packets+p.Samples > 0 {
			told++
		}
	})
	if err := errors.Join(err, <-ended); err != nil {
		t.Fatal(err)
	}
	for _, f := range out.Figures {
		if f.Capped && f.Kind != Latency || f.Elapsed < p.Time/2 || f.Elapsed > p.Time+500*time.Millisecond {
			t.Errorf("%v took %v: %+v", f.Phase, f.Elapsed, f)
		}
	}
	if told < len(out.Figures) {
		t.Errorf("%d times told of progress in %d phases", told, len(out.Figures))
	}
}

// Whoever does not know the secret, and whoever comes from elsewhere, is turned
// away and disturbs nothing.
func TestStrangers(t *testing.T) {
	secret := newSecret(t)
	target, err := Open(t.Context(), newHost(), secret, quick, loopback)
	if err != nil {
		t.Fatal(err)
	}
	peer := target.Ports()
	ended := make(chan error, 1)
	go func() {
		_, err := target.Run()
		ended <- err
	}()
	dial := func(from string, say []byte) {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", peer.TCP.String())
		if errors.Is(err, syscall.ECONNRESET) {
			t.Logf("hung up before the call returned: %v", err)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write(say); err != nil && len(say) > 0 {
			t.Logf("hung up before it was said: %v", err)
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * greetingTime))
		if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a stranger got %q, %v", b, err)
		}
	}
	hello := greeting{purpose: forControl}
	dial("127.0.0.1", hello.encode(newSecret(t)))
	dial("127.0.0.1", []byte("GET / HTTP/1.1\r\nHost: bench.example.com\r\n\r\n\r\n"))
	dial("127.0.0.2", hello.encode(secret)) // another address that knows it
	u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(peer.UDP))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.Close() }()
	for range 5 {
		if _, err := u.Write(make([]byte, PacketSize)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := Measure(t.Context(), newHost(), secret, quick, peer, nil)
	if err := errors.Join(err, <-ended); err != nil {
		t.Fatal(err)
	}
	if out.Strangers != 8 {
		t.Errorf("%d strangers were turned away, want 8", out.Strangers)
	}
}

// A second control connection, even one that knows the secret, changes nothing.
func TestOneControlConnection(t *testing.T) {
	secret := newSecret(t)
	ctx, cancel := context.WithCancel(t.Context())
	peer, ended := open(ctx, t, newHost(), secret, quick)
	for i := range 2 {
		c, err := net.Dial("tcp", peer.TCP.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write(greeting{purpose: forControl}.encode(secret)); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			_ = c.SetReadDeadline(time.Now().Add(greetingTime))
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the second one got %d bytes, %v", n, err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the target ended with %v", err)
	}
}

// Whichever side is told to end, in whatever phase, both do, at once.
func TestEndedInTheMiddle(t *testing.T) {
	p := Params{Time: MinTime, Streams: 1, Bytes: MaxBytes}
	stop := errors.New("interrupted")
	for step, phase := range Plan(p) {
		asking := step%2 == 0
		t.Run(phase.String(), func(t *testing.T) {
			t.Parallel()
			secret := newSecret(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			here, there := t.Context(), ctx
			if asking {
				here, there = ctx, t.Context()
			}
			peer, ended := open(there, t, newHost(), secret, p)
			var at time.Time
			_, err := Measure(here, newHost(), secret, p, peer, func(pr Progress) {
				if pr.Step == step+1 && at.IsZero() && pr.Done == nil {
					at = time.Now()
					cancel(stop)
				}
			})
			other := <-ended
			if took := time.Since(at); took > 2*time.Second {
				t.Errorf("both have ended after %v", took)
			}
			if !asking {
				err, other = other, err
			}
			if !errors.Is(err, stop) {
				t.Errorf("who was told to end says %v", err)
			}
			if want := errEnded.Error() + ": interrupted"; other == nil || other.Error() != want {
				t.Errorf("the other says %v, want %s", other, want)
			}
			closed(t, peer)
		})
	}
}

// A request whose sender never comes is forgotten.
func TestNobodyComes(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	peer, ended := open(t.Context(), t, newHost(), newSecret(t), quick)
	err := <-ended
	if want := "the asking node did not connect within 5s"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if took := time.Since(begin); took > meetTime+time.Second {
		t.Errorf("after %v", took)
	}
	closed(t, peer)
}

func TestParams(t *testing.T) {
	if err := (Params{}).Defaults().Check(); err != nil {
		t.Error(err)
	}
	good := Params{Time: time.Second, Streams: 1, Bytes: MinBytes}
	for _, c := range []struct {
		change func(*Params)
		want   string
	}{
		{func(*Params) {}, ""},
		{func(p *Params) { p.Time = MaxTime; p.Streams = MaxStreams; p.Bytes = MaxBytes }, ""},
		{func(p *Params) { p.Time = 999 * time.Millisecond }, "--time 999ms is out of range; give 1s to 30s"},
		{func(p *Params) { p.Time = 31 * time.Second }, "--time 31s is out of range; give 1s to 30s"},
		{func(p *Params) { p.Streams = 0 }, "--streams 0 is out of range; give 1 to 32"},
		{func(p *Params) { p.Streams = 33 }, "--streams 33 is out of range; give 1 to 32"},
		{func(p *Params) { p.Bytes = 1 }, "--max-bytes 1 is out of range; give 1048576 (1M) to 1099511627776 (1T)"},
		{func(p *Params) { p.Bytes = MaxBytes + 1 }, "--max-bytes 1099511627777 is out of range; give 1048576 (1M) to 1099511627776 (1T)"},
	} {
		p := good
		c.change(&p)
		err := p.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%+v:\ngot  %v\nwant %s", p, err, c.want)
		}
		if err != nil {
			if _, err := Open(t.Context(), newHost(), Secret{}, p, loopback); err == nil {
				t.Errorf("%+v: opened", p)
			}
			if _, err := Measure(t.Context(), newHost(), Secret{}, p, Peer{}, nil); err == nil {
				t.Errorf("%+v: measured", p)
			}
		}
	}
}

func TestPlan(t *testing.T) {
	for streams, want := range map[int][]string{
		1: {"request/response", "1 stream there", "1 stream back", "small packets there", "small packets back"},
		4: {
			"request/response", "1 stream there", "1 stream back", "4 streams there", "4 streams back",
			"small packets there", "small packets back",
		},
	} {
		var got []string
		var bytes int64
		for _, p := range Plan(Params{Time: time.Second, Streams: streams, Bytes: MinBytes}) {
			got = append(got, p.String())
			bytes += p.Bytes
		}
		if !slices.Equal(got, want) || bytes > MinBytes {
			t.Errorf("%d streams: %q, %d bytes", streams, got, bytes)
		}
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		n        int // samples 1, 2, ... n
		q        float64
		expected time.Duration
	}{{0, 0.5, 0}, {1, 0.5, 1}, {1, 0.99, 1}, {2, 0.5, 1}, {3, 0.5, 2}, {100, 0.5, 50}, {100, 0.99, 99}, {101, 0.99, 100}, {1000, 0.99, 990}, {10, 0, 1}, {10, 1, 10}} {
		var s []time.Duration
		for i := range c.n {
			s = append(s, time.Duration(i+1))
		}
		if got := quantile(s, c.q); got != c.expected {
			t.Errorf("quantile %v of %d: %d, want %d", c.q, c.n, got, c.expected)
		}
	}
}

func TestFiguresOfNothing(t *testing.T) {
	var f Figures
	f.summarize(nil)
	if f.BitsPerSecond() != 0 || f.PacketsPerSecond() != 0 || f.Loss() != 0 || PerGbit(time.Second, 0) != 0 || f.Max != 0 {
		t.Errorf("%+v", f)
	}
	f = Figures{Bytes: 125e6, Elapsed: 2 * time.Second, Sent: 100, Delivered: 75}
	if f.BitsPerSecond() != 5e8 || f.PacketsPerSecond() != 37.5 || f.Loss() != 0.25 || PerGbit(500*time.Millisecond, f.Bytes) != 0.5 {
		t.Errorf("%v b/s, %v p/s, loss %v", f.BitsPerSecond(), f.PacketsPerSecond(), f.Loss())
	}
	if f.Delivered = 101; f.Loss() != 0 { // the network doubled one
		t.Errorf("loss %v", f.Loss())
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	s := newSecret(t)
	hexed, err := s.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{s.String(), s.GoString()} {
		if strings.Contains(text, string(hexed)) || !strings.Contains(text, "hidden") {
			t.Errorf("it prints as %s", text)
		}
	}
	tag := s.tag()
	if bytes.Contains(s[:], tag[:]) {
		t.Error("the tag is a part of the secret")
	}
}

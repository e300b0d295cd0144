// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/mesh"
)

// names is a mesh.Network that can only look names up.
type names map[string][]netip.Addr

func (names) Listen(uint16) (net.Listener, error) { return nil, errors.ErrUnsupported }
func (names) Dial(context.Context, netip.AddrPort) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

func (n names) Lookup(_ context.Context, host string) ([]netip.Addr, error) {
	if a, ok := n[host]; ok {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

type answers func(addr netip.AddrPort, try int) (mesh.Hello, error)

type fakeProber struct {
	answer answers
	tries  map[netip.AddrPort]int
}

func (p *fakeProber) Probe(_ context.Context, a netip.AddrPort) (mesh.Hello, error) {
	p.tries[a]++
	return p.answer(a, p.tries[a])
}

func knownUniverse(t *testing.T) universe {
	t.Helper()
	return universe{Range: DefaultRange, Seed: founder(7).Encode()}
}

func hello(t *testing.T) mesh.Hello {
	t.Helper()
	info, err := knownUniverse(t).info()
	if err != nil {
		t.Fatal(err)
	}
	return mesh.Hello{ID: 7, Universe: info}
}

func TestFindKeepsTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
		hosts := names{}
		var reasons []string
		start := time.Now()
		p := &fakeProber{tries: map[netip.AddrPort]int{}, answer: func(addr netip.AddrPort, _ int) (mesh.Hello, error) {
			if addr.Addr() == b && time.Since(start) > 20*time.Second {
				return hello(t), nil
			}
			return mesh.Hello{}, &mesh.DialError{Addr: addr, Err: mesh.ErrNoUniverse}
		}}
		f := finder{
			targets: func() []string { return []string{"late:6783"} }, network: hosts, probe: p, log: zap.NewNop(),
			waits: func(r string) {
				reasons = append(reasons, r)
				hosts["late"] = []netip.Addr{a, b} // the name comes into being
			},
		}
		u, err := f.find(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if u.Range != DefaultRange {
			t.Errorf("got %+v", u)
		}
		want := []string{
			"late: there is no host of that name; is it spelt right?",
			"[2001:db8::1]:6783 waits to join a mesh itself: give one of the nodes a founder to join, or start one without --peer",
		}
		if strings.Join(reasons, "\n") != strings.Join(want, "\n") {
			t.Errorf("it said, once each:\n%s\nwant\n%s", strings.Join(reasons, "\n"), strings.Join(want, "\n"))
		}
		if d := time.Since(start); d > 25*time.Second {
			t.Errorf("found it only after %v", d)
		}
	})
}

func TestFindEndsWithAWrongToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProber{tries: map[netip.AddrPort]int{}, answer: func(addr netip.AddrPort, _ int) (mesh.Hello, error) {
			return mesh.Hello{}, &mesh.DialError{Addr: addr, Err: mesh.ErrWrongToken}
		}}
		_, err := finder{targets: func() []string { return []string{"192.0.2.1:6783"} }, network: names{}, probe: p, log: zap.NewNop(), waits: func(string) {}}.find(t.Context())
		want := "the token is not that of the mesh at 192.0.2.1:6783; get the right one there by `weft token --raw`, and give it by --token-file or WEFT_TOKEN"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}

func TestFindEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := finder{targets: func() []string { return []string{"nowhere:1"} }, network: names{}, probe: &fakeProber{}, log: zap.NewNop(), waits: func(string) {}}.find(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestForgedUniverseIsNotTaken(t *testing.T) {
	info := hello(t).Universe
	info.Ranges = "10.0.0.0/8"
	if u, err := universeOf(info); err == nil {
		t.Errorf("taken: %+v", u)
	}
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// attacked is a mesh of two hosts, and somebody on their network who knows its ways and the public key of the second.
type attacked struct {
	*lab.Net
	t       *testing.T
	peer    *lab.Host // the good one
	target  *lab.Host
	from    *sender
	here    netip.AddrPort // of the attacker
	public  [32]byte
	started int // pid of the target's daemon
	lines   int // of its log at the beginning
	memory  uint64
}

func underAttack(t *testing.T) *attacked {
	t.Helper()
	a := &attacked{Net: lab.Mesh(t, 2, lab.Hosts(lab.OnlyV4)), t: t} // else each side chooses the family that it measures to be faster
	a.peer, a.target = a.Hosts()[0], a.Hosts()[1]
	attacker := a.Host("attacker", a.Segment)
	a.from = newSender(t, attacker.Namespace, a.target.Link().V4())
	a.here = netip.AddrPortFrom(attacker.Link().V4(), 5000)
	a.public = publicKey(t, a.target)
	allReach(t, patience, a.Workloads...)
	a.started = ask[status](t, a.target, "status").PID
	a.lines = strings.Count(a.target.Log(), "\n")
	a.memory = resident(t, a.started)
	return a
}

// inject sends datagrams to the target, which come from that address, and waits until n more of them are counted for the reason.
func (a *attacked) inject(from netip.AddrPort, reason string, n uint64, datagrams ...[]byte) {
	a.t.Helper()
	before := drops(a.t, a.target)[reason]
	for _, d := range datagrams {
		a.from.send(a.t, raw(from, a.target.Link().V4(), d))
	}
	eventually(a.t, patience, func() error {
		if got := drops(a.t, a.target)[reason] - before; got < n {
			return fmt.Errorf("%d datagrams of %d are counted as %s: %v", got, n, reason, drops(a.t, a.target))
		}
		return nil
	})
}

// unharmed checks that the daemon is the same as before, has said little, holds little, and knows its peer where it is.
func (a *attacked) unharmed(lines int) {
	a.t.Helper()
	if pid := ask[status](a.t, a.target, "status").PID; pid != a.started {
		a.t.Errorf("the daemon has another pid, %d, not %d", pid, a.started)
	}
	if n := strings.Count(a.target.Log(), "\n") - a.lines; n > lines {
		a.t.Errorf("%d lines were logged, at most %d", n, lines)
	}
	if now := resident(a.t, a.started); now > a.memory+64<<20 {
		a.t.Errorf("the daemon takes %d MiB of memory, before it took %d", now>>20, a.memory>>20)
	}
	endpoints := []string{netip.AddrPortFrom(a.peer.Link().V4(), weftPort).String(), netip.AddrPortFrom(a.peer.Link().V6(), weftPort).String()}
	peers := ask[[]struct {
		Endpoint string `json:"endpoint"`
	}](a.t, a.target, "peers")
	if len(peers) != 1 || !slices.Contains(endpoints, peers[0].Endpoint) {
		a.t.Errorf("peers: %+v, want one at one of %v", peers, endpoints)
	}
	allReach(a.t, patience, a.Workloads...)
}

// throughput is what a good peer gets.
func (a *attacked) throughput(size int64) float64 {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	got, err := a.Transfer(ctx, a.Workloads[0].Namespace, a.Workloads[1].Namespace, a.Workloads[1].V4, size)
	if err != nil {
		a.t.Fatal(err)
	}
	return got.BitsPerSecond()
}

// resident returns how many bytes of memory a process holds.
func resident(t *testing.T, pid int) uint64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "VmRSS:")
	var kilobytes uint64
	if _, err := fmt.Sscan(after, &kilobytes); err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}

// unjoined returns the datagrams of a frame: where several were sent by one call, the link carries them as one. Each begins like the first one: with its
// type, suite and receiver, which stands in bytes 4 to 7 of a data message.
func unjoined(b []byte) (all [][]byte) {
	for at := 32; at+32 <= len(b); at += 16 {
		if bytes.Equal(b[at:at+2], b[:2]) && bytes.Equal(b[at+4:at+8], b[4:8]) {
			return append([][]byte{b[:at]}, unjoined(b[at:])...)
		}
	}
	return [][]byte{b}
}

// wire returns the datagrams that went from one host to the other, of one message type.
func wire(c *lab.Capture, from, to *lab.Link, kind byte) (all [][]byte) {
	for _, f := range c.Frames() {
		if len(f.Data) < 14+28+16 || binary.BigEndian.Uint16(f.Data[12:]) != unix.ETH_P_IP {
			continue
		}
		ip := f.Data[14:]
		if ip[9] == unix.IPPROTO_UDP && netip.AddrFrom4([4]byte(ip[12:])) == from.V4() && netip.AddrFrom4([4]byte(ip[16:])) == to.V4() && ip[28] == kind {
			all = append(all, unjoined(ip[28:binary.BigEndian.Uint16(ip[2:])])...)
		}
	}
	return all
}

// TestBadDatagrams sends what no node would, from addresses of all kinds, to a daemon at work. Each is counted by its reason.
func TestBadDatagrams(t *testing.T) {
	const data, n = 4, 50
	a := underAttack(t)
	seen := a.Capture(a.target.Namespace, a.target.Link().Device(), 0)
	if err := a.peer.Daemon().Signal(unix.SIGKILL); err != nil { // so that there is a handshake to see
		t.Fatal(err)
	}
	<-a.peer.Daemon().Done()
	a.peer.Relaunch()
	if err := a.peer.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	allReach(t, patience, a.Workloads...)
	if _, err := a.Workloads[0].Latency(a.Workloads[1].V4, 2*n); err != nil {
		t.Fatal(err)
	}
	seen.Stop()
	peer := netip.AddrPortFrom(a.peer.Link().V4(), weftPort)
	single := wire(seen, a.peer.Link(), a.target.Link(), data)
	mine := wire(seen, a.target.Link(), a.peer.Link(), data)
	begun := wire(seen, a.peer.Link(), a.target.Link(), 1)
	if len(single) < n || len(mine) < n || len(begun) == 0 {
		t.Fatalf("%d datagrams one way, %d the other, %d initiations", len(single), len(mine), len(begun))
	}
	single, mine = single[len(single)-n:], mine[len(mine)-n:]
	each := func(all [][]byte, f func(b []byte) []byte) (out [][]byte) {
		for _, b := range all {
			out = append(out, f(slices.Clone(b)))
		}
		return out
	}
	junk := func(size int, head ...byte) [][]byte {
		return each(make([][]byte, n), func([]byte) []byte {
			b := make([]byte, size)
			for i := range b {
				b[i] = byte(rand.Uint32())
			}
			copy(b, head)
			return b
		})
	}
	for _, from := range []netip.AddrPort{a.here, peer} { // and under the address of the peer
		for _, c := range []struct {
			name, reason string
			datagrams    [][]byte
		}{
			{"replayed data", "replay", single},
			{"reflected data", "index", mine},
			{"data cut short", "auth", each(single, func(b []byte) []byte { return b[:len(b)-1] })},
			{"data with one bit flipped", "auth", each(single, func(b []byte) []byte { b[16+rand.IntN(len(b)-16)] ^= 1 << rand.IntN(8); return b })},
			{"data with a new counter", "auth", each(single, func(b []byte) []byte { b[12]++; return b })},
			{"data without a tag", "short", each(single, func(b []byte) []byte { return b[:31] })},
			{"data without a header", "short", each(single, func(b []byte) []byte { return b[:5] })},
			{"nothing", "short", each(single, func([]byte) []byte { return nil })},
			{"too much", "long", junk(40000, data, 0, 0, 0)},
			{"replayed initiation", "replay", begun[:1]},
			{"initiation cut short", "short", each(begun[:1], func(b []byte) []byte { return b[:100] })},
			{"initiation with one bit flipped", "mac1", each(slices.Repeat(begun[:1], n), func(b []byte) []byte { b[4+rand.IntN(128)] ^= 1 << rand.IntN(8); return b })},
			{"response to nothing", "index", junk(92, 2, 0, 0, 0)},
			{"cookie for nothing", "index", junk(64, 3, 0, 0, 0)},
			{"type 0", "type", junk(100, 0, 0, 0, 0)},
			{"type 200", "type", junk(100, 200, 0, 0, 0)},
			{"junk for the mesh", "control-lost", junk(1000, 16)},
		} {
			t.Run(fmt.Sprintf("%s from %v", c.name, from), func(t *testing.T) {
				b := *a
				b.t = t
				b.inject(from, c.reason, uint64(len(c.datagrams)), c.datagrams...)
			})
		}
	}
	a.unharmed(20)
}

// TestRogueMember lets root on a host of the mesh send what the host's own rules would stop: under the address of another host's workload, and
// through the target to a third. It has the keys; nobody gets anything of it.
func TestRogueMember(t *testing.T) {
	m := lab.Mesh(t, 3)
	allReach(t, patience, m.Workloads...)
	rogue, target := m.Hosts()[0], m.Hosts()[1]
	own, victim, third := m.Workloads[0], m.Workloads[1], m.Workloads[2]
	before := drops(t, target)["source"]
	log := strings.Count(target.Log(), "\n")
	heard := m.Capture(victim.Namespace, "eth0", 0)
	s := newSender(t, rogue.Namespace, victim.V4)
	const n = 500
	if err := rogue.ClearRules(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		s.send(t, datagram(third.V4, victim.V4, fmt.Appendf(nil, "a forged datagram %d", i)))
	}
	eventually(t, patience, func() error {
		if got := drops(t, target)["source"] - before; got < n {
			return fmt.Errorf("%d of %d are counted: %v; the rogue %v", got, n, drops(t, target), drops(t, rogue))
		}
		return nil
	})
	s.send(t, datagram(own.V4, victim.V4, []byte("an honest datagram")))
	eventually(t, patience, func() error {
		if heard.Count([]byte("an honest datagram")) == 0 {
			return errors.New("the honest datagram has not arrived")
		}
		return nil
	})
	heard.Stop()
	if got := heard.Count([]byte("a forged datagram")); got != 0 {
		t.Errorf("%d forged datagrams arrived", got)
	}
	if lines := strings.Count(target.Log(), "\n") - log; lines > 3 {
		t.Errorf("%d lines were logged", lines)
	}
	allReach(t, patience, m.Workloads...)
}

// TestFlood floods a daemon with initiations. Work, memory and log are bounded, the traffic of a peer goes on, a peer that restarts comes through,
// and afterwards all is as before.
func TestFlood(t *testing.T) {
	a := underAttack(t)
	const perSecond, many = 100_000, 4096
	const leastDuring = 20e6 // bits a second of a peer's traffic, with a large margin
	peer := netip.AddrPortFrom(a.peer.Link().V4(), weftPort)
	var spoofed []netip.AddrPort
	for i := range many {
		spoofed = append(spoofed, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), uint16(1024+i)))
	}
	before := a.throughput(64 << 20)
	for _, c := range []struct {
		name    string
		valid   bool
		sources []netip.AddrPort
		counts  []string
	}{
		{"right mac1, one source", true, []netip.AddrPort{a.here}, []string{"drop_under-load", "drop_auth"}},
		{"right mac1, many sources", true, spoofed, []string{"drop_under-load", "drop_auth"}},
		{"wrong mac1, one source", false, []netip.AddrPort{a.here}, []string{"drop_mac1"}},
		{"wrong mac1, many sources", false, spoofed, []string{"drop_mac1"}},
		{"right mac1, under the peer's address", true, []netip.AddrPort{peer}, []string{"drop_under-load", "drop_auth"}},
		{"junk for the mesh, many sources", false, spoofed, []string{"drop_control-lost", "drop_control-form"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := *a
			b.t = t
			var sent [][]byte
			for i, d := range initiations(t, many, a.public, c.valid) {
				if c.counts[0] == "drop_control-lost" {
					d[0] = 16
				}
				sent = append(sent, raw(c.sources[i%len(c.sources)], a.target.Link().V4(), d))
			}
			counted := func() (n uint64) {
				all := packets(t, a.target)
				for _, name := range c.counts {
					n += all[name]
				}
				return n
			}
			count, used := counted(), processor(t, a.started)
			flood := a.from.flood(sent, perSecond)
			time.Sleep(time.Second)
			during := b.throughput(1 << 20)
			flood.end(t)
			cpu := processor(t, a.started) - used
			got := counted() - count
			t.Logf("%d datagrams in %v (%.0f/s), %d counted; %.2f Gb/s during, %.2f before; the daemon used %v",
				flood.sent, flood.took.Round(time.Millisecond), float64(flood.sent)/flood.took.Seconds(), got, during/1e9, before/1e9, cpu)
			if got < uint64(flood.sent)/20 {
				t.Errorf("%d of %d datagrams are counted: %v", got, flood.sent, packets(t, a.target))
			}
			if c.valid && cpu > flood.took*3/4 {
				t.Errorf("the daemon used %v of a processor in %v", cpu, flood.took)
			}
			if during < leastDuring {
				t.Errorf("the peer's traffic went on with %.1f Mb/s", during/1e6)
			}
			b.unharmed(1200)
		})
	}
	t.Run("a peer restarts meanwhile", func(t *testing.T) {
		var sent [][]byte
		for i, d := range initiations(t, many, a.public, true) {
			sent = append(sent, raw(spoofed[i], a.target.Link().V4(), d))
		}
		flood := a.from.flood(sent, perSecond)
		defer flood.end(t)
		time.Sleep(time.Second)
		a.peer.Kill()
		a.peer.Relaunch()
		took, err := lab.AllReach(2*patience, a.Workloads...)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("reachable again after %v", took)
	})
	eventually(t, patience, func() error {
		after := a.throughput(64 << 20)
		t.Logf("%.2f Gb/s after, %.2f before", after/1e9, before/1e9)
		if after < before/2 {
			return fmt.Errorf("%.2f Gb/s after the floods, %.2f before", after/1e9, before/1e9)
		}
		return nil
	})
	a.unharmed(1300)
}

// processor returns how much processor time a process has used.
func processor(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), ") ")
	var user, system uint64
	fields := strings.Fields(after)
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ
}

func TestUnjoined(t *testing.T) {
	head := []byte{4, 1, 0, 0, 9, 8, 7, 6}
	one, other := append(slices.Clone(head), make([]byte, 40)...), append(slices.Clone(head), make([]byte, 24)...)
	other[2], one[8] = 1, 5 // flags and counters differ
	got := unjoined(slices.Concat(one, one, other))
	if len(got) != 3 || !bytes.Equal(got[0], one) || !bytes.Equal(got[1], one) || !bytes.Equal(got[2], other) {
		t.Errorf("%x", got)
	}
}

// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
)

// track makes entries of connection tracking: from a client's ports to a service of a pod.
func (s *space) track(t testing.TB, c policy.Connection, ports []uint16) {
	t.Helper()
	k, err := dial(s.fd, unix.NETLINK_NETFILTER, 0)
	must(t, err)
	defer k.close()
	const (
		ctNew       = 0
		ctaTimeout  = 7
		ctaDstPort  = 3
		ctaV4Dst    = 2
		ctaProtocol = 4
	)
	for _, port := range ports {
		var b buffer
		at := b.begin(conntrack(ctNew), unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.AF_INET, 0)
		for _, x := range []struct {
			kind         uint16
			src, dst     netip.Addr
			sport, dport uint16
		}{{ctaOriginal, c.Src, c.Dst, port, c.Port}, {ctaReply, c.Dst, c.Src, c.Port, port}} {
			all := b.nest(x.kind)
			ip := b.nest(ctaTupleIP)
			b.attr(ctaV4Src, x.src.AsSlice())
			b.attr(ctaV4Dst, x.dst.AsSlice())
			b.close(ip)
			p := b.nest(ctaTupleProto)
			b.attr(ctaProtoNum, []byte{byte(c.Protocol)})
			b.attr(ctaSrcPort, binary.BigEndian.AppendUint16(nil, x.sport))
			b.attr(ctaDstPort, binary.BigEndian.AppendUint16(nil, x.dport))
			b.close(p)
			b.close(all)
		}
		b.word(ctaTimeout, 3600)
		if c.Protocol == policy.TCP {
			info := b.nest(ctaProtocol)
			tcp := b.nest(1)
			b.attr(1, []byte{3}) // established
			b.close(tcp)
			b.close(info)
		}
		b.end(at)
		must(t, k.ask(b, false, func(header, []byte) error { return nil }))
	}
}

// tracked says how many entries there are.
func (s *space) tracked(t testing.TB) (n int) {
	t.Helper()
	k, err := dial(s.fd, unix.NETLINK_NETFILTER, 0)
	must(t, err)
	defer k.close()
	var b buffer
	b.end(b.begin(conntrack(ctGet), 0, unix.AF_INET, 0))
	must(t, k.ask(b, true, func(header, []byte) error { n++; return nil }))
	return n
}

// A connection that cannot be deleted is told of, and the others are deleted all the same.
func TestOneThatStaysKeepsNoOther(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	f := newFilter(t, s)
	must(t, f.Replace(forbidding()))
	s.track(t, policy.Connection{Src: podAddr(0, false), Dst: podAddr(1, false), Protocol: policy.TCP, Port: 80}, []uint16{1000, 1001, 1002})
	c, err := dial(s.fd, unix.NETLINK_NETFILTER, 0)
	must(t, err)
	defer c.close()
	doomed, err := f.doomed(c, newWarden(f), nil)
	must(t, err)
	if len(doomed) != 3 {
		t.Fatalf("%d connections are to be deleted, want 3", len(doomed))
	}
	var senseless buffer // for the kernel, too
	at := senseless.begin(conntrack(ctDelete), 0, unix.AF_INET, 0)
	senseless.close(senseless.nest(ctaOriginal))
	senseless.end(at)
	doomed[0] = senseless
	cut, err := c.sever(doomed)
	const want = "connections that are not allowed any more go on: 1 could not be deleted: invalid argument; the next attempt follows"
	if cut != 2 || err == nil || err.Error() != want {
		t.Errorf("%d were cut, %v, want 2, %s", cut, err, want)
	}
	if n := s.tracked(t); n != 1 {
		t.Errorf("%d connections are left, want 1", n)
	}
	if cut, err = c.sever(doomed[1:]); cut != 0 || err != nil { // they are gone
		t.Errorf("%d were cut, %v, want none and no error", cut, err)
	}
}

func TestUndeleted(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{
		unix.EBUSY: "connections that are not allowed any more go on: 2 could not be deleted: device or resource busy; a flowtable hands their packets on, past all policies: " +
			"nft list flowtables shows it; take workloads' interfaces out of it",
		unix.EPERM:  "connections that are not allowed any more go on: 2 could not be deleted: operation not permitted; CAP_NET_ADMIN is needed",
		unix.ENOMEM: "connections that are not allowed any more go on: 2 could not be deleted: cannot allocate memory; the next attempt follows",
	} {
		if got := undeleted(2, err); got == nil || got.Error() != want {
			t.Errorf("%v, want %q", got, want)
		}
	}
	if err := undeleted(0, nil); err != nil {
		t.Error(err)
	}
}

// BenchmarkWalk looks through 100,000 connections of pods with rules, of which none is forbidden; then it cuts 10,000 of them, half of them TCP.
func BenchmarkWalk(b *testing.B) {
	const entries, forbidden = 100_000, 10_000
	ports := func(n int) (all []uint16) {
		for p := range n {
			all = append(all, uint16(1024+p))
		}
		return all
	}
	s := newSpace(b)
	f := newFilter(b, s)
	state := large(300_000)
	must(b, f.Replace(state))
	pod := netip.AddrFrom4([4]byte{10, 200, 0, 1}) // of table 1, and by its ingress of none
	for i := range entries / 10_000 {
		s.track(b, policy.Connection{Src: netip.AddrFrom4([4]byte{10, 100, 0, byte(i)}), Dst: pod, Protocol: policy.TCP, Port: 1000}, ports(10_000))
	}
	if n := s.tracked(b); n != entries {
		b.Fatalf("%d entries; net.netfilter.nf_conntrack_max must be above %d", n, entries+forbidden)
	}
	measure := func(b *testing.B, before func()) {
		w := newWarden(f)
		var cpu time.Duration
		for b.Loop() {
			b.StopTimer()
			before()
			began := processor(b)
			b.StartTimer()
			must(b, f.walk(b.Context(), w))
			cpu += processor(b) - began
		}
		b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
	}
	b.Run("allowed", func(b *testing.B) { measure(b, func() {}) })
	b.Run("cut", func(b *testing.B) {
		measure(b, func() {
			for _, p := range []policy.Protocol{policy.TCP, policy.UDP} {
				s.track(b, policy.Connection{Src: pod, Dst: netip.AddrFrom4([4]byte{10, 101, 0, 1}), Protocol: p, Port: 7}, ports(forbidden/2))
			}
		})
	})
	if n := s.tracked(b); n != entries {
		b.Fatalf("%d entries are left", n)
	}
}

// BenchmarkBarred sends datagrams of an established flow through the node: while nothing is barred, and while other flows are. The ratio is of the medians.
func BenchmarkBarred(b *testing.B) {
	w := newWorld(b)
	f := newFilter(b, w.node)
	must(b, f.Replace(isolated(0)))
	x := w.client.talk(b, clientAddr(false), w.pods[1], podAddr(2, false), 4000, 53)
	if !heard(x.near, x.far, patience) || !heard(x.far, x.near, patience) {
		b.Fatal("nothing goes through")
	}
	measure := func() float64 {
		const batch = 20_000
		began := processor(b)
		for range batch {
			_, _ = unix.Write(x.near, []byte("x"))
		}
		return float64((processor(b) - began).Nanoseconds()) / batch
	}
	own := map[netip.Addr]bool{}
	c, err := dial(w.node.fd, unix.NETLINK_NETFILTER, 0)
	must(b, err)
	defer c.close()
	var without, with []float64
	for b.Loop() {
		measure()
		without = append(without, measure())
		k := newWarden(f)
		for p := range uint16(1000) {
			k.add(bar{src: clientAddr(false), dst: podAddr(0, false), protocol: policy.UDP, sport: p, dport: 53}, time.Now())
		}
		must(b, k.settle(c, own))
		measure()
		with = append(with, measure())
		must(b, f.unbar())
	}
	slices.Sort(without)
	slices.Sort(with)
	base := without[len(without)/2]
	b.ReportMetric(base, "cpu-ns/datagram")
	b.ReportMetric(with[len(with)/2]-base, "more")
}

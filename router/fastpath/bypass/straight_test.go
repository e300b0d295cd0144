// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// finest is the clock by which is counted what is queued.
func finest(t *testing.T) uint64 {
	t.Helper()
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return uint64(now.Nano())
}

// queued runs the entry on a packet of a sample whose flow leaves by the device of a workload, and returns what it has noted of the queue.
func (b *Bypass) queued(t *testing.T, s sample, straight uint32, last uint64) uint64 {
	t.Helper()
	b.flow(t, s, func(v []byte) {
		binary.NativeEndian.PutUint32(v[flowStraight:], straight)
		binary.NativeEndian.PutUint64(v[flowQueued:], last)
	})
	if result, got := try(t, b.in.fd, s.packet(), 0); result != resultRedirect || !bytes.Equal(got, s.forwarded(s.packet())) {
		t.Errorf("%s, protocol %d: %d\n% x", s.form.name, s.proto, result, got)
	}
	v := make([]byte, flowSize)
	must(t, element(unix.BPF_MAP_LOOKUP_ELEM, b.tables.flows[s.form.index], s.form.key(s.packet(), 1), v))
	return binary.NativeEndian.Uint64(v[flowQueued:])
}

// Packets that follow closely what was queued are queued, too; what comes later is not, and so are those that follow it.
func TestEntryKeepsOrder(t *testing.T) {
	b := loadTest(t)
	for _, s := range samples() {
		soon := finest(t)
		if got := b.queued(t, s, 0, soon); got != soon {
			t.Errorf("%s, protocol %d: a device that is no workload's: %d, want %d", s.form.name, s.proto, got, soon)
		}
		if got := b.queued(t, s, 1, 0); got != 0 {
			t.Errorf("%s, protocol %d: after one that went past the queue: %d", s.form.name, s.proto, got)
		}
		if got := b.queued(t, s, 1, finest(t)-quiet-1); got != 0 {
			t.Errorf("%s, protocol %d: long after one that was queued: %d", s.form.name, s.proto, got)
		}
		if got, later := b.queued(t, s, 1, finest(t)+uint64(time.Minute)), finest(t); got == 0 || got > later {
			t.Errorf("%s, protocol %d: another processor has queued one: %d, and it is %d", s.form.name, s.proto, got, later)
		}
		eventually(t, "a packet follows another one closely", func() bool {
			before := finest(t)
			got := b.queued(t, s, 1, before)
			if finest(t)-before >= quiet {
				return false // too slow
			}
			if got <= before {
				t.Errorf("%s, protocol %d: right after one that was queued: %d, not after %d", s.form.name, s.proto, got, before)
			}
			return true
		})
	}
}

// crossed is how many packets have crossed the pair of a workload.
func (p *place) crossed(t *testing.T) uint64 {
	t.Helper()
	l, err := p.handle.LinkByIndex(p.veth.Attrs().Index)
	must(t, err)
	return l.Attrs().Statistics.TxPackets
}

// Packets are handed to the workload's namespace without crossing the pair, unless somebody has something there.
func TestPastTheQueue(t *testing.T) {
	ps := newPlaces(t)
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
	const some = 100
	cross := func() (n uint64) {
		time.Sleep(2 * quiet)
		before := ps[1].crossed(t)
		for range some {
			if !d.passWithin(t, 100, patience) {
				t.Fatal("a datagram is lost")
			}
		}
		return ps[1].crossed(t) - before
	}
	expect := func(what string, straight bool) {
		t.Helper()
		ps[1].raise()
		eventually(t, what, func() bool {
			if straight {
				return cross() < some/2
			}
			return cross() >= some
		})
	}
	expect("packets go past the queue", true)

	index := ps[1].veth.Attrs().Index
	q := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}, QdiscType: "pfifo"}
	must(t, ps[1].handle.QdiscAdd(q))
	expect("there is a queue that somebody has made", false)
	must(t, ps[1].handle.QdiscDel(q))
	expect("that queue is gone", true)

	remove := ps[1].theirs(t, hookOut)
	expect("there is a program of somebody else", false)
	remove()
	expect("that program is gone", true)
	if n := len(ps[1].programs(t)); n != 5 {
		t.Errorf("there are %d programs", n)
	}

	var passable bool
	in(t, ps[1].ns, func() (err error) {
		a := *ps[1].veth.Attrs()
		a.NetNsID = -1
		passable, err = ps[1].passable(&a, use{})
		return err
	})
	if passable {
		t.Error("a pair with both ends on this host is taken for a workload's")
	}
}

// Packets arrive in the order in which they were sent while some of them cross the pair and others do not.
func TestOrderAtWorkloads(t *testing.T) {
	ps := newPlaces(t)
	for _, a := range []struct{ d *datagrams }{{newDatagrams(t, ps[0], ps[1], v4(2, 2))}, {newDatagrams(t, ps[0], ps[1], v6(2, 2))}} {
		d := a.d
		d.warm(t, ps)
		crossed := ps[1].crossed(t)
		var received, late uint64
		var reader sync.WaitGroup
		must(t, d.to.SetReadDeadline(time.Time{}))
		reader.Go(func() {
			b := make([]byte, 64)
			for last := uint64(0); ; received++ {
				n, err := d.to.Read(b)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					return
				}
				if err != nil || n != 8 {
					t.Errorf("receiving: %d bytes, %v", n, err)
					return
				}
				if i := binary.BigEndian.Uint64(b); i <= last {
					late++
				} else {
					last = i
				}
			}
		})
		seq, seed := uint64(0), rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		for end := time.Now().Add(3500 * time.Millisecond); time.Now().Before(end); {
			for range r.IntN(64) {
				seq++
				_, _ = d.from.Write(binary.BigEndian.AppendUint64(nil, seq))
			}
			time.Sleep(time.Duration(r.IntN(3*quiet/2)) * time.Nanosecond)
		}
		time.Sleep(50 * time.Millisecond)
		must(t, d.to.SetReadDeadline(time.Now()))
		reader.Wait()
		if late != 0 {
			t.Errorf("seed %d: of %d datagrams %d were overtaken", seed, received, late)
		}
		if crossed = ps[1].crossed(t) - crossed; received < seq/10 || crossed > received*9/10 || crossed < 3 {
			t.Errorf("seed %d: of %d datagrams %d arrived, %d crossed the pair", seed, seq, received, crossed)
		}
	}
}

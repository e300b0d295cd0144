// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// sweepEvery is how often flows are looked at that are admitted, and restEvery how often it is looked whether there is something to do if there are none.
	sweepEvery, restEvery = time.Second, 10 * time.Second
	// idle is how long the stack may have seen nothing of a flow that stays admitted: longer than fresh, as one packet in that time goes through it.
	idle = 1500 * time.Millisecond
	// slack is how long after it was admitted a flow may not have been filled.
	slack = 2 * time.Second
	// maxRequests is how many requests are looked at together, and maxLooks how many between two sweeps. What is more asks again.
	maxRequests, maxLooks = 256, 2048
	// maxKept is how many entries of connection tracking are kept.
	maxKept = 1 << 16
)

// admitted is what is known of a flow in the map.
type admitted struct {
	epoch   uint32
	since   time.Duration // on the kernel's clock
	entry   tuple         // of connection tracking, as its first packet was
	tracked bool          // there is such an entry, of TCP
}

// An admission lets flows be taken around the stack that ask for it, one after the other, so that connection tracking knows it before. It belongs to one goroutine.
type admission struct {
	b        *Bypass
	tracking tracking
	flows    map[flowKey]admitted
	kept     map[tuple]kept
	freed    bool // something has been deleted from the maps that a program may still read
	said     string
}

// admit admits flows until ctx ends.
func (b *Bypass) admit(ctx context.Context) {
	a := &admission{b: b, tracking: tracking{ns: b.ns}, flows: map[flowKey]admitted{}, kept: map[tuple]kept{}}
	defer a.tracking.close()
	requests := make(chan request, maxRequests)
	var reading sync.WaitGroup
	reading.Go(func() { b.read(ctx, requests) })
	defer reading.Wait()
	trackable := a.probe()
	a.inherit()
	tick := time.NewTimer(sweepEvery)
	defer tick.Stop()
	looks, resting := 0, false // resting: there is nothing to sweep
	for {
		select {
		case <-ctx.Done():
			a.end()
			return
		case r := <-requests:
			if resting {
				resting = false
				tick.Reset(sweepEvery)
			}
			list := []request{r}
			for more := true; more && len(list) < maxRequests; {
				select {
				case r := <-requests:
					list = append(list, r)
				default:
					more = false
				}
			}
			if looks += len(list); looks <= maxLooks {
				a.take(list)
			}
		case <-tick.C:
			looks = 0
			a.sweep()
			if !trackable {
				trackable = a.probe()
			}
			next := sweepEvery
			if resting = len(a.flows)+len(a.kept) == 0; resting {
				next = restEvery
			}
			tick.Reset(next)
		}
	}
}

// probe says whether connection tracking can be talked to. While it cannot nothing is taken around the stack.
func (a *admission) probe() bool {
	why := a.tracking.probe()
	a.b.settle(reasonTracking, why)
	return why == ""
}

// read hands on requests until ctx ends. Those for which there is no room ask again.
func (b *Bypass) read(ctx context.Context, to chan<- request) {
	defer context.AfterFunc(ctx, b.ring.wake)()
	for {
		err := b.ring.next(func(record []byte) {
			if r, ok := readRequest(record); ok {
				select {
				case to <- r:
				default:
				}
			}
		})
		if err != nil {
			if ctx.Err() == nil {
				b.log.Error("flows are not heard of any more that may go around the host's stack; restart the daemon", zap.Error(err))
			}
			return
		}
	}
}

// take looks at requests, and admits those flows of which connection tracking needs not see all packets.
func (a *admission) take(requests []request) {
	epoch := a.b.current()
	ready := map[flowKey]admitted{}
	for _, r := range requests {
		if r.epoch != epoch || epoch == 0 || len(a.flows)+len(ready) >= maxFlows {
			continue
		}
		x, err := a.look(r.flow.conn())
		if err != nil {
			a.b.log.Debug("a flow stays with the host's stack", zap.Stringer("from", r.flow.conn().src), zap.Stringer("to", r.flow.conn().dst), zap.Error(err))
			continue
		}
		x.epoch = epoch
		ready[r.flow] = x
	}
	for k := range ready {
		if _, there := a.flows[k]; there {
			a.delete(k)
		}
	}
	a.grace()
	for k, x := range ready {
		x.since = coarse()
		v := make([]byte, flowSize)
		binary.NativeEndian.PutUint32(v[flowEpoch:], x.epoch)
		if err := element(unix.BPF_MAP_UPDATE_ELEM, a.b.tables.flows[k.index], k.bytes(), v); err != nil {
			a.say("a flow cannot be taken around the host's stack", err)
			continue
		}
		a.flows[k] = x
	}
}

// look asks connection tracking about a flow, and marks its entry. The error says why the flow is to stay with the stack.
func (a *admission) look(c tuple) (x admitted, err error) {
	r, err := a.tracking.get(c)
	switch {
	case errors.Is(err, unix.ENOENT), err != nil && a.tracking.conn == nil:
		// It is not tracked, or is in a zone, or has just been deleted. If nothing is tracked at all it does no harm: who is met on the way later is taken for liberal.
		if n, err := a.tracking.tracked(); err != nil || n > 0 {
			return x, errors.New("connection tracking does not know it")
		}
		return admitted{entry: c}, nil
	case err != nil:
		return x, fmt.Errorf("asking connection tracking: %w", err)
	}
	if why := r.unfit(); why != "" {
		return x, errors.New(why)
	}
	x = admitted{entry: r.original, tracked: c.protocol == unix.IPPROTO_TCP}
	if !x.tracked {
		return x, nil
	}
	if _, there := a.kept[x.entry]; !there && len(a.kept) >= maxKept {
		return x, errors.New("too many others are being looked after")
	}
	if !r.liberal() {
		if err := a.tracking.mark(x.entry, 0); err != nil {
			return x, fmt.Errorf("telling connection tracking: %w", err)
		}
	}
	a.kept[x.entry] = kept{due: time.Now().Add(keepEvery)} // also if no flow comes of it: it is marked
	return x, nil
}

// delete takes a flow out of the map.
func (a *admission) delete(k flowKey) {
	if err := element(unix.BPF_MAP_DELETE_ELEM, a.b.tables.flows[k.index], k.bytes(), nil); err != nil && !errors.Is(err, unix.ENOENT) {
		a.say("a flow cannot be deleted", err)
	}
	delete(a.flows, k)
	a.freed = true
}

// grace waits until no program reads what was deleted: the kernel uses its room again at once.
func (a *admission) grace() {
	if a.freed {
		grace()
		a.freed = false
	}
}

// grace waits until no program runs that runs now.
func grace() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 20e6}, nil) // a packet takes microseconds
	}
}

// sweep lets flows go that have ended, are idle or were forgotten, and has connection tracking keep their entries.
func (a *admission) sweep() {
	epoch, now := a.b.current(), coarse()
	for k, x := range a.flows {
		v := make([]byte, flowSize)
		err := element(unix.BPF_MAP_LOOKUP_ELEM, a.b.tables.flows[k.index], k.bytes(), v)
		seen := time.Duration(binary.NativeEndian.Uint64(v[flowTime:]))
		live := err == nil && x.epoch == epoch && binary.NativeEndian.Uint32(v[flowEpoch:]) == epoch
		if live && (seen == 0 && now-x.since < slack || seen != 0 && now-seen < idle) {
			continue
		}
		a.delete(k)
		if x.tracked {
			a.kept[x.entry] = kept{due: time.Now()}
		}
	}
	a.keep(false)
}

// keep looks at the entries that are due, or at all.
func (a *admission) keep(all bool) {
	now := time.Now()
	var t timeouts
	for x, k := range a.kept {
		if !all && now.Before(k.due) {
			continue
		}
		if t.established == 0 {
			var err error
			if t, err = a.timeouts(); err != nil {
				a.say("the timeouts of connection tracking cannot be read", err)
				return
			}
		}
		r, err := a.tracking.get(x)
		switch {
		case errors.Is(err, unix.ENOENT), err == nil && (r.state != tcpEstablished || !r.liberal()):
			delete(a.kept, x)
			continue
		case err != nil:
			a.say("connection tracking cannot be asked", err)
			continue // it stays due
		}
		restore, next := k.judge(now, time.Duration(r.timeout)*time.Second, t)
		if restore {
			if err := a.tracking.mark(x, uint32(t.established/time.Second)); err != nil && !errors.Is(err, unix.ENOENT) {
				a.say("connection tracking cannot be told how long a connection lasts", err)
				continue
			}
		}
		a.kept[x] = next
	}
}

// timeouts reads them.
func (a *admission) timeouts() (t timeouts, err error) {
	seconds := func(name string) time.Duration {
		n, failed := a.tracking.setting("tcp_timeout_" + name)
		err = errors.Join(err, failed)
		return time.Duration(n) * time.Second
	}
	t = timeouts{established: seconds("established"), short: max(seconds("unacknowledged"), seconds("max_retrans")), closing: seconds("close")}
	return t, err
}

// inherit keeps the entries that an earlier run has marked.
func (a *admission) inherit() {
	if n, err := a.tracking.tracked(); err != nil || n == 0 {
		return
	}
	for _, f := range carried(a.b.config.Universe) {
		err := a.tracking.list(f.v6, func(r record) {
			if r.original.protocol == unix.IPPROTO_TCP && r.state == tcpEstablished && r.liberal() && r.unfit() == "" && len(a.kept) < maxKept &&
				a.b.within(r.original.src.Addr()) && a.b.within(r.original.dst.Addr()) {
				a.kept[r.original] = kept{due: time.Now()}
			}
		})
		if err != nil {
			a.say("what an earlier run has left in connection tracking cannot be read", err)
		}
	}
	a.keep(true)
}

// within says whether an address is of the universe.
func (b *Bypass) within(x netip.Addr) bool {
	return slices.ContainsFunc(b.config.Universe, func(p netip.Prefix) bool { return p.Contains(x) })
}

// end lets all flows go, and has connection tracking keep the entries of those that go on.
func (a *admission) end() {
	for k, x := range a.flows {
		a.delete(k)
		if x.tracked {
			a.kept[x.entry] = kept{}
		}
	}
	a.keep(true)
}

// say logs what does not work, once.
func (a *admission) say(what string, err error) {
	if text := what + err.Error(); text != a.said {
		a.said = text
		a.b.log.Warn(what, zap.Error(err))
	}
}

// coarse is the clock of the programs.
func coarse() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &t); err != nil {
		runtime.KeepAlive(&t) // every kernel has it
	}
	return time.Duration(t.Nano())
}

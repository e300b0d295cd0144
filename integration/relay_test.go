// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// apart is a mesh of two hosts that do not reach each other, with relays between them.
type apart struct {
	*lab.Lab
	lan       *lab.Segment
	left      *lab.Host
	right     *lab.Host
	relays    []*lab.Host
	workloads []*lab.Workload // of left, of right, of the relays
}

// newApart builds one; each relay has its own flags.
func newApart(t *testing.T, relays ...[]string) *apart {
	t.Helper()
	a := &apart{Lab: lab.New(t)}
	a.lan = a.Switch("lan")
	var secret string
	for i, flags := range relays {
		h := a.Host(fmt.Sprint("relay", i+1), a.lan)
		a.relays = append(a.relays, h)
		flags = append([]string{"--range", lab.DefaultRange}, flags...)
		if i == 0 {
			h.Launch(flags...)
		} else {
			h.Join(secret, a.relays[:1], flags...)
		}
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		secret = a.relays[0].Token()
	}
	a.left, a.right = a.Host("left", a.lan), a.Host("right", a.lan)
	a.lan.Cut(a.left.Link(), a.right.Link())
	for _, h := range []*lab.Host{a.left, a.right} {
		h.Join(secret, a.relays, "--range", lab.DefaultRange)
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
	}
	hosts := append([]*lab.Host{a.left, a.right}, a.relays...)
	a.workloads = attach(t, len(hosts), hosts...)
	return a
}

// far are the workloads that need a relay.
func (a *apart) far() [2]*lab.Workload { return [2]*lab.Workload{a.workloads[0], a.workloads[1]} }

// TestRelayDies kills the relay in use under traffic, cuts it off, and stops it as weft does; another one takes over. One that refuses the job is
// never used, not even when there is no other one. In the end the two hosts reach each other, and not a packet is lost over it.
func TestRelayDies(t *testing.T) {
	t.Parallel()
	a := newApart(t, nil, nil, []string{"--no-relay"})
	refuser := a.relays[2]
	allReach(t, patience, a.workloads...)
	all := talk(t, a.Lab, a.far(), [2]*lab.Workload{a.workloads[1], a.workloads[0]})
	inUse := func() (now, other *lab.Host) {
		t.Helper()
		via := relayed(t, a.left, a.right, a.relays[:2]...)
		i := slices.IndexFunc(a.relays, func(h *lab.Host) bool { return h.Name() == via[0] })
		return a.relays[i], a.relays[1-i]
	}
	for _, fault := range []struct {
		name string
		do   func(*lab.Host)
		undo func(*lab.Host)
	}{
		{"killed", (*lab.Host).Kill, (*lab.Host).Relaunch},
		{"its plug pulled", func(h *lab.Host) { h.Link().Down() }, func(h *lab.Host) { h.Link().Up() }},
		{"stopped", func(h *lab.Host) { done(t, h.Weft("stop")) }, (*lab.Host).Relaunch},
	} {
		relay, other := inUse()
		explained(t, a.left, a.right)
		since := time.Now()
		fault.do(relay)
		all.within(t, "relay "+fault.name, since, rerouted, a.left, a.right)
		if now := relayed(t, a.left, a.right, other); now[0] != other.Name() {
			t.Errorf("still by %s", now)
		}
		fault.undo(relay)
		if err := relay.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() error { return seenAlive(append([]*lab.Host{a.left, a.right}, a.relays...)...) })
		// It is a possible relay again for both.
		direct(t, a.left, relay)
		direct(t, a.right, relay)
	}

	for _, h := range a.relays[:2] {
		h.Kill()
	}
	time.Sleep(aftermath)
	for _, x := range [][2]*lab.Host{{a.left, a.right}, {a.right, a.left}} {
		if p, err := peer(x[0], x[1]); err != nil || p.Path == "relay" {
			t.Errorf("with no relay but one that refuses: %+v, %v", p, err)
		}
	}
	for _, addr := range a.workloads[1].Addrs() {
		unreachable(t, a.workloads[0].Namespace, addr)
	}
	if _, err := a.workloads[0].Reach(a.workloads[4].V4, patience); err != nil {
		t.Errorf("%s itself is not reached: %v", refuser.Name(), err)
	}
	a.relays[1].Relaunch()
	allReach(t, patience, a.workloads[:2]...)

	// The direct path: from here on nothing may be lost, in either direction.
	relayed(t, a.left, a.right, a.relays[1])
	since := time.Now()
	a.lan.Heal()
	direct(t, a.left, a.right)
	t.Logf("a direct path that opened is used after %v", time.Since(since).Round(time.Millisecond))
	time.Sleep(rerouted)
	for name, k := range all {
		if c := k.Count(since); c.Arrived != c.Sent || c.Answered != c.Sent || c.Copies != 0 || c.Sent < 30 {
			t.Errorf("while the direct path replaced the relay, %s: %+v", name, c)
		}
	}
	all.stop(t)
}

// TestRelayByLatency has two relays of which one is farther away, and then the other one.
func TestRelayByLatency(t *testing.T) {
	t.Parallel()
	a := newApart(t, nil, nil)
	const far = 10 * time.Millisecond
	for _, r := range a.relays {
		r.Link().Delay(lab.Delay{})
	}
	all := talk(t, a.Lab, a.far())
	for _, slow := range []int{0, 1} {
		a.relays[slow].Link().Delay(lab.Delay{V4: far, V6: far})
		a.relays[1-slow].Link().Delay(lab.Delay{})
		since := time.Now()
		for _, x := range [][2]*lab.Host{{a.left, a.right}, {a.right, a.left}} {
			relayed(t, x[0], x[1], a.relays[1-slow])
		}
		t.Logf("the nearer relay is used after %v", time.Since(since).Round(time.Millisecond))
	}
	all.stop(t)
}

// TestRelayLimit measures what a relay lets through, which is what it was told, and what it does for its own workloads, which is not limited.
func TestRelayLimit(t *testing.T) {
	t.Parallel()
	const limit = 10e6
	a := newApart(t, []string{"--relay-limit", "10mbit"})
	relayed(t, a.left, a.right, a.relays[0])
	allReach(t, patience, a.workloads...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	to := a.workloads[1]
	const streams, each = 4, 3 << 20
	var wait sync.WaitGroup
	start := time.Now()
	for range streams {
		wait.Go(func() {
			if _, err := a.Transfer(ctx, a.workloads[0].Namespace, to.Namespace, to.V4, each); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	rate := streams * each * 8 / time.Since(start).Seconds()
	t.Logf("relayed with a limit of 10 Mb/s: %.1f Mb/s of payload", rate/1e6)
	// What a bucket holds comes besides. What a relay drops, TCP has to find out: it does not use all of it.
	if rate > limit*1.05 || rate < limit*0.5 {
		t.Errorf("%.1f Mb/s through a relay with a limit of 10", rate/1e6)
	}
	own, err := a.Transfer(ctx, a.workloads[0].Namespace, a.workloads[2].Namespace, a.workloads[2].V4, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	if r := own.BitsPerSecond(); r < 2*limit {
		t.Errorf("%.1f Mb/s to a workload on the relay itself", r/1e6)
	}

	// A saturated relay carries what keeps the mesh together.
	hosts := append([]*lab.Host{a.left, a.right}, a.relays...)
	calmFrom := steady(t, hosts...)
	load, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if _, err := a.Transfer(load, a.workloads[0].Namespace, to.Namespace, to.V4, 1<<30); err == nil {
		t.Error("1 GiB in 10 s through a relay with a limit")
	}
	calmFrom.still(t, hosts)
}

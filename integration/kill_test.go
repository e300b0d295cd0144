// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestKillUnderLoad kills daemons (kill -9) at random moments while workloads are attached and detached on all hosts, and starts
// them again. No address is held twice at any time, a workload keeps its own, and none is lost in the end. The range is small,
// and most of the load is on another host every few seconds, so that the nodes have to grant each other addresses all the
// time; and addresses rest for a second only.
func TestKillUnderLoad(t *testing.T) {
	length := 25 * time.Second
	if *soak {
		length = 2 * time.Minute
	}
	m := founders(t, 3, "--range", "10.32.0.0/26,fd77:6566:7400::/64", "--quarantine", "1s")
	hosts := m.Hosts()
	ctx, cancel := context.WithTimeout(t.Context(), length+2*time.Minute)
	defer cancel()
	l := &load{t: t, hosts: hosts, held: map[netip.Addr]string{}, excuses: map[string]int{}, start: time.Now(), length: length}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() { l.work(ctx) })
	}
	kills, moves := 0, map[string]bool{}
	for !l.over() {
		time.Sleep(time.Duration(rand.Int64N(int64(1500 * time.Millisecond))))
		for l.done() < 5*(kills+1) && !l.over() { // a slow machine has fewer kills
			time.Sleep(10 * time.Millisecond)
		}
		h := hosts[rand.IntN(len(hosts))]
		h.Kill()
		kills++
		if rand.IntN(3) == 0 {
			time.Sleep(time.Duration(rand.Int64N(int64(2 * time.Second))))
		}
		h.Relaunch()
		var s space
		if hosts[rand.IntN(len(hosts))].Query(&s, "ipam") == nil {
			moves[fmt.Sprint(s.Holdings)] = true
		}
	}
	wg.Wait()
	start := time.Now()
	for _, h := range hosts {
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v: %d attaches, %d detaches and %d repeated attaches; %d kills of a daemon; %d different rings were seen; the longest call took %v with its repetitions",
		length, l.attached, l.detached, l.again, kills, len(moves), l.longest.Round(time.Millisecond))
	for _, e := range slices.Sorted(maps.Keys(l.excuses)) {
		t.Logf("refused %d times: %s", l.excuses[e], e)
	}
	if t.Failed() {
		return
	}
	if kills < 5 || l.attached < 4*kills || len(moves) < 3 {
		t.Errorf("that is no load")
	}
	for _, h := range hosts {
		for _, w := range ask[[]workload](t, h, "ps") {
			for _, a := range w.Addresses {
				if who := l.held[a]; who != h.Name()+" "+w.Netns || w.State != "up" {
					t.Errorf("%s says that %s has %v (%s); it is %q that got it", h.Name(), w.Netns, a, w.State, who)
				}
				delete(l.held, a)
			}
		}
	}
	if len(l.held) != 0 {
		t.Errorf("lost: %v", l.held)
	}
	eventually(t, 2*patience, func() error {
		resting, err := nothingLost(hosts...)
		if err == nil && resting > 0 {
			err = fmt.Errorf("%d addresses still rest", resting)
		}
		return err
	})
	t.Logf("all addresses are accounted for %v after the end", time.Since(start).Round(time.Millisecond))
	allReach(t, patience, l.left...)
}

// load is what TestKillUnderLoad does to the daemons, and what came of it.
type load struct {
	t      *testing.T
	hosts  []*lab.Host
	start  time.Time
	length time.Duration

	mu                        sync.Mutex
	held                      map[netip.Addr]string // from the answer to attach until detach is asked for
	excuses                   map[string]int
	attached, detached, again int
	longest                   time.Duration
	left                      []*lab.Workload
}

func (l *load) over() bool { return time.Since(l.start) > l.length || l.t.Failed() }

// done is how many workloads were attached.
func (l *load) done() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.attached
}

// host picks one, mostly the one that has its turn now.
func (l *load) host() *lab.Host {
	const turn = 3 * time.Second
	if rand.IntN(4) > 0 {
		return l.hosts[int(time.Since(l.start)/turn)%len(l.hosts)]
	}
	return l.hosts[rand.IntN(len(l.hosts))]
}

// work attaches and detaches a few workloads at random.
func (l *load) work(ctx context.Context) {
	var workloads [5]*lab.Workload
	for !l.over() {
		w := &workloads[rand.IntN(len(workloads))]
		if *w == nil {
			n, err := l.host().TryWorkload("load")
			if err != nil {
				l.t.Error(err)
				return
			}
			*w = n
			l.attach(ctx, n)
			continue
		}
		switch rand.IntN(3) {
		case 0:
			l.attach(ctx, *w) // it is attached already
		default:
			l.detach(ctx, *w)
			*w = nil
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range workloads {
		if w != nil {
			l.left = append(l.left, w)
		}
	}
}

func (l *load) attach(ctx context.Context, w *lab.Workload) {
	before := w.Addrs()
	l.insist(ctx, func() error { return w.TryAttach() })
	l.mu.Lock()
	defer l.mu.Unlock()
	who := w.Host().Name() + " " + w.Path()
	if len(before) > 0 {
		l.again++
		if !slices.Equal(before, w.Addrs()) {
			l.t.Errorf("%s had %v and has %v", who, before, w.Addrs())
		}
		return
	}
	l.attached++
	for _, a := range w.Addrs() {
		if other, twice := l.held[a]; twice {
			l.t.Errorf("%v was given to %s and to %s", a, other, who)
		}
		l.held[a] = who
	}
}

func (l *load) detach(ctx context.Context, w *lab.Workload) {
	l.mu.Lock()
	for _, a := range w.Addrs() {
		delete(l.held, a)
	}
	l.mu.Unlock()
	l.insist(ctx, func() error {
		r, err := w.Host().TryWeft(ctx, "detach", "--netns", w.Path())
		if err == nil && r.Code != 0 {
			err = fmt.Errorf("detach: exit code %d: %s", r.Code, strings.TrimSpace(r.Stderr))
		}
		return err
	})
	w.Delete()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.detached++
}

// insist repeats a command until it succeeds: a daemon that was killed may have done what it was told, or not.
func (l *load) insist(ctx context.Context, command func() error) {
	start := time.Now()
	for !l.t.Failed() {
		err := command()
		if err == nil {
			l.mu.Lock()
			l.longest = max(l.longest, time.Since(start))
			l.mu.Unlock()
			return
		}
		text := err.Error()
		if i := strings.Index(text, "weft: "); i >= 0 {
			text = text[i:]
			for _, h := range l.hosts {
				text = strings.ReplaceAll(text, h.RunDir(), "RUN")
			}
		}
		l.mu.Lock()
		l.excuses[text]++
		l.mu.Unlock()
		if time.Since(start) > time.Minute || ctx.Err() != nil {
			l.t.Errorf("not done after %v: %v", time.Since(start), err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

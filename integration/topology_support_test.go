// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

const (
	// found is how long a node may take to find its best path to another one, from a state in which the worse one is known not to work.
	found = 90 * time.Second
	// rerouted is how long traffic may stop when a relay dies or an address changes, as what carries it sees it.
	rerouted = 3 * time.Second
	// aftermath is how long traffic is watched for after a fault: longer than it may stop.
	aftermath = 2 * rerouted
)

// peerRow is what the tests read of a row of `weft peers --json`.
type peerRow struct {
	Name     string         `json:"name"`
	NodeID   string         `json:"node_id"`
	State    string         `json:"state"`
	Since    time.Time      `json:"since"`
	Path     string         `json:"path"`
	Via      []string       `json:"via"`
	RTT      float64        `json:"rtt_us"`
	Endpoint netip.AddrPort `json:"endpoint"`
	Reason   string         `json:"reason"`
}

// peer returns what a host's daemon says of the path to another one.
func peer(h, to *lab.Host) (peerRow, error) {
	var rows []peerRow
	if err := h.Query(&rows, "peers"); err != nil {
		return peerRow{}, err
	}
	for _, r := range rows {
		if r.Name == to.Name() {
			return r, nil
		}
	}
	return peerRow{}, fmt.Errorf("%s does not know %s", h.Name(), to.Name())
}

// direct waits until both hosts reach each other by a path of their own.
func direct(t *testing.T, a, b *lab.Host) {
	t.Helper()
	for _, x := range [][2]*lab.Host{{a, b}, {b, a}} {
		eventually(t, found, func() error {
			p, err := peer(x[0], x[1])
			if err == nil && (p.Path != "udp" || len(p.Via) != 0) {
				err = fmt.Errorf("from %s to %s: %+v, want a direct path", x[0].Name(), x[1].Name(), p)
			}
			return err
		})
	}
}

// relayed waits until both hosts reach each other through others, of which the first and the last one are given: any of them, if there
// are several. It returns those of the path from a to b.
func relayed(t *testing.T, a, b *lab.Host, via ...*lab.Host) []string {
	t.Helper()
	var names, out []string
	for _, h := range via {
		names = append(names, h.Name())
	}
	for _, x := range [][2]*lab.Host{{b, a}, {a, b}} {
		eventually(t, found, func() error {
			p, err := peer(x[0], x[1])
			if err == nil && (p.Path != "relay" || len(p.Via) == 0 || !slices.Contains(names, p.Via[0]) || !slices.Contains(names, p.Via[len(p.Via)-1])) {
				err = fmt.Errorf("from %s to %s: %+v, want a path through %v", x[0].Name(), x[1].Name(), p, names)
			}
			out = p.Via
			return err
		})
	}
	return out
}

// noAnswer is how a path by relays is explained.
var noAnswer = regexp.MustCompile(`no answer from \S+:\d+ since \d\d:\d\d:\d\d`)

// explained checks that the relay is named in the table of peers, and why it is there.
func explained(t *testing.T, h, to *lab.Host) {
	t.Helper()
	p, err := peer(h, to)
	if err != nil {
		t.Fatal(err)
	}
	if !noAnswer.MatchString(p.Reason) {
		t.Errorf("%s explains the path to %s by %v as %q", h.Name(), to.Name(), p.Via, p.Reason)
	}
	for line := range strings.Lines(done(t, h.Weft("peers"))) {
		if !strings.HasPrefix(line, to.Name()+" ") {
			continue
		}
		if !strings.Contains(line, "relay via "+strings.Join(p.Via, ",")) && !strings.Contains(line, "relay via "+strings.Join(p.Via, ", ")) ||
			!noAnswer.MatchString(line) {
			t.Errorf("the table on %s says %q of a path by %v", h.Name(), line, p.Via)
		}
		return
	}
	t.Errorf("%s is not in the table on %s", to.Name(), h.Name())
}

// launched launches the first host, lets the others join by the hosts that are given for each, one after the other, and attaches a
// workload on each.
func launched(t *testing.T, hosts []*lab.Host, by func(i int) []*lab.Host, flags ...string) []*lab.Workload {
	t.Helper()
	mesh(t, hosts, by, flags...)
	return attach(t, len(hosts), hosts...)
}

// mesh is launched without workloads.
func mesh(t *testing.T, hosts []*lab.Host, by func(i int) []*lab.Host, flags ...string) {
	t.Helper()
	flags = append([]string{"--range", lab.DefaultRange}, flags...)
	var secret string
	for i, h := range hosts {
		if i == 0 {
			h.Launch(flags...)
		} else {
			h.Join(secret, by(i), flags...)
		}
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			secret = h.Token()
		}
	}
}

// first has all join by the first of the hosts.
func first(hosts []*lab.Host) func(int) []*lab.Host {
	return func(int) []*lab.Host { return hosts[:1] }
}

// seenAlive says which host does not see which other one as alive.
func seenAlive(hosts ...*lab.Host) error {
	var errs []error
	for _, h := range hosts {
		var rows []peerRow
		if err := h.Query(&rows, "peers"); err != nil {
			return err
		}
		state := map[string]string{}
		for _, r := range rows {
			state[r.Name] = r.State
		}
		for _, o := range hosts {
			if o != h && state[o.Name()] != "alive" {
				errs = append(errs, fmt.Errorf("%s sees %s as %q", h.Name(), o.Name(), state[o.Name()]))
			}
		}
	}
	return errors.Join(errs...)
}

// steadiness is since when each host has seen each other one as it does.
type steadiness struct {
	at    time.Time
	since map[[2]string]time.Time
}

// steady notes since when all hosts see each other as alive.
func steady(t *testing.T, hosts ...*lab.Host) steadiness {
	t.Helper()
	eventually(t, patience, func() error { return seenAlive(hosts...) })
	s := steadiness{at: time.Now(), since: map[[2]string]time.Time{}}
	for _, h := range hosts {
		for _, r := range ask[[]peerRow](t, h, "peers") {
			s.since[[2]string{h.Name(), r.Name}] = r.Since
		}
	}
	return s
}

// still checks that no host has seen another one as anything but alive since then, as it tells of now and as it has kept; pairs that may have
// are left out.
func (s steadiness) still(t *testing.T, hosts []*lab.Host, but ...[2]*lab.Host) {
	t.Helper()
	if err := seenAlive(hosts...); err != nil {
		t.Error(err)
	}
	excused := func(by, of string) bool {
		return slices.ContainsFunc(but, func(b [2]*lab.Host) bool { return b[0].Name() == by && b[1].Name() == of })
	}
	for _, h := range hosts {
		for _, r := range ask[[]peerRow](t, h, "peers") {
			if before, ok := s.since[[2]string{h.Name(), r.Name}]; ok && !r.Since.Equal(before) && !excused(h.Name(), r.Name) {
				t.Errorf("%s has seen %s as %s since %v only, before since %v", h.Name(), r.Name, r.State, r.Since, before)
			}
		}
		for _, e := range ask[[]event](t, h, "events") {
			if e.Kind == "fail" && e.Time.After(s.at) && !excused(h.Name(), e.Node) {
				t.Errorf("%s says at %v of %q: %s (%s)", h.Name(), e.Time, e.Node, e.Text, e.Cause)
			}
		}
	}
}

// event is what the tests read of an event of `weft events --json`.
type event struct {
	Time  time.Time `json:"time"`
	Kind  string    `json:"kind"`
	Node  string    `json:"node"`
	Text  string    `json:"text"`
	Cause string    `json:"cause"`
}

// talks is traffic between workloads, by all their addresses.
type talks map[string]*lab.Talk

// talk begins conversations from the first to the second workload of each pair, by all addresses.
func talk(t *testing.T, l *lab.Lab, pairs ...[2]*lab.Workload) talks {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all := talks{}
	for _, p := range pairs {
		for _, a := range p[1].Addrs() {
			// Where the path is still looked for, the first attempts may fail.
			if _, err := p[0].Reach(a, patience); err != nil {
				t.Fatal(err)
			}
			k, err := l.Talk(ctx, p[0].Namespace, p[1].Namespace, a)
			if err != nil {
				t.Fatal(err)
			}
			all[fmt.Sprintf("%s to %v of %s", p[0].Name(), a, p[1].Name())] = k
		}
	}
	return all
}

// outage returns the longest outage of any of them in what was sent after since, and in which.
func (k talks) outage(since time.Time) (longest time.Duration, which string) {
	for _, name := range slices.Sorted(maps.Keys(k)) {
		if d := k[name].Outage(since); d >= longest {
			longest, which = d, name
		}
	}
	return longest, which
}

// within waits until what happened to the traffic at a moment is over, and checks that nothing stood still for longer than it may. If something did,
// it shows what the hosts know of it.
func (k talks) within(t *testing.T, what string, since time.Time, limit time.Duration, hosts ...*lab.Host) {
	t.Helper()
	time.Sleep(time.Until(since.Add(aftermath)))
	longest, which := k.outage(since)
	t.Logf("%s: no traffic for %v at most, from %s", what, longest.Round(time.Millisecond), which)
	late := false
	for name, one := range k {
		if d := one.Outage(since); d > limit {
			t.Errorf("%s: no traffic from %s for %v, more than %v", what, name, d.Round(time.Millisecond), limit)
			late = true
		}
	}
	if late {
		paths(t, since, hosts)
	}
}

// paths logs what hosts have kept of changes of paths since then.
func paths(t *testing.T, since time.Time, hosts []*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		for _, e := range ask[[]event](t, h, "events") {
			if e.Time.After(since) {
				t.Logf("%s, %v later: %s %s: %s (%s)", h.Name(), e.Time.Sub(since).Round(time.Millisecond), e.Kind, e.Node, e.Text, e.Cause)
			}
		}
	}
}

// stop ends all of them. No TCP connection may have broken.
func (k talks) stop(t *testing.T) {
	t.Helper()
	var wait sync.WaitGroup
	for _, one := range k {
		wait.Go(func() {
			if err := one.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}

// pairs returns all pairs of the workloads.
func pairs(workloads ...*lab.Workload) (out [][2]*lab.Workload) {
	for i, a := range workloads {
		for _, b := range workloads[i+1:] {
			out = append(out, [2]*lab.Workload{a, b})
		}
	}
	return out
}

// moves sends data from one workload to another one, by all addresses, and compares what arrives.
func moves(t *testing.T, l *lab.Lab, from, to *lab.Workload, size int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, a := range to.Addrs() {
		if _, err := l.Transfer(ctx, from.Namespace, to.Namespace, a, size); err != nil {
			t.Error(err)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"flag"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// soak has the tests that put a load on a mesh run for as long, and with as many hosts, as one has time for.
var soak = flag.Bool("soak", false, "run the tests that put a load on a mesh at full length")

// founders builds n hosts on one switch, host1 and so on, that found a mesh together: each gets the same share of the range. All
// are ready when it returns.
func founders(t *testing.T, n int, flags ...string) *lab.Net {
	t.Helper()
	m := &lab.Net{Lab: lab.New(t)}
	m.Segment = m.Switch("lan")
	var names []string
	for i := range n {
		names = append(names, m.Host(fmt.Sprintf("host%d", i+1), m.Segment).Name())
	}
	m.Token = token(t, m.Hosts()[0])
	for _, h := range m.Hosts() {
		h.Join(m.Token, m.Hosts(), append([]string{"--seed", strings.Join(names, ",")}, flags...)...)
	}
	for _, h := range m.Hosts() {
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, patience, func() error {
		if err := allAlive(n, m.Hosts()...); err != nil {
			return err
		}
		ring, err := sameRing(m.Hosts()...)
		for _, h := range m.Hosts() {
			s, serr := tell[status](h, "status")
			err = errors.Join(err, serr)
			if !slices.ContainsFunc(ring.Holdings, func(o holding) bool { return o.NodeID == s.NodeID }) {
				err = errors.Join(err, fmt.Errorf("%s has not taken its share, as far as the others know", h.Name()))
			}
		}
		return err
	})
	return m
}

// allAlive checks that each of the hosts counts n nodes, all of which answer.
func allAlive(n int, hosts ...*lab.Host) error {
	for _, h := range hosts {
		var s status
		if err := h.Query(&s, "status"); err != nil {
			return err
		}
		if s.Nodes.Alive != n || s.Nodes.Total != n {
			return fmt.Errorf("%s counts %d of %d nodes as alive, not %d of %d", h.Name(), s.Nodes.Alive, s.Nodes.Total, n, n)
		}
	}
	return nil
}

// noticed waits until each of the hosts counts n nodes as alive.
func noticed(t *testing.T, n int, hosts ...*lab.Host) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		for _, h := range hosts {
			if s := ask[status](t, h, "status"); s.Nodes.Alive != n {
				return fmt.Errorf("%s counts %d nodes as alive, not %d", h.Name(), s.Nodes.Alive, n)
			}
		}
		return nil
	})
}

// attach attaches n new workloads in all, in turn on the hosts, several at once.
func attach(t *testing.T, n int, hosts ...*lab.Host) []*lab.Workload {
	t.Helper()
	const workers = 4
	workloads, errs := make([]*lab.Workload, n), make([]error, workers)
	var wg sync.WaitGroup
	for k := range workers {
		wg.Go(func() {
			for i := k; i < n && errs[k] == nil; i += workers {
				if workloads[i], errs[k] = hosts[i%len(hosts)].TryWorkload(fmt.Sprintf("many%d", i)); errs[k] == nil {
					errs[k] = workloads[i].TryAttach()
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return workloads
}

// tell is ask that returns the error.
func tell[T any](h *lab.Host, args ...string) (v T, err error) {
	return v, h.Query(&v, args...)
}

// sameRing checks that all hosts tell the same about who owns what, and returns it.
func sameRing(hosts ...*lab.Host) (space, error) {
	var first space
	for i, h := range hosts {
		var s space
		if err := h.Query(&s, "ipam"); err != nil {
			return space{}, err
		}
		if i == 0 {
			first = s
		}
		if !reflect.DeepEqual(s.Holdings, first.Holdings) {
			return space{}, fmt.Errorf("%s says that the range is held so:\n%+v\nand %s:\n%+v", hosts[0].Name(), first.Holdings, h.Name(), s.Holdings)
		}
		if !reflect.DeepEqual(s.Retirements, first.Retirements) {
			return space{}, fmt.Errorf("%s says that these were declared gone:\n%+v\nand %s:\n%+v", hosts[0].Name(), first.Retirements, h.Name(), s.Retirements)
		}
	}
	return first, nil
}

// nothingLost checks that every address that may be handed out is allocated, free or resting on one of the hosts, and that
// nobody else owns any. It returns how many rest.
func nothingLost(hosts ...*lab.Host) (resting uint64, err error) {
	ring, err := sameRing(hosts...)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, h := range hosts {
		var s space
		if err := h.Query(&s, "ipam"); err != nil {
			return 0, err
		}
		sum += s.Free + s.Quarantined + uint64(len(s.Allocations))
		resting += s.Quarantined
	}
	if sum != ring.Size || len(ring.Holdings) > len(hosts) {
		return resting, fmt.Errorf("%d of %d addresses are in use, free or resting on the %d hosts, and %d own something", sum, ring.Size, len(hosts), len(ring.Holdings))
	}
	return resting, nil
}

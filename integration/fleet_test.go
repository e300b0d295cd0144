// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/integration/lab"
)

// maxRoutes is how many blocks a node's addresses may be made of.
const maxRoutes = 16

// TestFleet replaces every node of a mesh by a new one, several times over: one after the other leaves, or is killed, and is
// forgotten. In the end all of the range can still be allocated, and nobody owns it in small pieces.
func TestFleet(t *testing.T) {
	nodes, rounds, step := 6, 2, 2 // step: how many at a time; every second one leaves, the others are killed
	if *soak {
		nodes, rounds, step = 20, 10, 4
	}
	f := &fleet{t: t, lab: lab.New(t)}
	f.lan = f.lab.Switch("lan")
	start := time.Now()
	f.add(1)
	f.token = f.live[0].Token()
	for len(f.live) < nodes {
		f.add(min(step, nodes-len(f.live)))
	}
	t.Logf("%d nodes are up after %v", nodes, time.Since(start).Round(time.Millisecond))
	for round := range rounds {
		start := time.Now()
		for range nodes / step {
			f.add(step)
			f.remove(step)
		}
		t.Logf("round %d: %d nodes replaced in %v; at most %d blocks a node", round+1, nodes, time.Since(start).Round(time.Millisecond), f.blocks)
	}
	var ring space
	eventually(t, time.Minute, func() (err error) {
		if ring, err = sameRing(f.live...); err == nil {
			_, err = nothingLost(f.live...)
		}
		return err
	})
	if want := nodes * rounds; len(ring.Retirements) != want {
		t.Errorf("%d nodes were declared gone, not %d", len(ring.Retirements), want)
	}
	for _, h := range f.live {
		dev, err := h.Netlink().LinkByName("weft0")
		if err != nil {
			t.Fatal(err)
		}
		routes, err := h.Netlink().RouteList(dev, netlink.FAMILY_V4)
		if err != nil || len(routes) == 0 || len(routes) > maxRoutes {
			t.Errorf("%s has %d routes by weft0 (%v)", h.Name(), len(routes), err)
		}
	}
	// Whatever address of the range anybody asks for can be had: on every host some from all over it.
	var workloads []*lab.Workload
	const samples = 24
	for i := range samples {
		h := f.live[i%len(f.live)]
		at := uint32(i*(1<<20)/samples) + uint32(rand.IntN(1<<20/samples))
		a := netip.AddrFrom4([4]byte{10, 32 + byte(at>>16), byte(at >> 8), byte(at)})
		w := h.Workload("any")
		err := w.TryAttach("--ip", a.String())
		switch {
		case err != nil && strings.Contains(err.Error(), "is in use"), err != nil && strings.Contains(err.Error(), "in use or reserved"):
			continue // by a host or a workload, or resting on another node
		case err != nil || w.V4 != a:
			t.Errorf("%v on %s: attached with %v, %v", a, h.Name(), w.V4, err)
		}
		workloads = append(workloads, w)
	}
	if len(workloads) < samples*3/4 {
		t.Errorf("only %d of %d addresses could be had", len(workloads), samples)
	}
	distinct(t, addrs(workloads...))
	allReach(t, patience, workloads[:6]...)
	t.Logf("%d of %d addresses from all over the range were attached by name; %d nodes are retired; at most %d blocks a node at any time",
		len(workloads), samples, len(ring.Retirements), f.blocks)
}

// fleet is a mesh whose hosts come and go.
type fleet struct {
	t      *testing.T
	lab    *lab.Lab
	lan    *lab.Segment
	token  string
	live   []*lab.Host // the oldest first
	work   map[*lab.Host][]*lab.Workload
	made   int
	blocks int // the most that a node had
}

// add has n new hosts join at once, with two workloads each.
func (f *fleet) add(n int) {
	f.t.Helper()
	var joining []*lab.Host
	for range n {
		f.made++
		h := f.lab.Host(fmt.Sprintf("node%d", f.made), f.lan)
		if len(f.live) == 0 {
			h.Launch()
		} else {
			h.Join(f.token, f.live[max(0, len(f.live)-3):])
		}
		joining = append(joining, h)
	}
	if f.work == nil {
		f.work = map[*lab.Host][]*lab.Workload{}
	}
	for _, h := range joining {
		if err := h.WaitReady(patience); err != nil {
			f.t.Fatal(err)
		}
		f.work[h] = attach(f.t, 2, h)
		f.live = append(f.live, h)
	}
}

// remove takes the n oldest hosts away, and has others forget them.
func (f *fleet) remove(n int) {
	f.t.Helper()
	old := f.live[:n]
	f.live = slices.Clone(f.live[n:])
	for i, h := range old {
		if i%2 == 0 {
			h.Kill()
		}
	}
	for i, h := range old {
		if i%2 == 1 { // the others count the killed ones as alive yet
			for _, w := range f.work[h] {
				w.Detach()
			}
			done(f.t, h.Weft("leave"))
		}
	}
	for _, h := range old {
		by := f.live[rand.IntN(len(f.live))]
		eventually(f.t, time.Minute, func() error {
			if r := by.Weft("forget", h.Name()); r.Code != 0 {
				return fmt.Errorf("weft forget %s on %s: %s", h.Name(), by.Name(), r.Stderr)
			}
			return nil
		})
		for _, w := range f.work[h] {
			w.Delete()
		}
		h.Delete()
		delete(f.work, h)
	}
	for _, o := range ask[space](f.t, f.live[rand.IntN(len(f.live))], "ipam").Holdings {
		f.blocks = max(f.blocks, len(o.Prefixes))
		if len(o.Prefixes) > maxRoutes {
			f.t.Errorf("the addresses of %s are %d blocks: %v", o.Node, len(o.Prefixes), o.Prefixes)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// The ways in which Weave Net lost addresses that lead through the daemon; the others are in package ipam.

// Nodes that booted one by one, and did not reach the first one yet, founded a network of their own, with the same addresses;
// there was no way to join the two. Here they wait and say for whom; and meshes that were founded apart stay apart, and both
// say what to do.
func TestWeave3902SecondNetwork(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	var hosts []*lab.Host
	for i := range 4 {
		hosts = append(hosts, l.Host(fmt.Sprintf("host%d", i+1), lan))
	}
	first, others := hosts[0], hosts[1:]
	secret := token(t, first)
	lan.Partition([]*lab.Link{first.Link()})
	first.Join(secret, nil)
	if err := first.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	workloads := attach(t, 2, first)
	for i, h := range others {
		h.Join(secret, hosts[:i+1]) // each knows those that were there before
		time.Sleep(silence)
	}
	for _, h := range others {
		eventually(t, patience, func() error {
			s := ask[status](t, h, "status")
			return says(s.Phase+": "+s.WaitsFor, "joining: ", first.Link().V4().String()+":6783 does not answer")
		})
		refused(t, h.Weft("attach", "--netns", h.Workload("early").Path()), "not ready yet")
	}
	lan.Heal()
	for _, h := range others {
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
	}
	workloads = append(workloads, attach(t, 6, others...)...)
	distinct(t, addrs(workloads...))
	eventually(t, patience, func() error { return allAlive(4, hosts...) })
	allReach(t, patience, workloads...)

	apart := l.Host("apart", lan)
	apart.Join(secret, nil)
	if err := apart.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	if code := apart.Terminate(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	apart.Join(secret, hosts[:1])
	eventually(t, patience, func() error {
		return says(apart.Weft("status").Stdout, "waiting: this node belongs to mesh ", "192.168.1.11:6783 to mesh ", "run `weft reset` here to join it, or remove --peer")
	})
	eventually(t, patience, func() error { return says(first.Log(), "turned away a node of another mesh: run `weft reset` there") })
	if err := allAlive(4, hosts...); err != nil {
		t.Error(err)
	}
	if err := allAlive(1, apart); err != nil {
		t.Error(err)
	}
}

// A daemon that had lost its database, and did not see which addresses were in use on its host, gave them to others. Here
// what it had stays with the node that it was, until somebody forgets that one; and its workloads, whose addresses could be
// given to others then, are off the network.
func TestWeave4005DatabaseLost(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 2, lab.PerHost(3), lab.Flags("--range", "10.32.0.0/26"))
	first, h := m.Hosts()[0], m.Hosts()[1]
	elsewhere, old := m.Workloads[:3], m.Workloads[3:]
	before := ask[status](t, h, "status").Addresses
	h.Kill()
	if err := os.RemoveAll(h.DataDir()); err != nil {
		t.Fatal(err)
	}
	h.Join(m.Token, []*lab.Host{first})
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	for _, w := range old {
		for _, a := range w.Addrs() {
			if s := strings.Join(snapshot(t, w.Namespace), "\n"); strings.Contains(s, a.String()) {
				t.Errorf("%s still has %v:\n%s", w.Name(), a, s)
			}
		}
	}
	fresh := attach(t, 12, h)
	distinct(t, append(append(addrs(m.Workloads...), addrs(fresh...)...), before...))

	// The host's old self is done with by one command, and nothing is lost.
	eventually(t, time.Minute, func() error {
		if r := first.Weft("forget", h.Name()); r.Code != 0 {
			return fmt.Errorf("forget: %s", r.Stderr)
		}
		return nil
	})
	eventually(t, patience, func() error {
		_, err := nothingLost(first, h)
		return err
	})
	for _, w := range old {
		w.Attach()
	}
	all := append(append(fresh, old...), elsewhere...)
	distinct(t, addrs(all...))
	allReach(t, patience, append(old, elsewhere...)...)
}

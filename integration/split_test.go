// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestSplit cuts three hosts of five off from the other two. Both sides attach, and a new host joins each: the one on the
// side that owns no majority of the range waits, and says why. After it all are one again.
func TestSplit(t *testing.T) {
	t.Parallel()
	const each = 200 // workloads on each side
	m := founders(t, 5)
	lan, more := m.Segment, m.Hosts()[:3:3]
	less := m.Hosts()[3:5:5]
	cut := func() {
		var links []*lab.Link
		for _, h := range more {
			links = append(links, h.Link())
		}
		lan.Partition(links)
	}
	cut()
	start := time.Now()
	workloads := append(attach(t, each, more...), attach(t, each, less...)...)
	t.Logf("%d workloads attached on each side in %v", each, time.Since(start).Round(time.Millisecond))
	noticed(t, 3, more...)
	noticed(t, 2, less...)

	six, seven := m.Host("host6", lan), m.Host("host7", lan)
	more, less = append(more, six), append(less, seven)
	cut()
	start = time.Now()
	six.Join(m.Token, more[:3])
	seven.Join(m.Token, less[:2])
	if err := six.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	t.Logf("ready on the side of the majority %v after its launch", time.Since(start).Round(time.Millisecond))
	workloads = append(workloads, attach(t, 2, six)...)
	const why = "the nodes that can be reached hold no more than half of 10.32.0.0/12, so none can be granted; reconnect the others ("
	eventually(t, patience, func() error {
		return says(seven.Weft("status").Stdout, "waiting", "this node has no addresses yet", why, "host1 ", "host2 ", "host3 ")
	})
	t.Logf("on the other side:\n%s", seven.Weft("status").Stdout)
	refused(t, seven.Weft("attach", "--netns", seven.Workload("early").Path()), "not ready yet", why)
	workloads = append(workloads, attach(t, 2*len(less[:2]), less[:2]...)...) // what a node has it hands out
	if s := ask[status](t, seven, "status"); s.Ready || s.Phase != "waiting" {
		t.Errorf("%+v", s)
	}

	lan.Heal()
	start = time.Now()
	if err := seven.WaitReady(healed); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*lab.Host{six, seven} {
		w := h.Workload("late")
		w.Attach()
		workloads = append(workloads, w)
	}
	took := time.Since(start)
	if took > healed {
		t.Errorf("the new hosts are served %v after the partition, not %v", took, healed)
	}
	t.Logf("both new hosts are served %v after the partition", took.Round(time.Millisecond))
	all := m.Hosts()
	eventually(t, patience, func() error {
		_, err := sameRing(all...)
		return err
	})
	t.Logf("all rings are equal %v after the partition", time.Since(start).Round(time.Millisecond))
	noticed(t, 7, all...)
	addresses := addrs(workloads...)
	for _, h := range all {
		addresses = append(addresses, ask[status](t, h, "status").Addresses...)
	}
	distinct(t, addresses)
	t.Logf("%d addresses are held, each once", len(addresses))
	eventually(t, patience, func() error { // a share of the range may still be on its way to a new host
		_, err := nothingLost(all...)
		return err
	})
	some := append(slices.Clone(workloads[:3]), workloads[len(workloads)-8:]...)
	allReach(t, patience, some...)
}

// says checks that a text has all the parts.
func says(text string, parts ...string) error {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return fmt.Errorf("this lacks %q:\n%s", p, text)
		}
	}
	return nil
}

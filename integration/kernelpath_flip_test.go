// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestPathFlips changes the paths among three hosts every second, by order of the user, in all ways there are: under conversations over UDP and
// TCP and under bulk transfers, of which every byte is compared. Connections survive, and hardly a datagram is lost.
func TestPathFlips(t *testing.T) {
	t.Parallel()
	const mostLost = 0.001
	length := 15 * time.Second
	if *soak {
		length = time.Minute
	}
	m := lab.Mesh(t, 3, kernelFlags())
	hosts := m.Hosts()
	onPath(t, "direct", hosts...)
	all := pairs(m.Workloads...)
	short, long := talk(t, m.Lab, all...), talkOf(t, m.Lab, longest(1400), all...)
	bulk := startShuttle(t, m.Lab, 128<<20, all[0], [2]*lab.Workload{m.Workloads[2], m.Workloads[0]})
	start := time.Now()
	// Every path after every other one.
	order := []string{"vxlan", "udp", "direct", "udp", "vxlan", "direct"}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	flips := 0
	for ; time.Since(start) < length; flips++ {
		var orders sync.WaitGroup
		for i, p := range eachOther(hosts) {
			orders.Go(func() { // not all the same
				r, err := p[0].TryWeft(t.Context(), "path", p[1].Name(), order[(flips+i)%len(order)])
				if err != nil || r.Code != 0 {
					t.Errorf("%v: %+v", err, r)
				}
			})
		}
		orders.Wait()
		<-tick.C
	}
	used := map[string]int{}
	for _, h := range hosts {
		for _, e := range ask[[]event](t, h, "events") {
			if e.Kind == "path" && e.Time.After(start) {
				used[e.Text]++
			}
		}
	}
	moved, transfers := bulk.end(t)
	t.Logf("%d rounds of %d orders: %d transfers, %d MB; %v", flips, len(eachOther(hosts)), transfers, moved>>20, used)
	time.Sleep(time.Second) // those of the last second are not counted
	for what, k := range map[string]talks{"short": short, "long": long} {
		c := k.count(start)
		t.Logf("%s datagrams: %+v", what, c)
		if lost := float64(c.Sent - c.Answered); lost > mostLost*2*float64(c.Sent) { // each went both ways
			t.Errorf("of %d %s datagrams %d were lost on one of two ways", c.Sent, what, c.Sent-c.Answered)
		}
		k.stop(t)
	}
	if flips < int(length/time.Second)*2/3 || len(used) < 3 {
		t.Errorf("%d rounds of orders, %d kinds of events: that shows nothing", flips, len(used))
	}
	take(t, "auto", hosts...)
	onPath(t, "direct", hosts...)
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// TestKernelPathSurvivesKill kills the daemon of one host, then those of all, under traffic by a kernel path: it goes on, without a loss, while they are
// away and when they come back, and the path is the same afterwards.
func TestKernelPathSurvivesKill(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"vxlan", "direct"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			m := lab.Mesh(t, 2, kernelFlags("--paths", path+",udp"), lab.Hosts(oneFamily(path)))
			hosts := m.Hosts()
			onPath(t, path, hosts...)
			mtu := map[string]int{"vxlan": 1450, "direct": 1500}[path]
			short, long := talk(t, m.Lab, bothWays(m.Workloads...)...), talkOf(t, m.Lab, longest(mtu), bothWays(m.Workloads...)...)
			time.Sleep(time.Second)
			for _, victims := range [][]*lab.Host{hosts[:1], hosts} {
				before := settled(t, hosts[0].Namespace)
				since := time.Now()
				for _, h := range victims {
					h.Kill()
				}
				time.Sleep(5 * time.Second)
				short.whole(t, "while nobody is there", since)
				long.whole(t, "while nobody is there", since)
				back := time.Now()
				for _, h := range victims {
					h.Relaunch()
				}
				for _, h := range victims {
					if err := h.WaitReady(patience); err != nil {
						t.Fatal(err)
					}
				}
				onPath(t, path, hosts...)
				time.Sleep(3 * time.Second) // in which what was adopted is proven, or not
				for _, p := range eachOther(hosts) {
					staysOn(t, path, p[0], p[1], 100*time.Millisecond)
				}
				short.whole(t, "when it is there again", back)
				long.whole(t, "when it is there again", back)
				same(t, "the host when it is up again", before, settled(t, hosts[0].Namespace))
			}
			short.stop(t)
			long.stop(t)
		})
	}
}

// TestHostGone takes a whole host away under traffic by a kernel path, as when its power fails. What is left of it in the kernels of others does not
// keep them from reaching it when it is back.
func TestHostGone(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 3, kernelFlags("--paths", "vxlan,udp"))
	hosts := m.Hosts()
	onPath(t, "vxlan", hosts...)
	others := talk(t, m.Lab, bothWays(m.Workloads[1:]...)...)
	since := time.Now()
	hosts[0].Kill()
	hosts[0].Link().Down()
	time.Sleep(10 * time.Second)
	hosts[0].Link().Up()
	hosts[0].Relaunch()
	if err := hosts[0].WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	allReach(t, patience, m.Workloads...)
	onPath(t, "vxlan", hosts...)
	others.whole(t, "among the others", since)
	others.stop(t)
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"

	"github.com/weftnet/weft/integration/lab"
)

// TestCNIReference has the reference plugins do on one host what Weft's does in the tests that follow: so what these find is the plugin's doing, and not
// that of those who call it.
func TestCNIReference(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	h := withCNI(t, l.Host("host", l.Switch("lan")))
	subnets := func(s ...string) (out [][]keys) {
		for _, s := range s {
			out = append(out, []keys{{"subnet": s}})
		}
		return out
	}
	ipam := keys{"type": "host-local", "dataDir": h.Dir() + "/leases", "ranges": subnets("10.99.0.0/24", "fd99::/64"), "routes": []keys{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}}
	for _, v := range cniVersions {
		n := network(t, v, "reference", keys{"type": "ptp", "ipam": ipam})
		var before []string
		if v == newest {
			if err := h.status(n); err != nil {
				t.Error(err)
			}
			before = snapshot(t, h.Namespace)
		}
		a, b := h.added(n, "a"), h.added(n, "b")
		if c := h.last("ptp", "ADD"); c.fits() != nil {
			t.Errorf("against the specification: %v: %v", c.fits(), c)
		}
		allReach(t, patience, a.Workload, b.Workload)
		distinct(t, addrs(a.Workload, b.Workload))
		if v >= "0.4.0" {
			if err := h.check(n, a); err != nil {
				t.Error(err)
			}
		}
		h.del(n, a)
		h.del(n, a)
		unreachable(t, b.Namespace, a.V4)
		if v >= "0.4.0" {
			if err := h.check(n, a); err == nil {
				t.Error("CHECK says nothing of a container that is gone")
			}
		}
		h.del(n, b)
		if v == newest {
			same(t, "on the host", before, snapshot(t, h.Namespace))
		}
		a.Delete()
		b.Delete()
	}
}

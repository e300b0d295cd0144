// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"github.com/weftnet/weft/router/fastpath"
)

// What an earlier run has left with another port or VNI goes before anything else is done; what is right stays, and so does what others have made.
func TestRetire(t *testing.T) {
	hosts := newHosts(t, 2)
	connected(t, hosts, under4, fastpath.VXLAN)
	h := hosts[0]
	there := func(name string) bool {
		t.Helper()
		_, exists, err := h.conn.link(name)
		must(t, err)
		return exists
	}
	before := snapshot(t, h.ns)
	m := newMonitor(t, h.ns)
	must(t, h.newKernel(t).Retire())
	m.quiet(t, "Retire with the same configuration")
	same(t, "after Retire with the same configuration", before, snapshot(t, h.ns))

	for what, c := range map[string]Config{
		"port": {ID: idOf(1), VNI: testVNI, Port: testPort + 1, Log: zap.NewNop()},
		"VNI":  {ID: idOf(1), VNI: testVNI + 1, Port: testPort, Log: zap.NewNop()},
	} {
		must(t, h.Apply(h.toAll(hosts, under4, fastpath.VXLAN)))
		other := newAt(c, h.ns)
		t.Cleanup(func() { must(t, other.Close()) })
		must(t, other.Retire())
		for _, name := range []string{Device4, Device6} {
			if there(name) {
				t.Errorf("%s with another %s is still there", name, what)
			}
		}
		must(t, other.Retire())
		if _, err := h.Reconcile(); err != nil { // as it was
			t.Error(err)
		}
	}

	// After an Apply it knows that the kernel has less.
	must(t, h.handle.LinkDel(h.link(t, Device4)))
	foreign := &netlink.Vxlan{LinkAttrs: netlink.NewLinkAttrs(), VxlanId: testVNI, Port: testPort + 9}
	foreign.Name = Device4
	must(t, h.handle.LinkAdd(foreign))
	must(t, h.Retire())
	if !there(Device4) {
		t.Error("a device of somebody else was removed")
	}
	must(t, h.handle.LinkSetAlias(foreign, deviceAlias))
	must(t, h.Retire())
	if there(Device4) {
		t.Error("one with the alias of Weft's and another port is still there")
	}
	must(t, h.Apply(h.toAll(hosts, under4, fastpath.VXLAN)))
	if !there(Device4) {
		t.Error("Apply does not know that the device has gone")
	}
	h.reconciled(t)
}

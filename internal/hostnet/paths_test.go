// SPDX-License-Identifier: Apache-2.0

package hostnet

import "testing"

func TestPasses(t *testing.T) {
	h := newHost(t)
	if h.Passes() {
		t.Error("without a table")
	}
	d := desired()
	h.apply(t, d)
	if h.Passes() {
		t.Error("without a port for VXLAN")
	}
	d.Plain = plain()
	h.apply(t, d)
	if !h.Passes() {
		t.Error("with kernel paths it does not pass any")
	}
	must(t, h.SetPlain(Plaintext{VXLANPort: vxlanPort})) // what stays after the end
	if !h.Passes() {
		t.Error("without peers it has no rules of kernel paths")
	}
}

func TestCarriesIPv6(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	if !h.CarriesIPv6(DefaultDevice, 1420) || h.CarriesIPv6(DefaultDevice, 1279) || h.CarriesIPv6("absent", 1420) {
		t.Error("wrong as it is")
	}
	setSysctl(t, h.ns, "net/ipv6/conf/"+DefaultDevice+"/disable_ipv6", "1")
	if h.CarriesIPv6(DefaultDevice, 1420) {
		t.Error("wrong when it is disabled")
	}
}

func TestTighten(t *testing.T) {
	h := newHost(t)
	const key = "net/ipv4/conf/eth0/rp_filter"
	setSysctl(t, h.ns, "net/ipv4/conf/all/rp_filter", "0")
	setSysctl(t, h.ns, key, "1")
	d := desired()
	d.Loose = []string{"eth0"}
	h.apply(t, d)
	if got := sysctl(t, h.ns, key); got != "2" {
		t.Fatalf("it is %s, want 2", got)
	}
	before := h.changes
	rest, err := newAt(h.log, h.ns).Tighten(before)
	must(t, err)
	if got := sysctl(t, h.ns, key); got != "1" || rest.has(key) || len(rest.Sysctls) != len(before.Sysctls)-1 {
		t.Errorf("it is %s, and of %+v there is left %+v", got, before, rest)
	}
}

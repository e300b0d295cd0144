// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"net/netip"
	"reflect"
	"testing"
)

func TestAttachedSaysWhatThereIs(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := workload(1, newNamespace(t))
	w.MTU = 1300
	for _, mac := range []string{"0a:58:0a:20:01:01", "02:00:00:00:00:07"} { // another one is set in place
		w.MAC = parseMAC(t, mac)
		got, err := h.Attach(w)
		must(t, err)
		inner, err := connect(t, w.ns(t)).link("eth0")
		must(t, err)
		outer, err := h.conn.link(HostIf(w.ID))
		must(t, err)
		want := Attached{
			HostMAC: outer.Attrs().HardwareAddr, MAC: w.MAC, MTU: 1300, Addrs: w.Addrs,
			Routes: []Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.32.0.1")},
				{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd77::1")},
			},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if a := inner.Attrs(); a.HardwareAddr.String() != mac || a.MTU != 1300 {
			t.Errorf("inside there are %v and %d", a.HardwareAddr, a.MTU)
		}
		for _, a := range w.Addrs {
			reaches(t, h.ns, w.ns(t), a)
		}
		before := snapshot(t, h.ns)
		h.apply(t, desired(w))
		differ(t, "putting right what is right", before, snapshot(t, h.ns))
	}
}

func TestImpossibleMACAndMTU(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	ns := newNamespace(t)
	before := snapshot(t, h.ns)
	for want, change := range map[string]func(*Workload){
		"01:00:5e:00:00:01 cannot be the hardware address of an interface; give 6 bytes that are no multicast address, as 0a:58:0a:20:00:05": func(w *Workload) {
			w.MAC = parseMAC(t, "01:00:5e:00:00:01")
		},
		"00:00:00:00:00:00 cannot be the hardware address of an interface; give 6 bytes that are no multicast address, as 0a:58:0a:20:00:05": func(w *Workload) {
			w.MAC = parseMAC(t, "00:00:00:00:00:00")
		},
		"02:00:5e:10:00:00:00:01 cannot be the hardware address of an interface; give 6 bytes that are no multicast address, as 0a:58:0a:20:00:05": func(w *Workload) {
			w.MAC = parseMAC(t, "02:00:5e:10:00:00:00:01")
		},
		"hardware address " + hostMAC("workload-1").String() + " is that of the host's end of the interface; give another": func(w *Workload) {
			w.MAC = hostMAC(w.ID)
		},
		"an MTU of 575 is not possible for workload workload-1; choose 576 to 65535":   func(w *Workload) { w.MTU = 575 },
		"an MTU of 65536 is not possible for workload workload-1; choose 576 to 65535": func(w *Workload) { w.MTU = 65536 },
	} {
		w := workload(1, ns)
		change(&w)
		if _, err := h.Attach(w); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	if after := snapshot(t, h.ns); !reflect.DeepEqual(before, after) {
		t.Errorf("the host was\n%q\nand is\n%q", before, after)
	}
}

func parseMAC(t *testing.T, s string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(s)
	must(t, err)
	return mac
}

// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestSettle attaches a workload in whose namespace the kernel does not take the IPv6 address for its own, as it does not before it has settled. Attach
// tells so, others need not wait, and Settle sees when it is, or gives up and leaves all as it is.
func TestSettle(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	w := workload(1, newNamespace(t))
	inner := connect(t, w.ns(t))
	local := netlink.NewRule()
	local.Family, local.Table, local.Priority = netlink.FAMILY_V6, unix.RT_TABLE_LOCAL, 0
	any6 := netlink.NewRule() // without one of its own the kernel goes by none
	any6.Family, any6.Table, any6.Priority = netlink.FAMILY_V6, unix.RT_TABLE_MAIN, 100
	must(t, inner.RuleAdd(any6))
	must(t, inner.RuleDel(local))
	for _, name := range []string{"new", "again"} {
		begun := time.Now()
		got, err := h.Attach(w)
		must(t, err)
		if d := time.Since(begun); !got.Unsettled || len(got.Warnings) > 0 || d > settlePatience/2 {
			t.Fatalf("%s: after %v: %+v", name, d, got)
		}
		w.Addrs = got.Addrs
		if name == "new" {
			before := snapshot(t, h.ns)
			err = h.Settle(w)
			var slow *SlowError
			if want := "interface eth0 in " + w.Netns + " is not up after 5s; try again"; !errors.As(err, &slow) || err.Error() != want {
				t.Errorf("%s: got %v, want %s", name, err, want)
			}
			differ(t, "the host", before, snapshot(t, h.ns))
			continue
		}
		ended := make(chan error, 1)
		go func() { ended <- h.Settle(w) }()
		time.Sleep(50 * time.Millisecond)
		h.apply(t, desired(w)) // nobody else waits
		other := workload(2, newNamespace(t))
		_, err = h.Attach(other)
		must(t, err)
		must(t, h.Detach(other))
		select {
		case err := <-ended:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
		must(t, inner.RuleAdd(local))
		must(t, <-ended)
		reaches(t, h.ns, w.ns(t), w.Addrs[1])
		must(t, inner.RuleDel(local))
	}
	must(t, inner.RuleAdd(local))
	if got, err := h.Attach(w); err != nil || got.Unsettled {
		t.Errorf("%+v, %v", got, err)
	}
	must(t, h.Detach(w))
	var slow *SlowError
	if err := h.Settle(w); !errors.As(err, &slow) {
		t.Errorf("of an interface that is gone: %v", err)
	}
	w.AddressesOnly = true
	must(t, h.Settle(w))
}

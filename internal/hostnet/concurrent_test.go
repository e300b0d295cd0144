// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"sync"
	"testing"
	"time"
)

// Two hundred calls at once, of workloads with and without an interface, while the whole is put right and looked at.
func TestConcurrentCalls(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	stays := h.attach(t, 1)
	before := snapshot(t, h.ns)
	var ws []Workload
	for i := 2; i <= 51; i++ {
		w := workload(i, newNamespace(t))
		w.AddressesOnly = i%4 == 0
		ws = append(ws, w)
	}
	all := desired(append(ws, stays)...)
	done := make(chan struct{})
	var others, calls sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			_, err := h.Apply(all, h.changes)
			if err != nil {
				t.Errorf("put right: %v", err)
			}
			if err := h.Check(stays); err != nil {
				t.Errorf("what nobody touches: %v", err)
			}
		}
	})
	for _, w := range ws {
		calls.Go(func() {
			for range 2 {
				var pair sync.WaitGroup
				for range 2 { // asked twice at once
					pair.Go(func() {
						if _, err := h.Attach(w); err != nil {
							t.Errorf("attaching %s: %v", w.ID, err)
						}
					})
				}
				pair.Wait()
				if err := h.Check(w); err != nil && !w.AddressesOnly { // to which nobody makes a route
					t.Errorf("checking %s: %v", w.ID, err)
				}
				if err := h.Detach(w); err != nil {
					t.Errorf("detaching %s: %v", w.ID, err)
				}
				var d *DifferenceError
				if err := h.Check(w); !w.AddressesOnly && !errors.As(err, &d) {
					t.Errorf("%s is gone: %v", w.ID, err)
				}
			}
		})
	}
	calls.Wait()
	close(done)
	others.Wait()
	h.Close()
	h.apply(t, desired(stays))
	differ(t, "the host is as if they had never been", before, snapshot(t, h.ns))
	for _, a := range stays.Addrs {
		reaches(t, h.ns, stays.ns(t), a)
	}
}

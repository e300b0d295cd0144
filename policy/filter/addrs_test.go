// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// However addresses come and go, none of those that stay is missed.
func TestAddressesAreReadWhole(t *testing.T) {
	t.Parallel()
	const staying, passing, reads = 2000, 20, 60
	s := newSpace(t)
	lo, err := s.nl.LinkByName("lo")
	must(t, err)
	address := func(n int) *netlink.Addr {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 1, byte(n>>8), byte(n)), Mask: net.CIDRMask(32, 32)}}
		if n < passing {
			a.Scope = unix.RT_SCOPE_HOST // before the others in the kernel's list, where each moves these
		}
		return a
	}
	for n := range passing + staying {
		must(t, s.nl.AddrAdd(lo, address(n)))
	}
	var busy sync.WaitGroup
	defer busy.Wait()
	stop := make(chan struct{})
	defer close(stop)
	busy.Go(func() {
		for n := 0; ; n = (n + 1) % (2 * passing) {
			select {
			case <-stop:
				return
			default:
			}
			if n < passing {
				_ = s.nl.AddrDel(lo, address(n)) // to disturb the reader is all that it is for
			} else {
				_ = s.nl.AddrAdd(lo, address(n-passing))
			}
		}
	})
	whole := 0
	for range reads {
		all, err := hostAddrs(s.fd)
		if errors.Is(err, errInterrupted) && all == nil {
			continue
		}
		must(t, err)
		whole++
		for n := passing; n < passing+staying; n++ {
			if a, _ := netip.AddrFromSlice(address(n).IP.To4()); !all[a] {
				t.Fatalf("of %d addresses %v is missed", len(all), a)
			}
		}
	}
	if whole == 0 {
		t.Errorf("none of %d reads was whole", reads)
	}
}

func TestUndisturbed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		disturbed int // reads
		then      error
		want      error
		reads     int
	}{
		{0, nil, nil, 1}, {3, nil, nil, 4}, {3, unix.EPERM, unix.EPERM, 4}, {addrsTries, nil, errInterrupted, addrsTries},
	} {
		reads := 0
		err := undisturbed(func() error {
			if reads++; reads <= tt.disturbed {
				return errInterrupted
			}
			return tt.then
		})
		if !errors.Is(err, tt.want) || reads != tt.reads {
			t.Errorf("%+v: %v after %d reads", tt, err, reads)
		}
	}
}

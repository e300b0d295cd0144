// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// addrsTries is how often the host's addresses are read, until none has come or gone meanwhile, addrsPause the time between.
	addrsTries = 20
	addrsPause = 5 * time.Millisecond
)

// hostAddrs returns the addresses of a namespace itself: all of them, as what the host does under an address that is missed would be taken for the world's, and cut.
func hostAddrs(netns int) (all map[netip.Addr]bool, err error) {
	c, err := dial(netns, unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, err
	}
	defer c.close()
	err = undisturbed(func() (err error) {
		all, err = c.addrs()
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// undisturbed reads until nothing has changed meanwhile, or something else fails, or it has been tried often.
func undisturbed(read func() error) (err error) {
	for range addrsTries {
		if err = read(); !errors.Is(err, errInterrupted) {
			return err
		}
		time.Sleep(addrsPause)
	}
	return err
}

// addrs reads the addresses once.
func (c *conn) addrs() (map[netip.Addr]bool, error) {
	all := map[netip.Addr]bool{}
	var b buffer
	at := b.begin(unix.RTM_GETADDR, 0, unix.AF_UNSPEC, 0)
	b = append(b, make([]byte, unix.SizeofIfAddrmsg-4)...)
	b.end(at)
	err := c.ask(b, true, func(_ header, body []byte) error {
		if len(body) < unix.SizeofIfAddrmsg {
			return errNonsense
		}
		var local, address netip.Addr
		attributes(body[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) bool {
			switch kind {
			case unix.IFA_LOCAL:
				local, _ = netip.AddrFromSlice(v)
			case unix.IFA_ADDRESS:
				address, _ = netip.AddrFromSlice(v)
			}
			return true
		})
		if local.IsValid() {
			address = local
		}
		all[address] = true
		return nil
	})
	return all, err
}

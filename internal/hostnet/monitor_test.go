// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// monitor listens to the changes of nftables in a namespace. What it returns returns those since the last call: elements by their
// set and key, other objects by the number of the message.
func monitor(t testing.TB, n namespace) func() []string {
	t.Helper()
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: int(n)})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	must(t, c.SetReadBuffer(8<<20))
	must(t, c.JoinGroup(unix.NFNLGRP_NFTABLES))
	return func() (out []string) {
		// All was sent before the transaction was confirmed.
		for {
			must(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
			list, err := c.Receive()
			if isTimeout(err) {
				return out
			}
			must(t, err)
			for _, m := range list {
				switch kind := m.Header.Type & 0xff; kind {
				case unix.NFT_MSG_NEWGEN:
				case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
					sign := "+"
					if kind == unix.NFT_MSG_DELSETELEM {
						sign = "-"
					}
					set, keys := elementsIn(t, m.Data[4:])
					for _, k := range keys {
						out = append(out, fmt.Sprintf("%s %s %x", sign, set, k))
					}
				default:
					out = append(out, fmt.Sprintf("message %d", kind))
				}
			}
		}
	}
}

func isTimeout(err error) bool {
	e, ok := err.(interface{ Timeout() bool })
	return ok && e.Timeout()
}

func elementsIn(t testing.TB, b []byte) (set string, keys [][]byte) {
	t.Helper()
	nested := func(b []byte) []netlink.Attribute {
		list, err := netlink.UnmarshalAttributes(b)
		must(t, err)
		return list
	}
	for _, a := range nested(b) {
		switch a.Type &^ netlink.Nested {
		case unix.NFTA_SET_ELEM_LIST_SET:
			set = string(slices.DeleteFunc(a.Data, func(b byte) bool { return b == 0 }))
		case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
			for _, e := range nested(a.Data) {
				for _, part := range nested(e.Data) {
					if part.Type&^netlink.Nested == unix.NFTA_SET_ELEM_KEY {
						keys = append(keys, nested(part.Data)[0].Data)
					}
				}
			}
		}
	}
	return set, keys
}

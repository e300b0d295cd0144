// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	netlinkconn "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// errSet is what nftables should not have said of a set.
var errSet = errors.New("the kernel's list of elements makes no sense")

// readSet returns the elements of a set, and how many packets each has counted. Counts are read twice a second, of as many elements
// as the mesh has prefixes: it does not go through the library, which takes ten times as long to decode them.
func readSet(ns namespace, name string) (map[element]uint64, error) {
	config := &netlinkconn.Config{}
	if ns != here {
		config.NetNS = int(ns)
	}
	c, err := netlinkconn.Dial(unix.NETLINK_NETFILTER, config)
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	defer func() { _ = c.Close() }() // nothing was written
	names, err := netlinkconn.MarshalAttributes([]netlinkconn.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(tableName + "\x00")},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(name + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	list, err := c.Execute(netlinkconn.Message{
		Header: netlinkconn.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM,
			Flags: netlinkconn.Request | netlinkconn.Dump,
		},
		Data: append([]byte{byte(nftables.TableFamilyINet), unix.NFNETLINK_V0, 0, 0}, names...),
	})
	if err != nil {
		return nil, fmt.Errorf("reading set %s: %w", name, err)
	}
	elements := map[element]uint64{}
	for _, m := range list {
		if len(m.Data) < 4 || !readElements(m.Data[4:], elements) {
			return nil, fmt.Errorf("reading set %s: %w", name, errSet)
		}
	}
	return elements, nil
}

// readElements adds the elements of a message to all; false if it makes no sense. Of b nothing is kept.
func readElements(b []byte, all map[element]uint64) bool {
	return attributes(b, func(kind uint16, list []byte) bool {
		return kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS || attributes(list, func(_ uint16, one []byte) bool {
			var e element
			var packets uint64
			ok := attributes(one, func(kind uint16, v []byte) bool {
				switch kind {
				case unix.NFTA_SET_ELEM_KEY:
					return attributes(v, func(_ uint16, v []byte) bool { e.key = string(v); return true })
				case nftables.NFTA_SET_ELEM_KEY_END:
					return attributes(v, func(_ uint16, v []byte) bool { e.end = string(v); return true })
				case unix.NFTA_SET_ELEM_EXPR:
					return readCounter(v, &packets)
				}
				return true
			})
			all[e] = packets
			return ok
		})
	})
}

// readCounter reads the packets of an expression, which has to be a counter.
func readCounter(b []byte, packets *uint64) bool {
	return attributes(b, func(kind uint16, v []byte) bool {
		return kind != unix.NFTA_EXPR_DATA || attributes(v, func(kind uint16, v []byte) bool {
			if kind != unix.NFTA_COUNTER_PACKETS {
				return true
			}
			if len(v) != 8 {
				return false
			}
			*packets = binary.BigEndian.Uint64(v)
			return true
		})
	})
}

// attributes calls do for each netlink attribute in b, until it says false; false then, or if an attribute does not fit.
func attributes(b []byte, do func(kind uint16, v []byte) bool) bool {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlAttr {
			return false
		}
		size := int(binary.NativeEndian.Uint16(b))
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if size < unix.SizeofNlAttr || size > len(b) || !do(kind, b[unix.SizeofNlAttr:size]) {
			return false
		}
		b = b[min(len(b), align(size)):]
	}
	return true
}

// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// An Element is one of an nftables set that was added, or deleted.
type Element struct {
	Table, Set string
	Key        []byte // as the kernel has it
	Added      bool
}

// A RuleChange is one nftables transaction.
type RuleChange struct {
	At       time.Time // when it was heard of
	Elements []Element
	Others   int // what else it added or deleted: tables, chains, rules, sets, objects
}

// nfgenmsg is how many bytes the header of messages about nftables has behind that of netlink: struct nfgenmsg.
const nfgenmsg = 4

// rulesBuffer is how many bytes of messages a watch may be late by.
const rulesBuffer = 64 << 20

// Rules is a view on the nftables of a namespace. Close ends it.
type Rules struct{ conn *netlink.Conn }

// Rules opens a view on the namespace's nftables.
func (n *Namespace) Rules() (*Rules, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: n.fd()})
	if err != nil {
		return nil, fmt.Errorf("nftables of %s: %w", n.name, err)
	}
	return &Rules{conn}, nil
}

// Close ends the view.
func (r *Rules) Close() error { return r.conn.Close() }

// Generation returns the number of the newest transaction (NFT_MSG_GETGEN). Unlike a watch, asking for it costs the transactions nothing.
func (r *Rules) Generation() (uint32, error) {
	answer, err := r.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   make([]byte, nfgenmsg),
	})
	if err != nil {
		return 0, err
	}
	for _, m := range answer {
		if len(m.Data) < nfgenmsg {
			continue
		}
		d, err := bigEndian(m.Data[nfgenmsg:])
		for err == nil && d.Next() {
			if d.Type() == unix.NFTA_GEN_ID {
				return d.Uint32(), nil
			}
		}
	}
	return 0, errors.New("the kernel does not tell the generation of nftables")
}

// A RuleWatch hears of all that changes in the nftables of a namespace. Its methods are safe for concurrent use.
type RuleWatch struct {
	conn   *netlink.Conn
	hears  sync.WaitGroup
	mu     sync.Mutex
	now    RuleChange // as far as it was heard
	heard  []RuleChange
	broken error
}

// WatchRules begins to watch the namespace's nftables. The caller stops it.
func (n *Namespace) WatchRules() (*RuleWatch, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: n.fd(), Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return nil, fmt.Errorf("watching nftables of %s: %w", n.name, err)
	}
	if err := conn.SetReadBuffer(rulesBuffer); err != nil {
		_ = conn.Close()
		return nil, err
	}
	w := &RuleWatch{conn: conn}
	w.hears.Go(func() {
		for {
			all, err := conn.Receive()
			if errors.Is(err, os.ErrClosed) {
				return
			}
			w.mu.Lock()
			for _, m := range all {
				err = errors.Join(err, w.hear(m, time.Now()))
			}
			w.broken = errors.Join(w.broken, err)
			stop := w.broken != nil
			w.mu.Unlock()
			if stop {
				return
			}
		}
	})
	return w, nil
}

// Take returns what has changed since it was called last, and why not all of it was heard.
func (w *RuleWatch) Take() ([]RuleChange, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.heard
	w.heard = nil
	return all, w.broken
}

// Stop ends the watch.
func (w *RuleWatch) Stop() {
	_ = w.conn.Close()
	w.hears.Wait()
}

// hear notes a message. A transaction's last one is its generation.
func (w *RuleWatch) hear(m netlink.Message, at time.Time) error {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nfgenmsg {
		return nil
	}
	switch kind := m.Header.Type & 0xff; kind {
	case unix.NFT_MSG_NEWGEN:
		w.now.At = at
		w.heard = append(w.heard, w.now)
		w.now = RuleChange{}
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		list, err := elements(m.Data[nfgenmsg:], kind == unix.NFT_MSG_NEWSETELEM)
		w.now.Elements = append(w.now.Elements, list...)
		return err
	default:
		w.now.Others++
	}
	return nil
}

// elements reads the attributes of a list of elements.
func elements(b []byte, added bool) (out []Element, err error) {
	d, err := bigEndian(b)
	if err != nil {
		return nil, err
	}
	var table, set string
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_SET_ELEM_LIST_TABLE:
			table = d.String()
		case unix.NFTA_SET_ELEM_LIST_SET:
			set = d.String()
		case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
			d.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					e := Element{Added: added}
					list.Nested(e.read)
					out = append(out, e)
				}
				return nil
			})
		}
	}
	for i := range out {
		out[i].Table, out[i].Set = table, set
	}
	return out, d.Err()
}

func (e *Element) read(d *netlink.AttributeDecoder) error {
	for d.Next() {
		if d.Type() != unix.NFTA_SET_ELEM_KEY {
			continue
		}
		d.Nested(func(key *netlink.AttributeDecoder) error {
			for key.Next() {
				if key.Type() == unix.NFTA_DATA_VALUE {
					e.Key = key.Bytes()
				}
			}
			return nil
		})
	}
	return nil
}

// bigEndian decodes attributes whose numbers are in the network's order, as nftables has them.
func bigEndian(b []byte) (*netlink.AttributeDecoder, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err == nil {
		d.ByteOrder = binary.BigEndian
	}
	return d, err
}

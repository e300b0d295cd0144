// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
)

// CutTable is the nftables table of family inet that bars flows which policies do not allow any more. It is there only as long as there are such: without, packets
// pay nothing for it. While it is, each packet that is forwarded, comes in, or goes out, meets one more chain, before those of [Table]: TCP one rule there, others
// two look-ups; four, if they have ports and there have been too many flows.
const CutTable = Table + "-cut"

// barredPriority is before established connections are let through.
const barredPriority = -1

// barredSets are the sets of the table; each has one element for both directions.
func barredSets() (all []setKind) {
	for _, f := range families() {
		kind := uint32(typeV4)
		if f.size == 16 {
			kind = typeV6
		}
		for _, x := range breadths() {
			types := []uint32{kind, kind, typeProto, typePort, typePort}[:5-int(x.breadth)]
			all = append(all, setKind{
				name: f.set(x.set), keyType: concat(types...), keyLen: 2*f.size + 4*uint32(len(types)-2),
				flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, timeout: uint64(barredFor.Milliseconds()),
				size: uint32(2 * x.most), // what has run out counts until it is collected
			})
		}
	}
	return all
}

// barredChains are the rules of the table. Services says that there are bars of such.
func barredChains(services bool) (all []*chain) {
	add := func(name string, hook int32) *chain {
		c := &chain{name: name, hook: hook}
		if hook != noHook {
			c.priority = barredPriority
		}
		all = append(all, c)
		return c
	}
	// What IPVS hands on, or a proxy with its clients' addresses, has only when it goes out the addresses that are barred.
	for _, c := range []*chain{add("forward", unix.NF_INET_FORWARD), add("input", unix.NF_INET_LOCAL_IN), add("output", unix.NF_INET_LOCAL_OUT)} {
		c.add(tcp(), accept())
		for _, f := range families() {
			c.add(f.is(), goTo("cut"+f.digit))
		}
	}
	for _, f := range families() {
		c, ports := add("cut"+f.digit, noHook), add("ports"+f.digit, noHook)
		for _, p := range ported() {
			c.add(meta(unix.NFT_META_L4PROTO, 0), compare(unix.NFT_CMP_EQ, []byte{p}), goTo(ports.name))
		}
		f.bar(c, barPair)
		f.bar(ports, barFlow)
		if services {
			f.bar(ports, barService)
		}
	}
	return all
}

// bar adds the rules of a set: what is sent in the direction that is forbidden keeps it barred.
func (f family) bar(c *chain, b breadth) {
	set := f.set(breadths()[b].set)
	c.add(f.is(), f.barred(b, false), lookup(set), f.barred(b, false), refresh(set), counter(), drop())
	c.add(f.is(), f.barred(b, true), lookup(set), counter(), drop())
}

// barred is the key of a packet in a set, or that of those to which it is an answer.
func (f family) barred(b breadth, back bool) []expression {
	words := register(f.size / 4)
	first, second := f.source, f.source+f.size
	sport, dport := uint32(0), uint32(2)
	if back {
		first, second, sport, dport = second, first, dport, sport
	}
	key := []expression{
		payload(unix.NFT_PAYLOAD_NETWORK_HEADER, first, f.size, 0), payload(unix.NFT_PAYLOAD_NETWORK_HEADER, second, f.size, words),
		meta(unix.NFT_META_L4PROTO, 2*words),
	}
	switch b {
	case barFlow:
		key = append(key, payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, sport, 2, 2*words+1), payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, dport, 2, 2*words+2))
	case barService:
		key = append(key, payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, dport, 2, 2*words+1))
	}
	return key
}

// refresh makes the element with that key last for its whole time again.
func refresh(set string) expression {
	return express("dynset", func(b *buffer) {
		b.text(unix.NFTA_DYNSET_SET_NAME, set)
		b.word(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE)
		b.word(unix.NFTA_DYNSET_SREG_KEY, register(0).name())
	})
}

// composeBarredTable adds the table without elements to a transaction.
func (b *buffer) composeBarredTable(table string, services bool) {
	at := b.begin(nft(unix.NFT_MSG_NEWTABLE), unix.NLM_F_CREATE, unix.NFPROTO_INET, 0)
	b.text(unix.NFTA_TABLE_NAME, table)
	b.word(unix.NFTA_TABLE_FLAGS, 0)
	b.end(at)
	for i, k := range barredSets() {
		k.compose(b, table, uint32(i+1))
	}
	all := barredChains(services)
	for _, c := range all {
		b.composeChain(table, c)
	}
	for _, c := range all {
		b.composeRulesOf(table, c)
	}
}

// composeBars adds to a transaction that bars come or go. That one comes which is there is no error.
func (b *buffer) composeBars(bars []bar, what, flags uint16) {
	for _, k := range barredSets() {
		l := &lister{b: b, table: CutTable, kind: k, what: what, flags: flags}
		for _, x := range bars {
			if x.set() == k.name {
				l.add(element{key: x.key()})
			}
		}
		l.close()
	}
}

func (b bar) set() string { return familyOf(b.src).set(breadths()[b.breadth].set) }

// key is that of the bar's element.
func (b bar) key() []byte {
	key := append(b.src.AsSlice(), b.dst.AsSlice()...)
	key = append(key, byte(b.protocol), 0, 0, 0)
	port := func(p uint16) { key = append(binary.BigEndian.AppendUint16(key, p), 0, 0) }
	switch b.breadth {
	case barFlow:
		port(b.sport)
		port(b.dport)
	case barService:
		port(b.dport)
	}
	return key
}

// decode is the opposite of key; false if it makes no sense.
func (b *bar) decode(key []byte, f family, of breadth) bool {
	n := int(f.size)
	if len(key) != 2*n+4*(3-int(of)) {
		return false
	}
	b.breadth, b.protocol = of, policy.Protocol(key[2*n])
	b.src, _ = netip.AddrFromSlice(key[:n])
	b.dst, _ = netip.AddrFromSlice(key[n : 2*n])
	switch ports := key[2*n+4:]; of {
	case barFlow:
		b.sport, b.dport = binary.BigEndian.Uint16(ports), binary.BigEndian.Uint16(ports[4:])
	case barService:
		b.dport = binary.BigEndian.Uint16(ports)
	}
	return true
}

// What is barred, as the kernel has it.
type barred struct {
	present bool                  // there is a table
	intact  bool                  // it is as it should be, with rules for services or without
	wide    bool                  // it has these
	left    map[bar]time.Duration // how long each lasts
}

// lookBarred reads the table.
func (c *conn) lookBarred() (*barred, error) {
	have := &barred{left: map[bar]time.Duration{}}
	table, err := c.look(CutTable, skeleton)
	if err != nil || table == nil {
		return have, err
	}
	have.present, have.wide = true, slices.Equal(table.skeleton, describeBarred(true))
	have.intact = have.wide || slices.Equal(table.skeleton, describeBarred(false))
	for _, k := range barredSets() {
		if there, ok := table.sets[k.name]; !ok || there.line() != k.line() {
			continue
		}
		b := request(unix.NFT_MSG_GETSETELEM, unix.NFTA_SET_ELEM_LIST_TABLE, CutTable)
		b.text(unix.NFTA_SET_ELEM_LIST_SET, k.name)
		b.end(0)
		if err := c.ask(b, true, func(_ header, body []byte) error { return have.elements(k.name, body) }); err != nil {
			return nil, err
		}
	}
	return have, nil
}

// describeBarred is how the kernel describes the table.
func describeBarred(services bool) []string {
	lines := []string{"table 0"}
	for _, k := range barredSets() {
		lines = append(lines, k.line())
	}
	for _, c := range barredChains(services) {
		lines = append(lines, c.lines()...)
	}
	slices.Sort(lines)
	return lines
}

// elements reads a message with elements of a set. What is none of the warden's is left out.
func (h *barred) elements(set string, body []byte) error {
	ok := len(body) >= 4 && attributes(body[4:], func(kind uint16, list []byte) bool {
		return kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS || attributes(list, func(_ uint16, one []byte) bool { return h.element(set, one) })
	})
	if !ok {
		return errNonsense
	}
	return nil
}

func (h *barred) element(set string, one []byte) bool {
	var key []byte
	left := barredFor
	ok := attributes(one, func(kind uint16, v []byte) bool {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			return attributes(v, func(_ uint16, v []byte) bool { key = v; return true })
		case unix.NFTA_SET_ELEM_EXPIRATION:
			if len(v) == 8 {
				left = time.Duration(min(binary.BigEndian.Uint64(v), uint64(barredFor.Milliseconds()))) * time.Millisecond
			}
		}
		return true
	})
	for _, f := range families() {
		for _, x := range breadths() {
			var b bar
			if f.set(x.set) == set && b.decode(key, f, x.breadth) {
				h.left[b] = left
			}
		}
	}
	return ok
}

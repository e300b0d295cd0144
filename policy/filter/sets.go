// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A setKind is a set or a map of the table, without its elements.
type setKind struct {
	name     string
	keyType  uint32 // how nft(8) prints it; it means nothing to the kernel
	keyLen   uint32
	dataType uint32
	dataLen  uint32 // 0 for a set
	flags    uint32
	counted  bool   // its elements count packets
	size     uint32 // how many elements there may be, 0 for any; with it the kernel need not make room again and again
	timeout  uint64 // how many milliseconds an element lasts, 0 for ever
}

// What the kernel keeps for nft(8): numbers of its types, of which several are put together by 6 bits each.
const (
	typeFamily  = 2
	typeV4      = 7
	typeV6      = 8
	typeProto   = 12
	typePort    = 13
	typeNumber  = 23 // classid, as the priority of packets is
	typeVerdict = 0xffffff00
	typeBits    = 6
)

// The sets and maps. A "4" or "6" at the end is for a family of addresses.
const (
	setCurrent = "current-" // by copy: both families, if it is the one that judges
	setSelf    = "self"     // (a, a) of each endpoint's address a by which it always reaches itself
	setSelves  = "selves"   // (a, a) of each other endpoint's address a -> identity by which it sees itself
	setEgress  = "egress"   // address -> chain of its egress table
	setIngress = "ingress"  // address -> chain of its ingress table
	setOwn     = "own"      // address of the host -> identity
	setHosts   = "ids"      // address of another one -> identity
	setBlocks  = "blocks"   // interval of addresses -> identity
	setCells   = "cells"    // (table and identity, protocol, port) -> verdict
	setLists   = "lists"    // (table and identity, protocol) -> list of intervals of ports
	setRanges  = "ranges"   // interval of list and port -> verdict
	setWide    = "wide"     // table and identity -> verdict
	setCounts  = "counts"   // verdict; its elements count

	// setLeaves is none of the kernel's: it stands for the chains of tables, by their names.
	setLeaves = ""
)

func concat(types ...uint32) (t uint32) {
	for _, x := range types {
		t = t<<typeBits | x
	}
	return t
}

// sets are all of them.
func sets() (all []setKind) {
	add := func(name string, keyType, keyLen, flags uint32) *setKind {
		all = append(all, setKind{name: name, keyType: keyType, keyLen: keyLen, flags: flags})
		return &all[len(all)-1]
	}
	number := func(k *setKind) {
		k.dataType, k.dataLen = typeNumber, 4
		k.flags |= unix.NFT_SET_MAP
	}
	for _, x := range copies() {
		add(setCurrent+x, typeFamily, 1, 0)
	}
	for _, f := range families() {
		kind := uint32(typeV4)
		if f.size == 16 {
			kind = typeV6
		}
		add(f.set(setSelf), concat(kind, kind), 2*f.size, 0)
		number(add(f.set(setSelves), concat(kind, kind), 2*f.size, 0))
		for _, d := range ends() {
			k := add(f.set(d.name), kind, f.size, unix.NFT_SET_MAP)
			k.dataType, k.dataLen = typeVerdict, 16
		}
		number(add(f.set(setOwn), kind, f.size, 0))
		number(add(f.set(setHosts), kind, f.size, 0))
		number(add(f.set(setBlocks), kind, f.size, unix.NFT_SET_INTERVAL))
		all = append(all, f.toldSet())
	}
	number(add(setCells, concat(typeNumber, typeProto, typePort), 12, 0))
	number(add(setLists, concat(typeNumber, typeProto), 8, 0))
	number(add(setRanges, typeNumber, 4, unix.NFT_SET_INTERVAL))
	number(add(setWide, typeNumber, 4, 0))
	add(setCounts, typeNumber, 4, 0).counted = true
	return all
}

// setOf returns the set of that name.
func setOf(name string) setKind {
	for _, k := range sets() {
		if k.name == name {
			return k
		}
	}
	return setKind{}
}

// compose adds the set to a transaction. The number tells it from others of the same one.
func (k setKind) compose(b *buffer, table string, number uint32) {
	at := b.begin(nft(unix.NFT_MSG_NEWSET), unix.NLM_F_CREATE, unix.NFPROTO_INET, 0)
	b.text(unix.NFTA_SET_TABLE, table)
	b.text(unix.NFTA_SET_NAME, k.name)
	b.word(unix.NFTA_SET_FLAGS, k.flags)
	b.word(unix.NFTA_SET_KEY_TYPE, k.keyType)
	b.word(unix.NFTA_SET_KEY_LEN, k.keyLen)
	if k.dataLen > 0 {
		b.word(unix.NFTA_SET_DATA_TYPE, k.dataType)
		b.word(unix.NFTA_SET_DATA_LEN, k.dataLen)
	}
	b.word(unix.NFTA_SET_ID, number)
	if k.size > 0 {
		desc := b.nest(unix.NFTA_SET_DESC)
		b.word(unix.NFTA_SET_DESC_SIZE, k.size)
		b.close(desc)
	}
	if k.counted {
		b.expression(nftaSetExpr, counter())
	}
	if k.timeout > 0 {
		b.attr(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, k.timeout))
	}
	b.attr(unix.NFTA_SET_USERDATA, k.orders())
	b.end(at)
}

// orders tells nft(8) the orders of bytes of keys and data, as libnftnl writes it (NFTNL_UDATA_SET_KEYBYTEORDER and _DATABYTEORDER): kind, length, and 1 for the
// host's or 2 for the network's.
func (k setKind) orders() []byte {
	order := uint32(2)
	switch {
	case k.keyType == typeNumber, k.keyType == typeFamily:
		order = 1
	case k.keyType >= 1<<typeBits:
		order = 0 // each part has its own
	}
	b := binary.NativeEndian.AppendUint32([]byte{0, 4}, order)
	if k.dataType == typeNumber {
		b = binary.NativeEndian.AppendUint32(append(b, 1, 4), 1)
	}
	return b
}

const (
	nftaSetExpr       = 17 // NFTA_SET_EXPR, Linux 5.7
	nftaSetCount      = 20 // NFTA_SET_COUNT, Linux 6.16
	nftaElementKeyEnd = 10 // NFTA_SET_ELEM_KEY_END
)

func (b *buffer) expression(kind uint16, e expression) {
	at := b.nest(kind)
	b.text(unix.NFTA_EXPR_NAME, e.name)
	data := b.nest(unix.NFTA_EXPR_DATA)
	*b = append(*b, e.data...)
	b.close(data)
	b.close(at)
}

// nft is the type of a message to nftables.
func nft(message uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | message }

// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// control is room for the control messages of one Message: the size of the datagrams of a run (UDP_SEGMENT, a number of
// 16 bits, or UDP_GRO, an int), and the TOS (IP_TOS or IPV6_TCLASS: an int, or a byte in what the kernel tells of IPv4). Either
// takes controlSpace.
type control [2]controlMessage

// controlMessage is a control message of up to 4 bytes as the kernel lays it out (cmsg(3)).
type controlMessage struct {
	header unix.Cmsghdr
	data   [unix.SizeofPtr]byte
}

const controlSpace = int(unsafe.Sizeof(controlMessage{}))

// put makes m a message with data of size bytes, and returns where they go.
func (m *controlMessage) put(level, kind int32, size int) unsafe.Pointer {
	m.header.Level, m.header.Type = level, kind
	m.header.SetLen(unix.CmsgLen(size))
	return unsafe.Pointer(&m.data)
}

// putTOS makes m what gives datagrams to that address a TOS. A socket of IPv6 takes that of a datagram to an IPv4 address from
// IP_TOS alone, and that of any other from IPV6_TCLASS alone.
func (m *controlMessage) putTOS(to *unix.RawSockaddrInet6, tos uint8) {
	level, kind := int32(unix.SOL_IP), int32(unix.IP_TOS)
	if to.Family == unix.AF_INET6 && !mapped(&to.Addr) {
		level, kind = unix.SOL_IPV6, unix.IPV6_TCLASS
	}
	*(*int32)(m.put(level, kind, 4)) = int32(tos)
}

// mapped tells whether an IPv6 address stands for an IPv4 address (RFC 4291 §2.5.5.2).
func mapped(a *[16]byte) bool { return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff} }

// attach returns one more control message of entry i of the batch, which is set.
func (b *batch) attach(i int) *controlMessage {
	h, c := &b.headers[i].hdr, &b.controls[i]
	used := int(h.Controllen)
	h.Control = (*byte)(unsafe.Pointer(c))
	h.SetControllen(used + controlSpace)
	return &c[used/controlSpace]
}

// setSegment makes entry i of the batch a run of datagrams.
func (b *batch) setSegment(i, segment int) {
	*(*uint16)(b.attach(i).put(unix.SOL_UDP, unix.UDP_SEGMENT, 2)) = uint16(segment)
}

// setTOS gives the datagrams of entry i a TOS.
func (b *batch) setTOS(i int, tos uint8) { b.attach(i).putTOS(&b.names[i], tos) }

// wantControl makes room for what the kernel tells of entry i.
func (b *batch) wantControl(i int) {
	h := &b.headers[i].hdr
	h.Control = (*byte)(unsafe.Pointer(&b.controls[i]))
	h.SetControllen(len(b.controls[i]) * controlSpace)
}

// told returns what the kernel has told of entry i: the size of the datagrams, 0 if it is one, and their TOS.
func (b *batch) told(i int) (segment int, tos uint8) {
	c := &b.controls[i]
	n := int(b.headers[i].hdr.Controllen) / controlSpace
	for k := range c[:min(n, len(c))] {
		m := &c[k]
		switch h := &m.header; {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO:
			segment = int(max(0, *(*int32)(unsafe.Pointer(&m.data))))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_TOS:
			tos = m.data[0]
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_TCLASS:
			tos = uint8(*(*int32)(unsafe.Pointer(&m.data)))
		}
	}
	return segment, tos
}

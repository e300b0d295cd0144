// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A buffer is netlink messages in the making.
type buffer []byte

// begin begins a message of nfnetlink, which end ends.
func (b *buffer) begin(kind, flags uint16, family byte, resource uint16) (at int) {
	at = len(*b)
	*b = binary.NativeEndian.AppendUint32(*b, 0)
	*b = binary.NativeEndian.AppendUint16(*b, kind)
	*b = binary.NativeEndian.AppendUint16(*b, unix.NLM_F_REQUEST|flags)
	*b = append(*b, make([]byte, 8)...) // sequence number and port
	*b = append(*b, family, unix.NFNETLINK_V0)
	*b = binary.BigEndian.AppendUint16(*b, resource)
	return at
}

func (b *buffer) end(at int) { binary.NativeEndian.PutUint32((*b)[at:], uint32(len(*b)-at)) }

// nest begins an attribute that holds others, which close ends.
func (b *buffer) nest(kind uint16) (at int) {
	at = len(*b)
	*b = binary.NativeEndian.AppendUint16(*b, 0)
	*b = binary.NativeEndian.AppendUint16(*b, kind|unix.NLA_F_NESTED)
	return at
}

func (b *buffer) close(at int) { binary.NativeEndian.PutUint16((*b)[at:], uint16(len(*b)-at)) }

func (b *buffer) attr(kind uint16, v []byte) {
	*b = binary.NativeEndian.AppendUint16(*b, uint16(unix.SizeofNlAttr+len(v)))
	*b = binary.NativeEndian.AppendUint16(*b, kind)
	*b = append(*b, v...)
	b.pad(len(v))
}

func (b *buffer) text(kind uint16, s string) {
	*b = binary.NativeEndian.AppendUint16(*b, uint16(unix.SizeofNlAttr+len(s)+1))
	*b = binary.NativeEndian.AppendUint16(*b, kind)
	*b = append(append(*b, s...), 0)
	b.pad(len(s) + 1)
}

func (b *buffer) word(kind uint16, v uint32) {
	*b = binary.NativeEndian.AppendUint16(*b, unix.SizeofNlAttr+4)
	*b = binary.NativeEndian.AppendUint16(*b, kind)
	*b = binary.BigEndian.AppendUint32(*b, v)
}

func (b *buffer) pad(n int) { *b = append(*b, make([]byte, align(n)-n)...) }

// align rounds up to where the next attribute or message begins.
func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

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

// messages calls do for each netlink message in b, without its header, until it says false; false then, or if one does not fit.
func messages(b []byte, do func(h header, body []byte) bool) bool {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return false
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false
		}
		h := header{
			kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), port: binary.NativeEndian.Uint32(b[12:]),
		}
		if !do(h, b[unix.SizeofNlMsghdr:size]) {
			return false
		}
		b = b[min(len(b), align(size)):]
	}
	return true
}

// A header is that of a netlink message.
type header struct {
	kind, flags uint16
	seq, port   uint32
}

// stringOf reads a string that ends with a zero.
func stringOf(v []byte) string { return unix.ByteSliceToString(v) }

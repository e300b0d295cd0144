// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// A Fragmenter cuts an IPv4 packet into fragments (RFC 791 §3.2), in place: the header of each is written over the end of the
// one before. The zero Fragmenter has no fragments; Init prepares it for a packet, as often as wanted.
type Fragmenter struct {
	b         []byte
	headerLen int
	size      int // payload of each fragment but the last
	at        int // offset of the next payload in b
	first     uint16
	header    [60]byte // of the fragments after the first
}

// Init takes the packet b that p was parsed from, without padding and with its checksums complete, for a path of mtu bytes. The Fragmenter
// owns b until the last fragment has been consumed, and changes it. It reports false, and there are no fragments, if the
// packet must not be fragmented, which goes for all of IPv6, if the path has no room for its header and 8 bytes, or if the
// packet is a fragment beyond the end of what a packet can hold.
//
// A packet that is a fragment itself becomes fragments of the same whole.
func (f *Fragmenter) Init(b []byte, p *Packet, mtu int) bool {
	f.b = nil
	if p.DF || p.Len != len(b) || b[0]>>4 != 4 {
		return false
	}
	header := int(b[0]&0xf) * 4
	f.size = (mtu - header) &^ 7
	if f.size < 8 || p.FragmentOffset+len(b) > maxFrame {
		return false
	}
	if len(b) <= mtu {
		f.size = len(b) - header
	}
	f.b, f.headerLen, f.at = b, header, header
	f.first = binary.BigEndian.Uint16(b[6:])
	copy(f.header[:], b[:header])
	withoutOptions(f.header[ipv4HeaderLen:header])
	return true
}

// Next returns the next fragment and true; or nil and false when there is none left. It lies within the packet and is the caller's until
// the next call.
func (f *Fragmenter) Next() (fragment []byte, ok bool) {
	if f.b == nil {
		return nil, false
	}
	end := min(f.at+f.size, len(f.b))
	fragment = f.b[f.at-f.headerLen : end : end]
	if f.at > f.headerLen {
		copy(fragment, f.header[:f.headerLen])
	}
	flags := f.first + uint16((f.at-f.headerLen)/8)
	last := end == len(f.b)
	if !last {
		flags |= moreFragments
	}
	binary.BigEndian.PutUint16(fragment[2:], uint16(len(fragment)))
	binary.BigEndian.PutUint16(fragment[6:], flags)
	checksumIPv4(fragment[:f.headerLen])
	f.at = end
	if last {
		f.b = nil
	}
	return fragment, true
}

const (
	moreFragments = 0x2000 // of the IPv4 flags and fragment offset

	ip4OptEnd    = 0
	ip4OptNop    = 1
	ip4OptCopied = 0x80
)

// withoutOptions replaces the options that stand in a first fragment only, those without the copied flag (RFC 791 §3.1), by as much of
// nothing. Of malformed ones all that follows goes.
func withoutOptions(o []byte) {
	for len(o) > 0 {
		n := 1
		switch {
		case o[0] == ip4OptEnd:
			return
		case o[0] == ip4OptNop:
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			n = len(o)
			clear(o) // ends the list
		default:
			n = int(o[1])
			if o[0]&ip4OptCopied == 0 {
				for i := range o[:n] {
					o[i] = ip4OptNop
				}
			}
		}
		o = o[n:]
	}
}

// SPDX-License-Identifier: Apache-2.0

package pathmtu

// IPv6 wants every link to carry packets of 1280 bytes, and a link that cannot has to cut and join them below IP (RFC 8200 §5).
// Where a path is too narrow for that once the packets are sealed, they cross it in pieces. IP would fragment the datagrams as well,
// but routers do not for IPv6, and many networks drop fragments.

const (
	// MinIPv6 is the least MTU of a link that carries IPv6 (RFC 8200 §5), and the largest packet that Split takes apart.
	MinIPv6 = 1280
	// MaxPieces is how many pieces a packet has at most.
	MaxPieces = 4

	maxPieced  = MinIPv6
	assemblies = 8 // packets that an Assembler has in hand at once
	// fairShare is how many of these a sender can have before it overwrites its own instead of those of others.
	fairShare = 2
)

// Split writes the next piece of packet b, which has at most MinIPv6 bytes, to dst: at most size bytes, header included, which must be room
// enough for MaxPieces to hold all of b. m says where to go on; it begins as {ID: …} with an ID that is not used for another packet, and
// Split moves it on. It returns the length written; 0 means that there is no more.
func Split(dst, b []byte, size int, m *Message) int {
	at := int(m.Offset)
	if at >= len(b) || m.Index >= MaxPieces || size <= HeaderLen {
		return 0
	}
	m.Kind, m.Size = Piece, uint16(len(b))
	m.Put(dst)
	n := copy(dst[HeaderLen:size], b[at:])
	m.Offset += uint16(n)
	m.Index++
	return HeaderLen + n
}

// PieceSize returns what to give Split for packets of at most MinIPv6 bytes over a path of mtu bytes, and whether pieces can do it at all.
func PieceSize(mtu int) (size int, ok bool) {
	size = mtu &^ 15 // sessions pad to this
	return size, (size-HeaderLen)*MaxPieces >= MinIPv6
}

// Assembler puts packets together from their pieces, which may come in any order. What does not become complete is overwritten by what comes
// later, from the same sender if that has several in hand; nothing waits for it. K is who has sent them. The zero Assembler is ready for use.
type Assembler[K comparable] struct {
	slots [assemblies]assembly[K]
	began uint64 // packets
}

type assembly[K comparable] struct {
	from  K
	id    uint64
	size  int
	seen  [MaxPieces]bool
	got   int // bytes
	used  bool
	began uint64 // which packet it is, counted
	buf   [maxPieced]byte
}

// Add takes the piece b, header included, of which m is the header as parsed. It returns the packet once that is complete, valid until the
// next call, and nil before.
func (a *Assembler[K]) Add(from K, m Message, b []byte) []byte {
	s := a.find(from, m)
	n := copy(s.buf[m.Offset:m.Size], b[HeaderLen:])
	if s.seen[m.Index] {
		return nil // once more
	}
	s.seen[m.Index] = true
	if s.got += n; s.got < s.size {
		return nil
	}
	s.used = false
	if s.got > s.size {
		return nil // they overlap: nobody sends that
	}
	return s.buf[:s.size]
}

// find returns the slot of the packet that the piece is of.
func (a *Assembler[K]) find(from K, m Message) *assembly[K] {
	for i := range a.slots {
		if s := &a.slots[i]; s.used && s.id == m.ID && s.from == from && s.size == int(m.Size) {
			return s
		}
	}
	s := a.victim(from)
	a.began++
	s.from, s.id, s.size, s.seen, s.got, s.used, s.began = from, m.ID, int(m.Size), [MaxPieces]bool{}, 0, true, a.began
	clear(s.buf[:s.size]) // of pieces that leave gaps nobody learns what was here before
	return s
}

// victim returns the slot to be used next: a free one, or else the oldest one of the sender if that has its share, or else the oldest one of
// whoever has most.
func (a *Assembler[K]) victim(from K) (v *assembly[K]) {
	most := 0
	for i := range a.slots {
		s := &a.slots[i]
		if !s.used {
			return s
		}
		n := a.count(s.from)
		if s.from == from && n >= fairShare {
			n = len(a.slots) + 1
		}
		if n > most || n == most && s.began < v.began {
			v, most = s, n
		}
	}
	return v
}

// count returns how many slots a sender has.
func (a *Assembler[K]) count(from K) (n int) {
	for i := range a.slots {
		if s := &a.slots[i]; s.used && s.from == from {
			n++
		}
	}
	return n
}

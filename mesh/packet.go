// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"sync"
)

// kind is the first byte of each packet of the mesh.
type kind byte

const (
	kindMember kind = 0 // memberlist's
	kindStream kind = 1 // QUIC's, up to udpstream.MaxDatagram bytes
	kindDigest kind = 2 // see digest.go

	kindChanges kind = 3 // see changes.go
)

// memberOverhead is what memberlist and this package put in front of a packet beyond what
// memberlist counts: its checksum and the kind.
const memberOverhead = 5 + 1

// packetBufs holds buffers for packets on their way out.
type packetBufs struct{ sync.Pool }

func (p *packetBufs) get() *[]byte {
	if b, ok := p.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, maxPacket+256)
	return &b
}

// sendPacket sends b to a node, by whichever path the router finds. It does not keep b.
func (m *Mesh) sendPacket(k kind, b []byte, to NodeID) error {
	return m.sendPacketTo(k, b, Addr{Node: to, Addr: m.packetAddr(to)})
}

// sendMember sends a packet of memberlist's to a member. Any other address is one that somebody has it answer to, and gets nothing.
func (m *Mesh) sendMember(b []byte, addr string) error {
	id, err := parseMemberAddr(addr)
	if err != nil {
		return err
	}
	return m.sendPacket(kindMember, b, id)
}

func (m *Mesh) sendPacketTo(k kind, b []byte, to Addr) error {
	buf := m.bufs.get()
	defer m.bufs.Put(buf)
	*buf = append(append((*buf)[:0], byte(k)), b...)
	return m.cfg.Packets.SendControl(*buf, to)
}

// packetAddr returns where the router may find the node if it does not know it: where its packets
// come from, else where it says that it is.
func (m *Mesh) packetAddr(id NodeID) netip.AddrPort {
	if at := m.ways.udp(id); at.IsValid() {
		return at
	}
	if addrs := m.addrsOf(id); len(addrs) > 0 {
		return addrs[0]
	}
	return netip.AddrPort{}
}

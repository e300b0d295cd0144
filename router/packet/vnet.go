// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// VNetHdrLen is the length in bytes of the offload header that stands before
// each packet of a TUN device opened with IFF_VNET_HDR.
const VNetHdrLen = 10

// Flags of VNetHdr (linux/virtio_net.h, virtio 1.2 §5.1.6).
const (
	// VNetNeedsCsum asks for a checksum over everything from CsumStart on, to
	// be stored at CsumStart+CsumOffset, where the sum of the pseudo header
	// stands already.
	VNetNeedsCsum = 1
	// VNetDataValid says that the checksum of the packet has been verified.
	VNetDataValid = 2
)

// Values of VNetHdr.GSOType (linux/virtio_net.h).
const (
	// VNetGSONone is an ordinary packet.
	VNetGSONone = 0
	// VNetGSOTCPv4 is a run of TCP segments over IPv4 (TSO4).
	VNetGSOTCPv4 = 1
	// VNetGSOTCPv6 is a run of TCP segments over IPv6 (TSO6).
	VNetGSOTCPv6 = 4
	// VNetGSOUDPL4 is a run of UDP datagrams (USO), over IPv4 or IPv6.
	VNetGSOUDPL4 = 5
	// VNetGSOECN is or-ed to the TCP types if the first segment bears CWR.
	VNetGSOECN = 0x80
)

// VNetHdr is the offload header of a TUN device: struct virtio_net_hdr, in the
// byte order of the host, as Linux has it unless told otherwise by
// TUNSETVNETLE. The zero VNetHdr says: one ordinary packet, checksum complete.
type VNetHdr struct {
	// Flags is an or of VNetNeedsCsum and VNetDataValid.
	Flags uint8
	// GSOType is one of VNetGSONone and its siblings.
	GSOType uint8
	// HdrLen is the length of all headers in bytes; Linux treats it, and so
	// does Splitter, as a hint that may be wrong.
	HdrLen uint16
	// GSOSize is the payload of each segment but the last, in bytes.
	GSOSize uint16
	// CsumStart is where the transport header begins.
	CsumStart uint16
	// CsumOffset is where the checksum lies within the transport header.
	CsumOffset uint16
}

// Decode reads the header from the first VNetHdrLen bytes of b. The only error
// is ErrShort; whether the values make sense is for Splitter.Init to judge,
// which sees the packet too.
func (h *VNetHdr) Decode(b []byte) error {
	if len(b) < VNetHdrLen {
		return ErrShort
	}
	h.Flags = b[0]
	h.GSOType = b[1]
	h.HdrLen = binary.NativeEndian.Uint16(b[2:])
	h.GSOSize = binary.NativeEndian.Uint16(b[4:])
	h.CsumStart = binary.NativeEndian.Uint16(b[6:])
	h.CsumOffset = binary.NativeEndian.Uint16(b[8:])
	return nil
}

// Encode writes the header to the first VNetHdrLen bytes of b, which must be
// at least that long.
func (h *VNetHdr) Encode(b []byte) {
	_ = b[VNetHdrLen-1]
	b[0] = h.Flags
	b[1] = h.GSOType
	binary.NativeEndian.PutUint16(b[2:], h.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], h.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], h.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], h.CsumOffset)
}

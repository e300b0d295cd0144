// SPDX-License-Identifier: Apache-2.0

package router

import (
	"go.uber.org/zap"

	"github.com/weftnet/weft/router/packet"
	"github.com/weftnet/weft/router/session"
)

// handshakeTOS is what initiations and responses bear: the DSCP AF41 (RFC 2597), as WireGuard's do. Sessions shall not end
// because their renewal is lost in a queue.
const handshakeTOS = 0x88

// messageTOS returns the TOS of a message that a session has made.
func messageTOS(msg []byte) uint8 {
	if kind := msg[0]; kind == session.TypeInitiation || kind == session.TypeResponse {
		return handshakeTOS
	}
	return 0
}

// decapsulate combines the congestion mark of the datagram at hand with that of the packet that the peer has sealed in it. It reports
// whether the packet may pass. Combinations that should not occur are logged once per peer (RFC 6040 §4.2).
//
// Of a run that the kernel has received as one (UDP_GRO) it tells one mark. Kernels whose GRO merges datagrams of different TOS
// blur marks so: some are lost, and some are on packets beside the one that was marked. Receiving datagrams one by one (underlay.Options.NoGRO) avoids that.
func (s *shard) decapsulate(from *peer, b []byte, p *packet.Packet) bool {
	outer, inner := s.rxTOS&packet.ECNMask, p.TOS&packet.ECNMask
	ok, odd := packet.Decapsulate(b, p, outer)
	if odd && !from.oddMarks.Load() && !from.oddMarks.Swap(true) {
		s.r.config.Log.Warn("congestion marks on the way from a peer make no sense; is there a device that changes the ECN field?",
			zap.String("peer", from.config.Load().Name), zap.Uint8("outer", outer), zap.Uint8("inner", inner))
	}
	return ok
}

// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// DropForwarded makes the host forward no UDP to a port any more, as somebody's firewall can.
func (h *Host) DropForwarded(port uint16) {
	h.lab.tb.Helper()
	h.filter("firewall", nftables.ChainHookForward, nftables.ChainPriorityFilter,
		append(protocol(unix.IPPROTO_UDP),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)}),
	)
}

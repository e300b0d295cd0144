// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"

	"github.com/weftnet/weft/router/fastpath"
)

const (
	magic   = 0x57667450 // "WftP"
	version = 1
	least   = 24 // bytes of a datagram without padding

	// Bytes of the IP and UDP headers.
	headers4 = 20 + 8
	headers6 = 40 + 8
	// maxSize is the largest IP packet.
	maxSize = 65535
)

var errForm = errors.New("no probe: dropped")

// message is what a probe says.
type message struct {
	kind fastpath.Kind
	node uint64
	echo uint64
}

// append appends a datagram of n bytes, or of the fewest that there can be, to b.
func (m message) append(b []byte, n int) []byte {
	b = binary.BigEndian.AppendUint32(b, magic)
	b = append(b, version, byte(m.kind), 0, 0)
	b = binary.BigEndian.AppendUint64(b, m.node)
	b = binary.BigEndian.AppendUint64(b, m.echo)
	return append(b, make([]byte, max(0, n-least))...)
}

// parse decodes a datagram. It is valid iff it has the magic number and the version, the kind is VXLAN or Direct, the node is not 0, and all that is not used
// is 0. It does not allocate.
func parse(b []byte) (message, error) {
	if len(b) < least || binary.BigEndian.Uint32(b) != magic || b[4] != version || b[6] != 0 || b[7] != 0 {
		return message{}, errForm
	}
	m := message{kind: fastpath.Kind(b[5]), node: binary.BigEndian.Uint64(b[8:]), echo: binary.BigEndian.Uint64(b[16:])}
	if m.kind != fastpath.VXLAN && m.kind != fastpath.Direct || m.node == 0 {
		return message{}, errForm
	}
	for _, x := range b[least:] {
		if x != 0 {
			return message{}, errForm
		}
	}
	return m, nil
}

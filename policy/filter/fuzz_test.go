// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"testing"
	"time"

	"github.com/weftnet/weft/policy"
)

// FuzzDecode feeds all decoders what the kernel, or a packet, might bring.
func FuzzDecode(f *testing.F) {
	v4 := []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 80}
	v6 := append([]byte{0x60, 0, 0, 0, 0, 16, 0, 64}, make([]byte, 32)...)
	v6 = append(v6, 17, 0, 1, 4, 0, 0, 0, 0, 0, 1, 0, 53)
	f.Add(v4)
	f.Add(v6)
	var e buffer
	at := e.nest(1)
	inner := e.nest(1)
	e.value(1, make([]byte, 16))
	e.close(inner)
	e.close(at)
	f.Add(append(make([]byte, 4), e...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, ok := decodePacket(b); ok && (c.Src.Is4() != c.Dst.Is4() || !c.Src.IsValid()) {
			t.Errorf("%+v", c)
		}
		_, _ = decodeLog(b)
		var x tracked
		if x.decode(b) && x.conn.Src.Is4() != x.conn.Dst.Is4() {
			t.Errorf("%+v", x.conn)
		}
		for _, k := range sets() {
			r := reader{kind: k, have: newContents(), into: map[string]element{}}
			_ = r.message(b)
			r.finish()
		}
		for _, k := range barredSets() {
			h := barred{left: map[bar]time.Duration{}}
			_ = h.elements(k.name, b)
			for x, left := range h.left {
				if x.set() != k.name || len(x.key()) != int(k.keyLen) || left > barredFor {
					t.Errorf("%s: %+v lasts %v", k.name, x, left)
				}
			}
		}
		_, _ = strange(b, 0)
		_ = ruleLine(b)
	})
}

func TestDecodePacket(t *testing.T) {
	t.Parallel()
	v6 := append([]byte{0x60, 0, 0, 0, 0, 16, 0, 64}, make([]byte, 32)...)
	v6[23], v6[39] = 1, 2
	for _, tt := range []struct {
		name string
		b    []byte
		want policy.Connection
		ok   bool
	}{
		{
			"TCP",
			[]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 80},
			policy.Connection{Src: pick(false, "10.0.0.1", ""), Dst: pick(false, "10.0.0.2", ""), Protocol: policy.TCP, Port: 80},
			true,
		},
		{"options cut off", []byte{0x46, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, policy.Connection{}, false},
		{
			"UDP behind hop-by-hop options", append(v6, 17, 0, 1, 4, 0, 0, 0, 0, 0, 1, 0, 53),
			policy.Connection{Src: pick(true, "", "::1"), Dst: pick(true, "", "::2"), Protocol: policy.UDP, Port: 53},
			true,
		},
		{"nothing", nil, policy.Connection{}, false},
	} {
		c, ok := decodePacket(tt.b)
		if ok != tt.ok || ok && c != tt.want {
			t.Errorf("%s: %+v %v, want %+v %v", tt.name, c, ok, tt.want, tt.ok)
		}
	}
}

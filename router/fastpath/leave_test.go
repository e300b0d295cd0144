// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"crypto/rand"
	"net/netip"
	"testing"
	"time"
)

// A path in use is left as soon as its way leads elsewhere, and no other path is.
func TestLeave(t *testing.T) {
	now := time.Unix(1000, 0)
	m := New(Config{Rand: rand.Reader})
	cs := []Candidate{candidateOf(2, VXLAN), candidateOf(3, VXLAN), candidateOf(4, VXLAN)}
	m.Set(cs, now)
	m.Adopt(2, VXLAN, now)
	m.Adopt(3, VXLAN, now)
	if left := m.Leave(now); len(left) != 0 {
		t.Errorf("left %+v", left)
	}
	changed := candidateOf(2, VXLAN)
	changed.Ways[0].Remote = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.99"), changed.Ways[0].Remote.Port())
	m.Set([]Candidate{changed, cs[1], cs[2]}, now)
	left := m.Leave(now)
	if len(left) != 1 || left[0].ID != 2 || left[0].Kind != Switch || left[0].From != VXLAN || left[0].Way != UDP || left[0].Why == "" {
		t.Errorf("left %+v", left)
	}
	if m.Status(2).Path != UDP || m.Status(3).Path != VXLAN {
		t.Errorf("paths %v, %v", m.Status(2).Path, m.Status(3).Path)
	}
	if again := m.Leave(now); len(again) != 0 {
		t.Errorf("left again: %+v", again)
	}
}

// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls. It calls with its locks held or from its
// packet loop: nothing here blocks (but for taking in a whole exchange, which has
// a goroutine of its own), and nothing calls memberlist back.
type delegate struct{ m *Mesh }

var (
	_ memberlist.Delegate      = delegate{}
	_ memberlist.EventDelegate = delegate{}
	_ memberlist.AliveDelegate = delegate{}
)

// A member of memberlist's is one process of one node. So a restarted node is a
// new member, accepted at once wherever it comes up, while the old one is still
// being found out to be dead.
func memberName(id NodeID, boot uint64) string {
	var b [memberNameSize]byte
	hexInto(b[:16], uint64(id))
	b[16] = '-'
	hexInto(b[17:], boot)
	return string(b[:])
}

const (
	memberNameSize = 16 + 1 + 16
	hexDigits      = "0123456789abcdef"
)

func hexInto(b []byte, v uint64) {
	for i := range b {
		b[len(b)-1-i] = hexDigits[v&15]
		v >>= 4
	}
}

// parseMember reads what memberName wrote and nothing else. It is called for every membership message.
func parseMember(name string) (NodeID, uint64, error) {
	if len(name) == memberNameSize && name[16] == '-' {
		id, ok := fromHex(name[:16])
		boot, ok2 := fromHex(name[17:])
		if ok && ok2 && NodeID(id).Valid() && boot != 0 {
			return NodeID(id), boot, nil
		}
	}
	return 0, 0, fmt.Errorf("%q names no member", clip(name))
}

// fromHex reads lower-case hex digits.
func fromHex(s string) (v uint64, ok bool) {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return 0, false
		}
		v = v<<4 | uint64(c)
	}
	return v, true
}

// NodeMeta says to which universe this node belongs, and where it is.
func (d delegate) NodeMeta(int) []byte { return memberMeta(d.m.Universe().ID, d.m.addr) }

// NotifyMsg is not called for what comes by packets, see inspect.go, and nobody sends changes in streams of memberlist's.
func (d delegate) NotifyMsg([]byte) { d.m.dropped.Add(1) }

// GetBroadcasts returns nothing: changes have packets of their own.
func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState adds nothing to an exchange of memberlist's: states travel by syncs.
func (d delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState is of no interest, as nobody adds anything.
func (d delegate) MergeRemoteState([]byte, bool) {}

// NotifyAlive refuses members that are none.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	m := d.m
	id, boot, err := parseMember(n.Name)
	if err != nil {
		return err
	}
	if id == m.id {
		if boot != m.boot {
			return errors.New("an earlier life of this node")
		}
		return nil
	}
	ip, _ := netip.AddrFromSlice(n.Addr)
	at := netip.AddrPortFrom(ip, n.Port)
	u, _, ok := parseMeta(n.Meta)
	switch {
	case at != memberAddr(id) || !ok:
		return fmt.Errorf("node %v is said to be at the impossible address %v", id, at)
	case u != [16]byte{} && u != m.Universe().ID:
		return fmt.Errorf("node %v belongs to another mesh", id)
	}
	return m.admit(id, boot)
}

// NotifyJoin notes that a process is alive.
func (d delegate) NotifyJoin(n *memberlist.Node) {
	if id, boot, err := parseMember(n.Name); err == nil && id != d.m.id {
		_, a, _ := parseMeta(n.Meta)
		d.m.noteAlive(id, boot, a)
		d.m.tuneSuspicion()
	}
}

// NotifyLeave notes that a process is not.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	if id, boot, err := parseMember(n.Name); err == nil && id != d.m.id {
		d.m.noteDead(id, boot)
		d.m.tuneSuspicion()
	}
}

// NotifyUpdate is of no interest: what changes is in the records.
func (d delegate) NotifyUpdate(*memberlist.Node) {}

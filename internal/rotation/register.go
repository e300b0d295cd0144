// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftnet/weft/internal/token"
)

// Phase is how far a rotation is.
type Phase uint8

// The phases, in their order.
const (
	None Phase = iota // there never was a rotation
	Distributing
	Switched
	Revoked
)

// String returns the phase in one word.
func (p Phase) String() string {
	switch p {
	case None:
		return "none"
	case Distributing:
		return "distributing"
	case Switched:
		return "switched"
	case Revoked:
		return "revoked"
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// Member names a node by its id and public key, without telling them.
type Member [16]byte

// MemberOf returns the Member of a node.
func MemberOf(id uint64, public [32]byte) Member {
	h := sha256.New()
	h.Write([]byte("weft rotation member"))
	h.Write(binary.BigEndian.AppendUint64(nil, id))
	h.Write(public[:])
	return Member(h.Sum(nil)[:16])
}

// Register says which rotation the mesh is in, and how far. The zero value: none ever. Its slices must not be written to.
type Register struct {
	Generation uint64
	Key        token.ID // of the new token
	Phase      Phase
	Version    uint64    // of changes within a phase
	By         uint64    // node that wrote it
	Begun      time.Time // by the clock of the node that began, in milliseconds
	Changed    time.Time // when the phase began, likewise
	Members    []Member  // who is given the new token, ascending
	Without    []uint64  // nodes that the user left out, ascending
	MAC        [sha256.Size]byte
}

// MaxMembers is how many members, and how many nodes left out, a register carries at the most.
const MaxMembers = 8192

const (
	registerVersion = 1
	fixedSize       = 1 + 8 + 4 + 1 + 8 + 8 + 8 + 8 + 4 + 4
	maxRegister     = fixedSize + MaxMembers*(16+8) + sha256.Size
)

// What is wrong with what came from another node.
var (
	ErrMalformed = errors.New("a rotation's register is malformed")
	ErrForged    = errors.New("a rotation's register was not written by one who has its token")
)

func (r Register) body() []byte {
	b := make([]byte, 0, fixedSize+16*len(r.Members)+8*len(r.Without)+sha256.Size)
	b = append(b, registerVersion)
	b = binary.BigEndian.AppendUint64(b, r.Generation)
	b = binary.BigEndian.AppendUint32(b, uint32(r.Key))
	b = append(b, byte(r.Phase))
	b = binary.BigEndian.AppendUint64(b, r.Version)
	b = binary.BigEndian.AppendUint64(b, r.By)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Begun.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Changed.UnixMilli()))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Members)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Without)))
	for _, m := range r.Members {
		b = append(b, m[:]...)
	}
	for _, id := range r.Without {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	return b
}

// Encode returns the register as it travels and is kept; nil if there never was a rotation.
func (r Register) Encode() []byte {
	if r.Phase == None {
		return nil
	}
	return append(r.body(), r.MAC[:]...)
}

// Decode reads what Encode wrote. The error is ErrMalformed. It does not keep b.
func Decode(b []byte) (Register, error) {
	if len(b) == 0 {
		return Register{}, nil
	}
	if len(b) < fixedSize+sha256.Size || len(b) > maxRegister || b[0] != registerVersion {
		return Register{}, ErrMalformed
	}
	r := Register{
		Generation: binary.BigEndian.Uint64(b[1:]), Key: token.ID(binary.BigEndian.Uint32(b[9:])), Phase: Phase(b[13]),
		Version: binary.BigEndian.Uint64(b[14:]), By: binary.BigEndian.Uint64(b[22:]),
		Begun: milli(b[30:]), Changed: milli(b[38:]),
	}
	members, without := binary.BigEndian.Uint32(b[46:]), binary.BigEndian.Uint32(b[50:])
	rest := b[fixedSize:]
	if members > MaxMembers || without > MaxMembers || len(rest) != int(members)*16+int(without)*8+sha256.Size ||
		r.Phase == None || r.Phase > Revoked || r.Key == 0 || r.Generation == 0 {
		return Register{}, ErrMalformed
	}
	for ; members > 0; members-- {
		r.Members = append(r.Members, Member(rest))
		rest = rest[16:]
	}
	for ; without > 0; without-- {
		r.Without = append(r.Without, binary.BigEndian.Uint64(rest))
		rest = rest[8:]
	}
	copy(r.MAC[:], rest)
	if !ascending(r.Members, compareMembers) || !ascending(r.Without, cmp.Compare[uint64]) {
		return Register{}, ErrMalformed
	}
	return r, nil
}

func milli(b []byte) time.Time { return time.UnixMilli(int64(binary.BigEndian.Uint64(b))) }

func compareMembers(a, b Member) int { return bytes.Compare(a[:], b[:]) }

func ascending[T any](s []T, compare func(a, b T) int) bool {
	for i := 1; i < len(s); i++ {
		if compare(s[i-1], s[i]) >= 0 {
			return false
		}
	}
	return true
}

// Beats tells whether r counts where other is known, too.
func (r Register) Beats(other Register) bool {
	if c := cmp.Or(
		cmp.Compare(r.Generation, other.Generation), cmp.Compare(r.Key, other.Key), cmp.Compare(r.Phase, other.Phase),
		cmp.Compare(r.Version, other.Version),
	); c != 0 || r.Equal(other) {
		return c > 0
	}
	return bytes.Compare(r.Encode(), other.Encode()) > 0
}

// Equal tells whether two registers are the same.
func (r Register) Equal(o Register) bool {
	return r.Generation == o.Generation && r.Key == o.Key && r.Phase == o.Phase && r.Version == o.Version && r.By == o.By && r.MAC == o.MAC &&
		r.Begun.Equal(o.Begun) && r.Changed.Equal(o.Changed) && slices.Equal(r.Members, o.Members) && slices.Equal(r.Without, o.Without)
}

// Has tells whether a node is given the new token.
func (r Register) Has(id uint64, public [32]byte) bool {
	_, ok := slices.BinarySearchFunc(r.Members, MemberOf(id, public), compareMembers)
	return ok && !r.LeavesOut(id)
}

// LeavesOut tells whether the user left the node out.
func (r Register) LeavesOut(id uint64) bool {
	_, ok := slices.BinarySearch(r.Without, id)
	return ok
}

func (r Register) mac(k Key) [sha256.Size]byte {
	h := hmac.New(sha256.New, k.keys.Rotation[:])
	h.Write(r.body())
	return [sha256.Size]byte(h.Sum(nil))
}

// sign returns r with the MAC of one who has its token.
func (r Register) sign(k Key) Register {
	r.MAC = r.mac(k)
	return r
}

func (r Register) writtenWith(k Key) bool {
	want := r.mac(k)
	return k.ID == r.Key && hmac.Equal(want[:], r.MAC[:])
}

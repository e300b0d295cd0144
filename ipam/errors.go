// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/ipam/ring"
)

// ErrLeaving is returned for new addresses once Leave was called.
var ErrLeaving = errors.New("this node is leaving the mesh and hands out no more addresses; attach the workload on another node")

// OutsideError says that the address asked for is not one of the mesh's.
type OutsideError struct {
	Addr     netip.Addr
	Universe Universe
}

func (e *OutsideError) Error() string {
	return fmt.Sprintf("address %v lies outside the mesh's range %v; choose one inside it", e.Addr, e.Universe)
}

// ReservedError says that the address asked for is the first or the last of the range, which nobody gets.
type ReservedError struct {
	Addr     netip.Addr
	Universe Universe
}

func (e *ReservedError) Error() string {
	return fmt.Sprintf("address %v is the first or last of the mesh's range %v and is never handed out; choose another", e.Addr, e.Universe)
}

// InUseError says that another workload of this node has the address asked for.
type InUseError struct {
	Addr netip.Addr
	By   string
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("address %v is in use by workload %s on this node; detach it first or choose another", e.Addr, e.By)
}

// OtherAddressError says that the workload has an address already, which is not the one asked for.
type OtherAddressError struct {
	Owner     string
	Addr, Has netip.Addr
}

func (e *OtherAddressError) Error() string {
	return fmt.Sprintf("workload %s already has address %v, so it cannot get %v; detach it first", e.Owner, e.Has, e.Addr)
}

// ElsewhereReason is why a node does not give an address away.
type ElsewhereReason int

// The reasons.
const (
	ElsewhereInUse       ElsewhereReason = iota // in use or resting there
	ElsewhereUnreachable                        // the node does not answer
	ElsewhereNoMajority                         // this side of the mesh holds no majority, so nothing can be granted
)

// ElsewhereError says that the address asked for belongs to another node and was not to be had.
type ElsewhereError struct {
	Addr   netip.Addr
	Owner  ring.Owner
	Node   string // the owner's name
	Reason ElsewhereReason
}

func (e *ElsewhereError) Error() string {
	switch e.Reason {
	case ElsewhereUnreachable:
		return fmt.Sprintf("address %v belongs to node %s, which does not answer; try again when it does or choose another", e.Addr, e.Node)
	case ElsewhereNoMajority:
		return fmt.Sprintf("address %v belongs to node %s, and the nodes that can be reached hold no more than half of the range, so it cannot be moved here; attach it on %s or choose another", e.Addr, e.Node, e.Node)
	default:
		return fmt.Sprintf("address %v belongs to node %s and is in use or reserved there; attach it on %s or choose another", e.Addr, e.Node, e.Node)
	}
}

// Holder is one node's part in an ExhaustedError, in addresses that may be handed out.
type Holder struct {
	Owner     ring.Owner
	Name      string
	Usable    uint64
	InUse     uint64 // as far as the node said
	Resting   uint64 // released a moment ago, as far as the node said
	Reachable bool
}

// ExhaustedError says that no free address could be had anywhere, who holds how many, and what is in use.
type ExhaustedError struct {
	Universe Universe
	Usable   uint64     // addresses that may be handed out unasked in the whole universe
	Reserved uint64     // those that are handed out by name only
	Majority bool       // the nodes that can be reached hold a majority, so that free addresses of theirs could be moved
	Self     ring.Owner // the node that looked for an address
	Holders  []Holder
}

func (e *ExhaustedError) Error() string {
	if !e.Majority {
		return e.noMajority()
	}
	var inUse, resting, missing uint64
	var users, rest, absent []Holder
	for _, h := range e.Holders {
		if !h.Reachable {
			absent, missing = append(absent, h), missing+h.Usable
			continue
		}
		if h.InUse > 0 {
			users, inUse = append(users, h), inUse+h.InUse
		}
		if h.Resting > 0 {
			rest, resting = append(rest, h), resting+h.Resting
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "no address left in %v: %d of %d in use", e.Universe, inUse, e.Usable)
	if len(users) > 0 {
		fmt.Fprintf(&b, " (%s)", list(users, func(h Holder) uint64 { return h.InUse }))
	}
	if resting > 0 {
		fmt.Fprintf(&b, ", %d resting after their release (%s)", resting, list(rest, func(h Holder) uint64 { return h.Resting }))
	}
	if missing > 0 {
		fmt.Fprintf(&b, ", %d held by nodes that do not answer (%s)", missing, list(absent, func(h Holder) uint64 { return h.Usable }))
	}
	if e.Reserved > 0 {
		fmt.Fprintf(&b, ", %d in reserve, to be had by name only", e.Reserved)
	}
	b.WriteString("; detach workloads or start a mesh with a larger range")
	return b.String()
}

func (e *ExhaustedError) noMajority() string {
	own := Holder{}
	var absent []Holder
	for _, h := range e.Holders {
		switch {
		case h.Owner == e.Self:
			own = h
		case !h.Reachable:
			absent = append(absent, h)
		}
	}
	state := "no address left on this node"
	switch {
	case own.Usable == 0:
		state = "this node has no addresses yet"
	case own.Resting > 0:
		state += fmt.Sprintf(" (%d of %d in use, %d resting after their release)", own.InUse, own.Usable, own.Resting)
	default:
		state += fmt.Sprintf(" (%d of %d in use)", own.InUse, own.Usable)
	}
	return fmt.Sprintf("%s, and the nodes that can be reached hold no more than half of %v, so none can be granted; reconnect the others (%s) or detach workloads",
		state, e.Universe, list(absent, func(h Holder) uint64 { return h.Usable }))
}

// list writes "n1 4, n2 2": the eight greatest first.
func list(holders []Holder, number func(Holder) uint64) string {
	slices.SortFunc(holders, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(number(b), number(a)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Owner, b.Owner))
	})
	var parts []string
	for i, h := range holders {
		if i == 8 {
			parts = append(parts, fmt.Sprintf("%d more", len(holders)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s %d", h.Name, number(h)))
	}
	return strings.Join(parts, ", ")
}

// WaitError says what an address was waited for when the context ended. It wraps the context's error.
type WaitError struct {
	Owner  string // the workload's key
	Reason string
	Err    error
}

func (e *WaitError) Error() string {
	return fmt.Sprintf("no address for %s in time, %s (%v); try again", e.Owner, e.Reason, e.Err)
}

// Unwrap returns the context's error.
func (e *WaitError) Unwrap() error { return e.Err }

// AdoptedError says that another node has taken over the share that was seeded under a name.
type AdoptedError struct {
	By   ring.Owner
	Name string // of that node
}

func (e *AdoptedError) Error() string {
	return fmt.Sprintf("the seeded share of this node's name was taken over by node %s (%016x); give every node a name of its own, or join with --peer instead of --seed", e.Name, uint64(e.By))
}

// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// ForgetRequest says which nodes are gone for good.
type ForgetRequest struct {
	Dead  []ring.Owner // nodes, or seed names (NameOwner) that nobody has adopted
	Sure  bool         // although they answer, or somebody may: the caller knows better
	Force bool         // although no majority can be reached: two sides of a partition that do so give the same addresses out twice
}

// Retirement says that a node was declared gone, and who got its addresses. There is one at most of every node.
type Retirement struct {
	Dead   ring.Owner
	Heir   ring.Owner
	By     ring.Owner // who proposed it
	At     time.Time  // by the clock of By, to the second
	Forced bool       // without a majority
}

// Reclaim is a takeover that is not complete.
type Reclaim struct {
	Dead    ring.Owner
	Heir    ring.Owner // 0: not decided yet
	Since   time.Time  // since when it is known here
	Slots   uint64     // that have voted, or have told the heir what they know
	Size    uint64     // of the universe
	Left    uint64     // slots that the dead node still owns
	Missing []ring.Owner
	Text    string // one line for people, with names: what is done and what is missing
}

// RetiredError says that this node was declared gone.
type RetiredError struct {
	Retirement
	HeirName, ByName string
}

func (e *RetiredError) Error() string {
	return fmt.Sprintf("this node was declared gone by %s on %s and its addresses went to %s, so it stays out of the mesh; detach its workloads, stop it and run weft reset to start again as a new node",
		e.ByName, e.At.UTC().Format("2006-01-02 15:04:05 UTC"), e.HeirName)
}

// AliveError says that a node that is to be forgotten answers.
type AliveError struct {
	Owner ring.Owner
	Name  string
}

func (e *AliveError) Error() string {
	return fmt.Sprintf("node %s answers, so it is not gone; stop it or have it leave, or repeat with --yes-it-is-gone if another node answers in its place", e.Name)
}

// Forget has the addresses of nodes that are gone taken over, and returns nil when that is complete as far as is known
// here. Errors are AliveError, RetiredError, and a ForgetError when ctx ends, with which this node's part in it ends, too.
func (a *Allocator) Forget(ctx context.Context, r ForgetRequest) error { return nil }

// Retired returns why this node is not one of the mesh any more, if that is so. It then hands out nothing, and what is
// allocated here may be in use elsewhere.
func (a *Allocator) Retired() (*RetiredError, bool) { return nil, false }

// Retirements returns everybody who was declared gone, in the order of the decisions.
func (a *Allocator) Retirements() []Retirement { return nil }

// Reclaims returns the takeovers that are not complete.
func (a *Allocator) Reclaims() []Reclaim { return nil }

// Explain returns what is known of the history of an address, one line for each thing, oldest first. It is an
// OutsideError if the address is not one of the mesh's.
func (a *Allocator) Explain(addr netip.Addr) ([]string, error) { return nil, nil }

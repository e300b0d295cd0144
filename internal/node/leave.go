// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
)

// leavePatience bounds how long a leaving node waits for its peers to record
// that they got its addresses.
const leavePatience = 15 * time.Second

// errHalfLeft is what a leave that failed has come to.
var errHalfLeft = errors.New("the node stays, and hands out no address any more: leave again, or restart it to go on")

// Leave implements [api.Service]: it gives the node's addresses to its peers and
// then ends the daemon for good.
func (n *Node) Leave(ctx context.Context, r api.LeaveRequest, progress func(api.LeaveProgress)) (left api.LeaveResult, err error) {
	e, err := n.ready()
	if err != nil {
		return api.LeaveResult{}, err
	}
	given := false
	defer func() {
		if err != nil && given {
			n.setWarning("leave", "leaving the mesh did not succeed; "+errHalfLeft.Error())
			n.log.Warn("leaving the mesh did not succeed; " + errHalfLeft.Error())
		}
	}()
	if r.Drain {
		if r.Force {
			return api.LeaveResult{}, errors.New("--drain waits for the workloads and --force does not; choose one of them")
		}
		var lift func(given bool)
		if lift, err = n.drain(ctx, e, progress); err != nil {
			return api.LeaveResult{}, err
		}
		defer func() {
			if err != nil {
				lift(given)
			}
		}()
	}
	if ids := e.workloads.ids(); len(ids) > 0 && !r.Force {
		return api.LeaveResult{}, fmt.Errorf("%d workloads are attached (%s); detach them, wait for that with --drain, or leave with --force: they are cut off then, and another node gets their addresses",
			len(ids), strings.Join(head(ids, 5), ", "))
	}
	if names := e.clients.names(); len(names) > 0 && !r.Force {
		return api.LeaveResult{}, fmt.Errorf("%d WireGuard clients join by this node (%s); remove them (weft wg remove), or leave with --force: they are cut off then, and another node gets their addresses",
			len(names), strings.Join(head(names, 5), ", "))
	}
	progress(api.LeaveProgress{Text: "giving the addresses to the other nodes", Leaving: true})
	given = true
	res, err := n.giveAway(ctx, e)
	if err != nil && !r.Force {
		return api.LeaveResult{}, fmt.Errorf("%w; %w", err, errHalfLeft)
	}
	if err != nil {
		res.Note = err.Error()
	}
	when, err := json.Marshal(time.Now())
	if err == nil {
		err = n.store.Update(func(tx *store.Tx) error { return tx.Put(store.Meta, keyLeft, when) })
	}
	if err != nil {
		return api.LeaveResult{}, fmt.Errorf("the addresses were given away, but that this node left could not be saved: %w", err)
	}
	n.log.Info("this node leaves the mesh for good", zap.Int("grants", len(res.Granted)), zap.Int("kept", len(res.Kept)))
	n.mu.Lock()
	n.leaving = true
	n.mu.Unlock()
	if e.shared != nil {
		e.shared.look() // its workloads are nobody's any more
	}
	n.quit(errStopped)
	return res, nil
}

// giveAway grants the node's addresses to its peers: all but the host's own
// first, and that one, on which the workloads' way out depends, when it is sure
// that the others take them.
func (n *Node) giveAway(ctx context.Context, e *engines) (api.LeaveResult, error) {
	if countNodes(e.members()).Total == 1 {
		return api.LeaveResult{Note: "this node was the last of its mesh: there was nobody to give addresses to"}, nil
	}
	granted := map[ring.Owner]uint64{}
	first, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	report, err := e.alloc.Leave(first)
	add(granted, report.Granted)
	if err == nil {
		// The others take them. What becomes of the host's own addresses does not
		// matter any more: they are given away, or named.
		if rerr := e.alloc.Release(hostOwner); rerr == nil {
			second, cancel := context.WithTimeout(ctx, leavePatience)
			defer cancel()
			report, rerr = e.alloc.Leave(second)
			add(granted, report.Granted)
			if rerr != nil {
				n.log.Warn("the host's own addresses were not given away", zap.Error(rerr))
			}
		}
	}
	var res api.LeaveResult
	name := n.nameOf(e.mesh)
	for _, o := range slices.Sorted(maps.Keys(granted)) {
		res.Granted = append(res.Granted, api.Grant{To: name(o), Addresses: granted[o]})
	}
	for _, l := range report.Held {
		res.Kept = append(res.Kept, fmt.Sprintf("%s of %s", join(addresses(l)), l.Owner))
	}
	return res, err
}

func add(sum map[ring.Owner]uint64, shares []ipam.Share) {
	for _, s := range shares {
		sum[s.Owner] += s.Slots
	}
}

func (ws *workloads) ids() []string {
	var ids []string
	for _, w := range ws.list() {
		ids = append(ids, w.ID)
	}
	return ids
}

func head(s []string, most int) []string {
	if len(s) > most {
		return append(s[:most:most], fmt.Sprintf("and %d more", len(s)-most))
	}
	return s
}

func join[T fmt.Stringer](s []T) string {
	var out []string
	for _, v := range s {
		out = append(out, v.String())
	}
	return strings.Join(out, " ")
}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/events"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
)

// The history of a node gets its events here, but for what the state of the others tells (watch.go).

// keepHistory notes the start of the node and has its events written down; the result ends that when all are.
func (n *Node) keepHistory(ctx context.Context) (end func()) {
	cause := "it was stopped before"
	switch {
	case n.state.first:
		cause = "this is the first launch with this data directory"
	case n.history.last == events.Start:
		cause = "it ended without a word before: it was killed, it crashed, or the host went down"
	case n.history.last == "":
		cause = ""
	}
	n.noteSelf(events.Start, fmt.Sprintf("weft %s starts on %s", n.cfg.Version, n.cfg.Name), cause)
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var done sync.WaitGroup
	done.Go(func() { n.history.log.Run(ctx) })
	return func() {
		stop()
		done.Wait()
	}
}

// noteEnd notes that the node ends, and why.
func (n *Node) noteEnd(ctx, failed context.Context, err error) {
	cause := "it was told to by a signal"
	switch why := context.Cause(ctx); {
	case n.isLeaving():
		n.noteSelf(events.Leave, n.cfg.Name+" leaves the mesh for good", "it was told to by weft leave")
		return
	case failed.Err() != nil:
		cause = context.Cause(failed).Error()
	case errors.Is(why, errStopped):
		cause = "it was told to by weft stop"
	case why != nil && !errors.Is(why, context.Canceled):
		cause = why.Error()
	case why == nil && err != nil:
		cause = err.Error()
	}
	n.noteSelf(events.Stop, n.cfg.Name+" stops", cause)
}

func (n *Node) noteSelf(kind events.Kind, text, cause string) {
	n.history.log.Add(events.Event{Kind: kind, Node: n.cfg.Name, NodeID: n.state.identity.ID.String(), Text: text, Cause: cause})
}

// noteAddresses makes events of the allocator's news.
func (n *Node) noteAddresses(e *engines) func(ipam.News) {
	return func(news ipam.News) {
		name := n.nameOf(e.mesh)
		ev := events.Event{Node: n.cfg.Name, NodeID: n.state.identity.ID.String()}
		if news.Node != 0 {
			ev.Node, ev.NodeID = name(news.Node), mesh.NodeID(news.Node).String()
		}
		switch news.Kind {
		case ipam.Granted:
			ev.Kind, ev.Text = events.Grant, fmt.Sprintf("%s got %d addresses from this node", ev.Node, news.Slots)
			ev.Cause = "it asked for them"
			if e.alloc.Usage().Leaving {
				ev.Cause = "this node leaves the mesh"
			}
		case ipam.Received:
			ev.Kind, ev.Text = events.Grant, fmt.Sprintf("this node got %d addresses from %s", news.Slots, ev.Node)
		case ipam.TookOver:
			ev.Kind, ev.Text = events.Takeover, fmt.Sprintf("this node took over %d addresses", news.Slots)
			ev.Cause = "they were those of " + heritageOf(e.alloc.Retirements(), ring.Owner(n.state.identity.ID), name)
		case ipam.WasRetired:
			ev = n.obituary(ev, news, name)
		default:
			return
		}
		n.history.log.Add(ev)
	}
}

// heritageOf names the nodes whose addresses the heir has got, the last ones first.
func heritageOf(log []ipam.Retirement, heir ring.Owner, name func(ring.Owner) string) string {
	var dead []string
	for i := len(log) - 1; i >= 0 && (log[i].Heir == heir || len(dead) == 0); i-- {
		dead = append(dead, name(log[i].Dead))
	}
	if len(dead) == 0 {
		return "a node that is gone"
	}
	return strings.Join(head(dead, 5), ", ") + ", declared gone"
}

func (n *Node) obituary(ev events.Event, news ipam.News, name func(ring.Owner) string) events.Event {
	r := news.Retirement
	ev.Kind = events.Retire
	ev.Text = fmt.Sprintf("%s was declared gone; %s gets its addresses", ev.Node, name(r.Heir))
	if r.Dead == ring.Owner(n.state.identity.ID) {
		ev.Text = fmt.Sprintf("this node was declared gone; %s gets its addresses", name(r.Heir))
	}
	ev.Cause = fmt.Sprintf("%s proposed it, and the owners of more than half of the range agreed", name(r.By))
	if r.Forced {
		ev.Cause = fmt.Sprintf("%s decided it by force, without a majority", name(r.By))
	}
	return ev
}

// noteRefused makes an event of somebody who was turned away.
func (n *Node) noteRefused(r mesh.Refusal) {
	who := "a host at " + r.From
	ev := events.Event{Kind: events.Refuse}
	if r.ID != 0 {
		ev.Node, ev.NodeID = r.Name, r.ID.String()
		who = fmt.Sprintf("%s at %s", r.Name, r.From)
	}
	ev.Text = who + " was turned away"
	switch {
	case errors.Is(r.Err, mesh.ErrWrongToken):
		ev.Cause = "it has another token; if it belongs here, give it the one that weft token prints"
	case errors.Is(r.Err, mesh.ErrClone):
		ev.Cause = "another living node has its id: one's data directory is a copy of the other's; run weft reset on one of them"
	case errors.Is(r.Err, mesh.ErrVersion):
		ev.Cause = "it speaks another version of the protocol; run the same release of weft on both"
	case errors.Is(r.Err, mesh.ErrNoUniverse):
		ev.Cause = "both it and this node wait to join a mesh"
	default:
		ev.Cause = "it is of another mesh; run weft reset there to let it join"
	}
	n.history.log.Add(ev)
}

// Events implements [api.Service].
func (n *Node) Events(ctx context.Context, r api.EventsRequest, tell func(api.EventsProgress)) (api.EventsResult, error) {
	seq := n.history.log.Last()
	for _, e := range n.history.log.Recent(r.Last) {
		if ctx.Err() != nil {
			break
		}
		tell(api.EventsProgress{Event: shownEvent(e)})
		seq = e.Seq
	}
	if !r.Follow {
		return api.EventsResult{}, nil
	}
	n.history.log.Follow(ctx, seq, func(e events.Event, skipped uint64) {
		tell(api.EventsProgress{Skipped: skipped, Event: shownEvent(e)})
	})
	return api.EventsResult{}, errEventsEnd
}

// errEventsEnd ends what somebody follows who has not hung up.
var errEventsEnd = errors.New("this node ends, and with it what there is to follow; start it and ask again")

func shownEvent(e events.Event) *api.Event {
	return &api.Event{Seq: e.Seq, Time: e.Time, Kind: string(e.Kind), Node: e.Node, NodeID: e.NodeID, Text: e.Text, Cause: e.Cause}
}

// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"time"
)

// EventsRequest asks what has happened.
type EventsRequest struct {
	Last   int  `json:"last"`   // at most so many of the last events; negative: all that are kept
	Follow bool `json:"follow"` // and those that come, until the request ends
}

// EventsProgress is one event, and how many before it were skipped because they came faster than they were read.
type EventsProgress struct {
	Event   *Event `json:"event"`
	Skipped uint64 `json:"skipped,omitempty"`
}

// EventsResult comes when there are no more.
type EventsResult struct{}

// Event is something that has happened to the node or its mesh, a line of `weft events`.
type Event struct {
	Seq    uint64    `json:"seq"`  // grows by one
	Time   time.Time `json:"time"` // by the node's clock
	Kind   string    `json:"kind"` // start, join, stop, leave, fail, path, grant, takeover, retire, rotate, refuse
	Node   string    `json:"node"` // name of whom it is about; empty: several, or nobody
	NodeID string    `json:"node_id"`
	Text   string    `json:"text"`
	Cause  string    `json:"cause"` // empty: not known, or none
}

// Events asks what has happened; tell is called for each event. With r.Follow it goes on until ctx ends, or the daemon.
func (c *Client) Events(ctx context.Context, r EventsRequest, tell func(EventsProgress)) error {
	_, err := follow[EventsProgress, EventsResult](ctx, c, "events", r, tell)
	return err
}

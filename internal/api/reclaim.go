// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
	"net/netip"
	"time"
)

// Reclaim is the part of [Service] that gets addresses back: those of nodes that are gone, and those of namespaces.
type Reclaim interface {
	// Forget declares a node gone and returns when its addresses have been taken over. It tells the progress as Bench does;
	// when ctx ends this node does no more for it.
	Forget(ctx context.Context, r ForgetRequest, progress func(ForgetProgress)) (ForgetResult, error)
	Explain(r ExplainRequest) (Explanation, error)
	GC(r GCRequest) (GCResult, error)
}

// ForgetRequest asks to declare a node gone.
type ForgetRequest struct {
	Node  string `json:"node"`  // its name, its NodeID, or a name of --seed
	Sure  bool   `json:"sure"`  // although it answers
	Force bool   `json:"force"` // although no majority can be reached
}

// ForgetProgress tells how far a takeover is.
type ForgetProgress struct {
	Text string `json:"text"` // one line
}

// ForgetResult tells what became of the addresses. There is more than one entry where a name stands for several.
type ForgetResult struct {
	Forgotten []Forgotten `json:"forgotten"`
}

// Forgotten is a node that was declared gone, with the number of addresses that it had left when that was asked for. If there
// were any, Heir is who has them now, or most of them; else who was named to get them.
type Forgotten struct {
	Retirement
	Addresses uint64 `json:"addresses"`
}

// Retirement says that a node was declared gone. Names are those that are known here.
type Retirement struct {
	Node   string    `json:"node"`
	NodeID string    `json:"node_id"`
	Heir   string    `json:"heir"` // who was named to get its addresses
	HeirID string    `json:"heir_id"`
	By     string    `json:"by"` // who proposed it
	ByID   string    `json:"by_id"`
	At     time.Time `json:"at"`     // by that node's clock
	Forced bool      `json:"forced"` // without a majority
}

// Takeover is one that is not complete.
type Takeover struct {
	Node    string    `json:"node"` // who is gone
	NodeID  string    `json:"node_id"`
	Heir    string    `json:"heir,omitempty"` // empty: not decided yet
	HeirID  string    `json:"heir_id,omitempty"`
	Since   time.Time `json:"since"`
	Voted   *float64  `json:"voted_percent,omitempty"` // of the range, or that has told the heir what it knows; nil: that is not known here
	Left    uint64    `json:"left"`                    // addresses that the dead node still owns
	Missing []string  `json:"missing,omitempty"`
	Text    string    `json:"text"` // one line: what is done, and what is missing
}

// ExplainRequest asks for the history of an address.
type ExplainRequest struct {
	Address netip.Addr `json:"address"`
}

// Explanation is what is known of an address, oldest first.
type Explanation struct {
	Address netip.Addr `json:"address"`
	Lines   []string   `json:"lines"`
}

// GCRequest asks to release the addresses of namespaces that are gone.
type GCRequest struct {
	DryRun bool `json:"dry_run"` // only list them
}

// GCResult lists these addresses.
type GCResult struct {
	Garbage []Garbage `json:"garbage"`
}

// Garbage is an allocation that nobody can use any more.
type Garbage struct {
	Owner     string       `json:"owner"`
	Addresses []netip.Addr `json:"addresses"`
	Netns     string       `json:"netns,omitempty"` // path under which the namespace was attached
	Reason    string       `json:"reason"`
}

// Forget declares a node gone; progress is called as it comes.
func (c *Client) Forget(ctx context.Context, r ForgetRequest, progress func(ForgetProgress)) (ForgetResult, error) {
	return follow[ForgetProgress, ForgetResult](ctx, c, "forget", r, progress)
}

// Explain asks for the history of an address.
func (c *Client) Explain(ctx context.Context, r ExplainRequest) (e Explanation, err error) {
	return e, c.call(ctx, http.MethodPost, "explain", r, &e)
}

// GC releases, or lists, the addresses of namespaces that are gone.
func (c *Client) GC(ctx context.Context, r GCRequest) (g GCResult, err error) {
	return g, c.call(ctx, http.MethodPost, "gc", r, &g)
}

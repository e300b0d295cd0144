// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"time"
)

// Rotating is the part of [Service] that changes the mesh's token while it runs.
type Rotating interface {
	// Rotate gives the mesh a new token, or goes on with the rotation that is under way, and returns when all nodes that answer
	// send under it. It tells the progress as Bench does. When ctx ends this node does no more for it; what was begun stands.
	Rotate(ctx context.Context, r RotateRequest, progress func(RotationProgress)) (RotationResult, error)
	// RevokeOld ends the time in which the tokens of before are accepted, too, and returns when no node that answers accepts them.
	RevokeOld(ctx context.Context, r RevokeRequest, progress func(RotationProgress)) (RotationResult, error)
}

// Rotation tells how far a rotation is. The names are in alphabetical order.
type Rotation struct {
	Phase     string    `json:"phase"`     // "distributing": the new token goes to all nodes, "switched": all send under it, "revoked": the old one is being forgotten
	Confirmed int       `json:"confirmed"` // nodes that have done what the phase asks of them
	Total     int       `json:"total"`     // nodes that take part
	Begun     time.Time `json:"begun"`
	Waiting   []string  `json:"waiting"`   // who answers, and has not done it yet
	Away      []string  `json:"away"`      // who does not answer, and does not have the new token
	Newcomers []string  `json:"newcomers"` // who came with the old token after the rotation began, and is not given the new one
	LeftOut   []string  `json:"left_out"`  // who is not given it by the user's wish
}

// RotateRequest asks for a new token. Nodes are given by name or NodeID.
type RotateRequest struct {
	Without []string `json:"without,omitempty"` // nodes that are not to get it
	With    []string `json:"with,omitempty"`    // newcomers that are
}

// RevokeRequest asks to end the time of the old tokens.
type RevokeRequest struct{}

// RotationProgress tells how far a rotation is.
type RotationProgress struct {
	Text string `json:"text"` // one line
	Rotation
}

// RotationResult tells how a rotation stands when the command has done its part.
type RotationResult struct {
	Rotation
}

// Rotate gives the mesh a new token; progress is called as it comes.
func (c *Client) Rotate(ctx context.Context, r RotateRequest, progress func(RotationProgress)) (RotationResult, error) {
	return follow[RotationProgress, RotationResult](ctx, c, "rotate", r, progress)
}

// RevokeOld ends the time of the old tokens; progress is called as it comes.
func (c *Client) RevokeOld(ctx context.Context, progress func(RotationProgress)) (RotationResult, error) {
	return follow[RotationProgress, RotationResult](ctx, c, "revoke-old", RevokeRequest{}, progress)
}

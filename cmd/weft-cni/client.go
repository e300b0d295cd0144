// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
)

// client is the daemon, by its control socket.
type client struct{ api *api.Client }

func connect(runDir string) cni.Daemon { return client{api: api.NewClient(runDir)} }

func (c client) Attach(ctx context.Context, r cni.Request) (cni.Attachment, error) {
	a, err := c.api.CNIAttach(ctx, r)
	return a, translate(err)
}

func (c client) Check(ctx context.Context, r cni.CheckRequest) error {
	return translate(c.api.CNICheck(ctx, r))
}

func (c client) Detach(ctx context.Context, r cni.Release) error {
	return translate(c.api.CNIDetach(ctx, r))
}

// translate makes errors of the client those that cni knows.
func translate(err error) error {
	var refused *api.Refusal
	switch {
	case err == nil:
		return nil
	case errors.Is(err, api.ErrNotRunning):
		return fmt.Errorf("%w: %w", cni.ErrNotRunning, err)
	case errors.As(err, &refused):
		return &cni.Error{Code: cni.CodeFailed, Msg: refused.Text}
	}
	return err
}

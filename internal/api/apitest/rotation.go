// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"
	"errors"

	"github.com/weftnet/weft/internal/api"
)

// Rotate implements api.Service: it tells Progress, and then gives Rotated. What was asked for is in Asked.
func (d *Daemon) Rotate(ctx context.Context, r api.RotateRequest, progress func(api.RotationProgress)) (api.RotationResult, error) {
	d.mu.Lock()
	d.Asked = r
	d.mu.Unlock()
	return d.rotate(ctx, progress)
}

// RevokeOld implements api.Service, as Rotate does.
func (d *Daemon) RevokeOld(ctx context.Context, _ api.RevokeRequest, progress func(api.RotationProgress)) (api.RotationResult, error) {
	return d.rotate(ctx, progress)
}

func (d *Daemon) rotate(ctx context.Context, progress func(api.RotationProgress)) (api.RotationResult, error) {
	if err := d.refused(); err != nil {
		return api.RotationResult{}, err
	}
	for _, text := range d.Progress {
		progress(api.RotationProgress{Text: text})
	}
	if d.Endless != nil {
		<-ctx.Done()
		close(d.Endless)
		return api.RotationResult{}, context.Cause(ctx)
	}
	if d.Broken != "" {
		return api.RotationResult{}, errors.New(d.Broken)
	}
	return d.Rotated, nil
}

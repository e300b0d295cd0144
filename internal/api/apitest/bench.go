// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"
	"fmt"

	"github.com/weftnet/weft/internal/api"
)

// Bench implements api.Service: it tells the progress of Phases, and then gives
// Measured, for a node of Nodes. If Endless is not nil it goes on until the
// request ends, and then closes that.
func (d *Daemon) Bench(ctx context.Context, r api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error) {
	if err := d.refused(); err != nil {
		return api.BenchResult{}, err
	}
	known := false
	for _, p := range d.Nodes {
		known = known || p.Name == r.Node
	}
	if !known {
		return api.BenchResult{}, fmt.Errorf("no node is named %s", r.Node)
	}
	for i, p := range d.Phases {
		p.Step, p.Steps = i+1, len(d.Phases)
		progress(p)
	}
	if d.Endless != nil {
		<-ctx.Done()
		close(d.Endless)
		return api.BenchResult{}, context.Cause(ctx)
	}
	if d.Broken != "" {
		return api.BenchResult{}, fmt.Errorf("%s", d.Broken)
	}
	return d.Measured, nil
}

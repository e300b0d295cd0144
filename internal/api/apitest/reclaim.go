// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"
	"fmt"

	"github.com/weftnet/weft/internal/api"
)

// Forget implements api.Service: it tells Progress, and then gives Forgotten, for a node that Nodes or that lists. If
// Endless is not nil it goes on until the request ends, and then closes that.
func (d *Daemon) Forget(ctx context.Context, r api.ForgetRequest, progress func(api.ForgetProgress)) (api.ForgetResult, error) {
	if err := d.refused(); err != nil {
		return api.ForgetResult{}, err
	}
	for _, p := range d.Nodes {
		if p.Name == r.Node && p.State == "alive" && !r.Sure {
			return api.ForgetResult{}, fmt.Errorf("node %s answers", r.Node)
		}
	}
	for _, text := range d.Progress {
		progress(api.ForgetProgress{Text: text})
	}
	if d.Endless != nil {
		<-ctx.Done()
		close(d.Endless)
		return api.ForgetResult{}, context.Cause(ctx)
	}
	if d.Broken != "" {
		return api.ForgetResult{}, fmt.Errorf("%s", d.Broken)
	}
	return d.Forgotten, nil
}

// Explain implements api.Service.
func (d *Daemon) Explain(r api.ExplainRequest) (api.Explanation, error) {
	return api.Explanation{Address: r.Address, Lines: d.History}, d.refused()
}

// GC implements api.Service: what is not only listed is gone afterwards.
func (d *Daemon) GC(r api.GCRequest) (api.GCResult, error) {
	if err := d.refused(); err != nil {
		return api.GCResult{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	res := api.GCResult{Garbage: append([]api.Garbage{}, d.Garbage...)}
	if !r.DryRun {
		d.Garbage = nil
	}
	return res, nil
}

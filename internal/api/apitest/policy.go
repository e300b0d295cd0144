// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"
	"fmt"

	"github.com/weftnet/weft/internal/api"
)

// PolicyApply implements api.Service: it says Changes.
func (d *Daemon) PolicyApply(_ context.Context, r api.PolicyApplyRequest) (api.PolicyChanges, error) {
	if err := d.refused(); err != nil {
		return api.PolicyChanges{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Applied = r
	c := d.Changes
	c.DryRun = r.DryRun
	return c, nil
}

// PolicyDelete implements api.Service: what is named is deleted.
func (d *Daemon) PolicyDelete(_ context.Context, r api.PolicyDeleteRequest) (api.PolicyChanges, error) {
	if err := d.refused(); err != nil {
		return api.PolicyChanges{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Deleted = r
	c := api.PolicyChanges{DryRun: r.DryRun}
	for _, o := range r.Objects {
		c.Objects = append(c.Objects, api.PolicyChange{PolicyObject: o, Done: "deleted"})
	}
	return c, nil
}

// PolicyList implements api.Service.
func (d *Daemon) PolicyList(context.Context) (api.PolicyList, error) { return d.Listed, d.refused() }

// PolicyShow implements api.Service, for workloads by their whole names.
func (d *Daemon) PolicyShow(r api.PolicyShowRequest) (api.PolicyShown, error) {
	if err := d.refused(); err != nil {
		return api.PolicyShown{}, err
	}
	var s api.PolicyShown
	for _, one := range d.Summaries {
		if r.Workload == "" || r.Workload == one.Endpoint {
			s.Workloads = append(s.Workloads, one)
		}
	}
	if r.Workload != "" && len(s.Workloads) == 0 {
		return s, fmt.Errorf("%s: no endpoint of that name", r.Workload)
	}
	return s, nil
}

// PolicyWhy implements api.Service.
func (d *Daemon) PolicyWhy(api.PolicyWhyRequest) (api.PolicyWhy, error) {
	w := api.PolicyWhy{Allowed: true, Connections: d.Explained}
	for _, x := range d.Explained {
		w.Allowed = w.Allowed && x.Allowed
	}
	return w, d.refused()
}

// PolicyLog implements api.Service as Events does, with Denials.
func (d *Daemon) PolicyLog(ctx context.Context, r api.PolicyLogRequest, tell func(api.PolicyLogProgress)) (api.PolicyLogResult, error) {
	if err := d.refused(); err != nil {
		return api.PolicyLogResult{}, err
	}
	list := d.Denials
	if r.Last >= 0 && r.Last < len(list) {
		list = list[len(list)-r.Last:]
	}
	for _, p := range list {
		tell(p)
	}
	if r.Follow && d.Endless != nil {
		<-ctx.Done()
		close(d.Endless)
		return api.PolicyLogResult{}, context.Cause(ctx)
	}
	return api.PolicyLogResult{}, nil
}

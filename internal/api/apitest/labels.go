// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"
	"fmt"
	"maps"

	"github.com/weftnet/weft/internal/api"
)

// Label implements api.Service, for workloads by their IDs.
func (d *Daemon) Label(_ context.Context, r api.LabelRequest) (api.Workload, error) {
	if err := d.refused(); err != nil {
		return api.Workload{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w, ok := d.attached[r.Workload]
	if !ok {
		return api.Workload{}, fmt.Errorf("no workload of this host is called %q", r.Workload)
	}
	p := api.Identity{}
	if w.Policy != nil {
		p = *w.Policy
	}
	labels := maps.Clone(p.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for _, k := range r.Remove {
		delete(labels, k)
	}
	maps.Copy(labels, r.Set)
	p.Labels = labels
	w.Policy = &p
	d.attached[r.Workload] = w
	return w, nil
}

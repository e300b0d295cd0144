// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"
	"fmt"
	"slices"

	"github.com/weftnet/weft/internal/api"
)

// Connect implements api.Service: the hosts are in State.Targets from then on, as they were given.
func (d *Daemon) Connect(_ context.Context, r api.ConnectRequest) (api.ConnectResult, error) {
	if err := d.refused(); err != nil {
		return api.ConnectResult{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	res := api.ConnectResult{Targets: []api.Target{}}
	for _, h := range r.Hosts {
		i := slices.IndexFunc(d.State.Targets, func(t api.Target) bool { return t.Host == h })
		if i < 0 {
			i = len(d.State.Targets)
			d.State.Targets = append(d.State.Targets, api.Target{Host: h, State: "joined"})
		}
		res.Targets = append(res.Targets, d.State.Targets[i])
	}
	return res, nil
}

// Disconnect implements api.Service: the hosts are not in State.Targets any more.
func (d *Daemon) Disconnect(r api.DisconnectRequest) (api.DisconnectResult, error) {
	if err := d.refused(); err != nil {
		return api.DisconnectResult{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	res := api.DisconnectResult{Disconnected: []api.Disconnected{}}
	for _, h := range r.Hosts {
		i := slices.IndexFunc(d.State.Targets, func(t api.Target) bool { return t.Host == h })
		if i < 0 {
			return api.DisconnectResult{}, fmt.Errorf("this node was not told to connect to %s", h)
		}
		out := api.Disconnected{Host: h}
		if d.State.Targets[i].State == "joined" {
			out.Notes = []string{"n9, which was found there, stays a member of the mesh"}
		}
		d.State.Targets = slices.Delete(d.State.Targets, i, i+1)
		res.Disconnected = append(res.Disconnected, out)
	}
	return res, nil
}

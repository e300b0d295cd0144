// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"

	"github.com/weftnet/weft/internal/api"
)

// Events implements api.Service: it tells the last of Happened, and, if it is to follow and Endless is not nil, goes on until
// the request ends, and then closes that.
func (d *Daemon) Events(ctx context.Context, r api.EventsRequest, tell func(api.EventsProgress)) (api.EventsResult, error) {
	if err := d.refused(); err != nil {
		return api.EventsResult{}, err
	}
	list := d.Happened
	if r.Last >= 0 && r.Last < len(list) {
		list = list[len(list)-r.Last:]
	}
	for _, e := range list {
		tell(e)
	}
	if r.Follow && d.Endless != nil {
		<-ctx.Done()
		close(d.Endless)
		return api.EventsResult{}, context.Cause(ctx)
	}
	return api.EventsResult{}, nil
}

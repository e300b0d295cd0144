// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func TestForget(t *testing.T) {
	d := &apitest.Daemon{
		Nodes: []api.Peer{{Name: "n2", State: "alive"}}, Progress: []string{"40%", "60%"},
		Forgotten: api.ForgetResult{Forgotten: []api.Forgotten{{Retirement: api.Retirement{Node: "n3", Heir: "n2", At: time.Unix(1e9, 0).UTC()}, Addresses: 7}}},
	}
	c := api.NewClient(apitest.Serve(t, d))
	var told []string
	tell := func(p api.ForgetProgress) { told = append(told, p.Text) }
	res, err := c.Forget(t.Context(), api.ForgetRequest{Node: "n3"}, tell)
	if err != nil || !reflect.DeepEqual(res, d.Forgotten) || !slices.Equal(told, d.Progress) {
		t.Errorf("%+v, %v, told %q", res, err, told)
	}
	var refusal *api.Refusal
	if _, err := c.Forget(t.Context(), api.ForgetRequest{Node: "n2"}, nil); !errors.As(err, &refusal) || refusal.Text != "node n2 answers" {
		t.Errorf("refused before it began: %v", err)
	}
	d.Broken = "the disk is full"
	if _, err := c.Forget(t.Context(), api.ForgetRequest{Node: "n3"}, nil); !errors.As(err, &refusal) || refusal.Text != d.Broken {
		t.Errorf("broken off in the middle: %v", err)
	}
}

// A client that hangs up ends the waiting, of a drain as well.
func TestWaitingEndsWithItsClient(t *testing.T) {
	for name, f := range map[string]func(context.Context, *api.Client, func()) error{
		"forget": func(ctx context.Context, c *api.Client, told func()) error {
			_, err := c.Forget(ctx, api.ForgetRequest{Node: "n3"}, func(api.ForgetProgress) { told() })
			return err
		},
		"leave": func(ctx context.Context, c *api.Client, told func()) error {
			_, err := c.Leave(ctx, api.LeaveRequest{Drain: true}, func(api.LeaveProgress) { told() })
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := &apitest.Daemon{Progress: []string{"waiting"}, Endless: make(chan struct{})}
			c := api.NewClient(apitest.Serve(t, d))
			ctx, cancel := context.WithCancel(t.Context())
			if err := f(ctx, c, cancel); !errors.Is(err, context.Canceled) {
				t.Errorf("the client says %v", err)
			}
			select {
			case <-d.Endless:
			case <-time.After(5 * time.Second):
				t.Error("the daemon goes on waiting")
			}
		})
	}
}

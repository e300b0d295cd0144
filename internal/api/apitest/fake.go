// SPDX-License-Identifier: Apache-2.0

// Package apitest has a daemon that exists only as answers: tests of the
// control API and of the command line talk to it over a real socket. Tests
// import it, and nothing else.
package apitest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/policy"
)

// Daemon answers with what its fields say, and keeps attached workloads as a
// daemon does. It is safe for concurrent use once it serves.
type Daemon struct {
	State api.Status
	Nodes []api.Peer
	Space api.IPAM
	Key   api.Token
	Left  api.LeaveResult
	// What Bench says, and whether it goes on or breaks off then.
	Phases   []api.BenchProgress
	Measured api.BenchResult
	Endless  chan struct{} // Forget and Leave heed these two as well
	Broken   string
	// What Forget, and Leave while it waits, tell of their progress, and what else Forget, Explain and GC say.
	Progress  []string
	Forgotten api.ForgetResult
	History   []string
	Garbage   []api.Garbage
	// What Events tells; if Endless is not nil it goes on until the request ends then, and closes that.
	Happened []api.EventsProgress
	// Rotated is what Rotate and RevokeOld say, and Asked what Rotate was asked for last.
	Rotated api.RotationResult
	Asked   api.RotateRequest
	// Listed, Summaries, Explained and Denials are what the reading requests about policies say, Applied what was applied last, and Changes what that did.
	Listed    api.PolicyList
	Summaries []policy.Summary
	Explained []policy.Explanation
	Denials   []api.PolicyLogProgress
	Applied   api.PolicyApplyRequest
	Deleted   api.PolicyDeleteRequest
	Changes   api.PolicyChanges
	// Kept is what Stop says of traffic that it keeps, and Reached by which path Path says that a node is reached.
	Kept    []string
	Reached string
	// Refuse makes every request that can fail do so with this text.
	Refuse string
	// Unavailable is what CNICheck says when it is asked whether an attachment could be made; nil: it could.
	Unavailable *cni.Error
	// Adding is called when a WireGuard client was added, before that is answered; nil: nothing is.
	Adding func(ctx context.Context)

	mu       sync.Mutex
	attached map[string]api.Workload
	clients  map[string]api.WGClient
	given    map[cni.Key]given
	stop     context.CancelFunc
}

// Serve serves d in a run directory of its own, until it is stopped or the test
// ends, and returns the directory.
func Serve(t testing.TB, d *Daemon) (runDir string) {
	t.Helper()
	runDir = t.TempDir()
	srv, err := api.Listen(t.Context(), runDir, d, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.attached, d.clients, d.stop = map[string]api.Workload{}, map[string]api.WGClient{}, cancel
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return runDir
}

func (d *Daemon) refused() error {
	if d.Refuse != "" {
		return errors.New(d.Refuse)
	}
	return nil
}

// Status implements api.Service.
func (d *Daemon) Status() api.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.State
	s.Targets = slices.Clone(s.Targets)
	return s
}

// Peers implements api.Service.
func (d *Daemon) Peers() []api.Peer { return d.Nodes }

// IPAM implements api.Service.
func (d *Daemon) IPAM() api.IPAM { return d.Space }

// Token implements api.Service.
func (d *Daemon) Token() (api.Token, error) { return d.Key, d.refused() }

// Workloads implements api.Service.
func (d *Daemon) Workloads() []api.Workload {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := []api.Workload{}
	for _, w := range d.attached {
		list = append(list, w)
	}
	return list
}

// Attach implements api.Service.
func (d *Daemon) Attach(_ context.Context, r api.AttachRequest) (api.Workload, error) {
	if err := d.refused(); err != nil {
		return api.Workload{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	id := r.Netns + "/" + r.IfName
	w, ok := d.attached[id]
	if !ok {
		w = api.Workload{
			ID: id, Netns: r.Netns, IfName: r.IfName, HostIf: "weft0123456789", MTU: 1420, State: "up",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 32, 0, byte(len(d.attached) + 2)})}, Attached: time.Now(),
		}
		if r.IP.IsValid() {
			w.Addresses = []netip.Addr{r.IP}
		}
		w.Policy = r.Policy
		d.attached[id] = w
	}
	return w, nil
}

// Detach implements api.Service.
func (d *Daemon) Detach(_ context.Context, r api.DetachRequest) (api.DetachResult, error) {
	if err := d.refused(); err != nil {
		return api.DetachResult{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	id := r.Netns + "/" + r.IfName
	res := api.DetachResult{Released: d.attached[id].Addresses}
	delete(d.attached, id)
	return res, nil
}

// Leave implements api.Service: when it is to drain it tells Progress, and goes on waiting if Endless is not nil, which it
// closes when the request ends.
func (d *Daemon) Leave(ctx context.Context, r api.LeaveRequest, progress func(api.LeaveProgress)) (api.LeaveResult, error) {
	if err := d.refused(); err != nil {
		return api.LeaveResult{}, err
	}
	if r.Drain {
		for _, text := range d.Progress {
			progress(api.LeaveProgress{Text: text})
		}
		if d.Endless != nil {
			<-ctx.Done()
			close(d.Endless)
			return api.LeaveResult{}, context.Cause(ctx)
		}
	}
	progress(api.LeaveProgress{Text: "giving the addresses away", Leaving: true})
	d.stop()
	return d.Left, nil
}

// Stop implements api.Service.
func (d *Daemon) Stop(r api.StopRequest) api.StopResult {
	d.stop()
	if r.KeepTraffic {
		return api.StopResult{Kept: d.Kept}
	}
	return api.StopResult{}
}

// Path implements api.Service: the node is reached as it is asked for.
func (d *Daemon) Path(_ context.Context, r api.PathRequest) (api.PathResult, error) {
	if err := d.refused(); err != nil {
		return api.PathResult{}, err
	}
	return api.PathResult{Node: r.Node, KernelPath: api.KernelPath{Want: r.Path, Path: d.Reached, Why: "proven"}}, nil
}

// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryCallReachesTheDaemon(t *testing.T) {
	d := &apitest.Daemon{
		State: api.Status{Name: "n1", Phase: api.Ready, Ready: true, Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.1")}},
		Nodes: []api.Peer{{Name: "n2"}},
		Space: api.IPAM{Universe: "10.32.0.0/12", Holdings: []api.Holding{}, Allocations: []api.Allocation{}},
		Key:   api.Token{Token: "secret", Command: "weft launch"},
		Left:  api.LeaveResult{Granted: []api.Grant{{To: "n2", Addresses: 5}}},

		History: []string{"once", "then"},
		Garbage: []api.Garbage{{Owner: "x", Reason: "gone"}},
	}
	c := api.NewClient(apitest.Serve(t, d))
	ctx := t.Context()
	if s, err := c.Status(ctx); err != nil || !reflect.DeepEqual(s, d.State) {
		t.Errorf("status: %+v, %v", s, err)
	}
	if p, err := c.Peers(ctx); err != nil || !reflect.DeepEqual(p, d.Nodes) {
		t.Errorf("peers: %+v, %v", p, err)
	}
	if i, err := c.IPAM(ctx); err != nil || !reflect.DeepEqual(i, d.Space) {
		t.Errorf("ipam: %+v, %v", i, err)
	}
	if k, err := c.Token(ctx); err != nil || k != d.Key {
		t.Errorf("token: %v", err)
	}
	r := api.AttachRequest{Netns: "/run/netns/a", IfName: "eth0", IP: netip.MustParseAddr("10.32.9.9")}
	w, err := c.Attach(ctx, r)
	if err != nil || len(w.Addresses) != 1 || w.Addresses[0] != r.IP {
		t.Errorf("attach: %+v, %v", w, err)
	}
	if list, err := c.Workloads(ctx); err != nil || len(list) != 1 || list[0].ID != w.ID {
		t.Errorf("workloads: %+v, %v", list, err)
	}
	for _, want := range [][]netip.Addr{w.Addresses, nil} {
		res, err := c.Detach(ctx, api.DetachRequest{Netns: r.Netns, IfName: r.IfName})
		if err != nil || !reflect.DeepEqual(res.Released, want) {
			t.Errorf("detach: %+v, %v", res, err)
		}
	}
	added, err := c.WGAdd(ctx, api.WGAddRequest{Name: "phone", PublicKey: "key", Endpoint: "host:1"})
	if err != nil || added.Name != "phone" || added.Endpoint != "host:1" || added.PresharedKey != apitest.PresharedKey {
		t.Errorf("wg add: %+v, %v", added, err)
	}
	if list, err := c.WGClients(ctx); err != nil || len(list) != 1 || list[0].Name != "phone" || list[0].PublicKey != "key" {
		t.Errorf("wg list: %+v, %v", list, err)
	}
	if res, err := c.WGRemove(ctx, api.WGRemoveRequest{Name: "phone"}); err != nil || !reflect.DeepEqual(res.Released, added.Addresses) {
		t.Errorf("wg remove: %+v, %v", res, err)
	}
	if e, err := c.Explain(ctx, api.ExplainRequest{Address: r.IP}); err != nil || e.Address != r.IP || !reflect.DeepEqual(e.Lines, d.History) {
		t.Errorf("explain: %+v, %v", e, err)
	}
	for _, dry := range []bool{true, false} {
		if g, err := c.GC(ctx, api.GCRequest{DryRun: dry}); err != nil || len(g.Garbage) != 1 || g.Garbage[0].Reason != "gone" {
			t.Errorf("gc: %+v, %v", g, err)
		}
	}
	if g, err := c.GC(ctx, api.GCRequest{}); err != nil || len(g.Garbage) != 0 {
		t.Errorf("gc again: %+v, %v", g, err)
	}
	if l, err := c.Leave(ctx, api.LeaveRequest{}, nil); err != nil || !reflect.DeepEqual(l, d.Left) {
		t.Errorf("leave: %+v, %v", l, err)
	}
}

func TestARefusalKeepsItsText(t *testing.T) {
	d := &apitest.Daemon{Refuse: "10.1.2.3 lies outside; choose another"}
	c := api.NewClient(apitest.Serve(t, d))
	if _, err := c.Attach(t.Context(), api.AttachRequest{}); err == nil || err.Error() != d.Refuse {
		t.Errorf("got %v", err)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	want := fmt.Sprintf("no weft daemon is running on this host (socket %s); start it with: weft launch, or name its --run-dir", filepath.Join(dir, api.SocketName))
	check := func() {
		t.Helper()
		_, err := api.NewClient(dir).Status(t.Context())
		if !errors.Is(err, api.ErrNotRunning) || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	check()
	// A socket whose daemon was killed.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, api.SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	check()
	srv, err := api.Listen(t.Context(), dir, &apitest.Daemon{}, zap.NewNop())
	if err != nil {
		t.Fatalf("a dead daemon's socket was not replaced: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := srv.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(srv.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestRunDirGoesWithTheSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, keep := range []bool{false, true} {
		if keep {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		srv, err := api.Listen(t.Context(), dir, &apitest.Daemon{}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		if err := srv.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); keep != (err == nil) {
			t.Errorf("the directory was there before: %t; afterwards: %v", keep, err)
		}
	}
}

func TestSecondListenIsRefused(t *testing.T) {
	dir := apitest.Serve(t, &apitest.Daemon{})
	_, err := api.Listen(t.Context(), dir, &apitest.Daemon{}, zap.NewNop())
	want := fmt.Sprintf("another daemon answers on %s; stop it (weft stop --run-dir %s) or choose another --run-dir", filepath.Join(dir, api.SocketName), dir)
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestSocketIsRootsOnly(t *testing.T) {
	dir := apitest.Serve(t, &apitest.Daemon{})
	st, err := os.Stat(filepath.Join(dir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode().Perm())
	}
}

func TestRunDirTooLong(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if _, err := api.Listen(t.Context(), dir, &apitest.Daemon{}, zap.NewNop()); err == nil || !strings.HasSuffix(err.Error(), "choose a shorter --run-dir") {
		t.Errorf("got %v", err)
	}
}

// Requests that no client of ours sends are answered, not served.
func TestNonsense(t *testing.T) {
	dir := apitest.Serve(t, &apitest.Daemon{})
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(dir, api.SocketName))
		},
	}}
	for name, c := range map[string]struct {
		method, path, body string
		want               int
	}{
		"unknown path":  {"GET", "/v1/secrets", "", http.StatusNotFound},
		"wrong method":  {"GET", "/v1/attach", "", http.StatusMethodNotAllowed},
		"no JSON":       {"POST", "/v1/attach", "attach!", http.StatusBadRequest},
		"unknown field": {"POST", "/v1/attach", `{"netns":"x","sudo":true}`, http.StatusBadRequest},
		"newer plugin":  {"POST", "/v1/cni/check", `{"network":"x","newer":{"as":1}}`, http.StatusOK},
		"no plugin":     {"POST", "/v1/cni/check", `{"network":3}`, http.StatusBadRequest},
		"huge":          {"POST", "/v1/attach", `{"netns":"` + strings.Repeat("x", 1<<20) + `"}`, http.StatusBadRequest},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://weft"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = res.Body.Close()
		if res.StatusCode != c.want {
			t.Errorf("%s: got %s, want %d", name, res.Status, c.want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/kube/kubetest"
	"github.com/weftnet/weft/internal/token"
)

const testNamespace = "kube-system"

// cluster returns a client of a server in memory, which its log knows as agent.
func clusterOf(t testing.TB, s *kubetest.Server, agent string) *Cluster {
	t.Helper()
	c, err := ConnectTo(s.Dial, agent)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func nodeObject(address string, more ...string) kubetest.Object {
	addresses := []any{kubetest.Object{"type": "InternalIP", "address": address}}
	for _, a := range more {
		addresses = append(addresses, kubetest.Object{"type": "ExternalIP", "address": a})
	}
	return kubetest.Object{"status": kubetest.Object{"addresses": addresses}}
}

// world is a cluster whose nodes have a disk each, and no packets: what is shown is who founds a mesh, and who joins which.
type world struct {
	t   *testing.T
	api *kubetest.Server

	mu    sync.Mutex
	nodes []*simulated
	was   map[string]string // every mesh that was ever up, and where first
}

// simulated is a node that may be killed at any time; what is on its disk stays.
type simulated struct {
	w    *world
	name string

	mu   sync.Mutex
	disk disk
	up   string // the mesh that it answers for; empty: none
	kill context.CancelFunc
	done chan struct{}
}

type disk struct {
	id, mesh string
	founding bool
	token    token.Token
	inRange  string
}

func newWorld(t *testing.T, nodes int) *world {
	w := &world{t: t, api: kubetest.New(), was: map[string]string{}}
	for i := range nodes {
		n := &simulated{w: w, name: fmt.Sprintf("n%d", i+1)}
		w.api.Put("nodes/"+n.name, nodeObject(fmt.Sprintf("192.0.2.%d", i+1)))
		w.nodes = append(w.nodes, n)
	}
	return w
}

func (w *world) close() {
	for _, n := range w.nodes {
		n.stop()
	}
	if err := w.api.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) config(name string) Config {
	return Config{
		Cluster: clusterOf(w.t, w.api, name), Node: name, Namespace: testNamespace, DefaultRange: "10.32.0.0/12",
		Encryption: "on", Rand: rand.Reader, Log: zap.NewNop(), Up: func(context.Context) error { return nil },
	}
}

// start lets a node live until it is stopped.
func (n *simulated) start() {
	ctx, cancel := context.WithCancel(context.Background())
	n.mu.Lock()
	n.kill, n.done = cancel, make(chan struct{})
	done := n.done
	n.mu.Unlock()
	go func() {
		defer close(done)
		if err := n.live(ctx); err != nil && ctx.Err() == nil {
			n.w.t.Errorf("%s ended: %v", n.name, err)
		}
	}()
}

// stop kills it.
func (n *simulated) stop() {
	n.mu.Lock()
	kill, done := n.kill, n.done
	n.up = ""
	n.mu.Unlock()
	if kill != nil {
		kill()
		<-done
	}
}

func (n *simulated) live(ctx context.Context) error {
	a := New(n.w.config(n.name))
	defer a.Close()
	for {
		err := n.launch(ctx, a)
		if !errors.Is(err, ErrAnew) || ctx.Err() != nil {
			return err
		}
	}
}

func (n *simulated) launch(ctx context.Context, a *Agent) error {
	n.mu.Lock()
	d := n.disk
	n.mu.Unlock()
	if d.id == "" {
		d.id = newID()
	}
	orders, err := a.Begin(ctx, Known{NodeID: d.id, MeshID: d.mesh, Founding: d.founding}, func(string) {})
	if err != nil {
		return err
	}
	if d.mesh == "" {
		d.token = orders.Token
		if len(orders.Peers) == 0 {
			d.mesh, d.founding, d.inRange = "mesh of "+d.id, true, orders.Range
			time.Sleep(time.Duration(len(n.name)) * 10 * time.Millisecond)
		} else if d.mesh, err = n.w.ask(ctx, orders); err != nil {
			return err
		}
	}
	if !n.write(ctx, d) {
		return ctx.Err()
	}
	if d.founding {
		err := a.Confirm(ctx, Founded{NodeID: d.id, MeshID: d.mesh, Range: d.inRange, Token: d.token}, func(string) {})
		if errors.Is(err, ErrAnew) {
			n.write(ctx, disk{})
		}
		if err != nil {
			return err
		}
		d.founding = false
		if !n.write(ctx, d) {
			return ctx.Err()
		}
	}
	n.mu.Lock()
	if ctx.Err() == nil {
		n.up = d.mesh
	}
	n.mu.Unlock()
	n.w.mu.Lock()
	if _, known := n.w.was[d.mesh]; !known {
		n.w.was[d.mesh] = n.name
	}
	n.w.mu.Unlock()
	<-ctx.Done()
	return nil
}

// write puts d on the disk, unless the node is dead by now.
func (n *simulated) write(ctx context.Context, d disk) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	n.disk = d
	return true
}

// ask returns the mesh of the first node among the peers that is up and has the token.
func (w *world) ask(ctx context.Context, o Orders) (string, error) {
	for {
		for i, n := range w.nodes {
			n.mu.Lock()
			up, t := n.up, n.disk.token
			n.mu.Unlock()
			if up != "" && t.Equal(o.Token) && slices.Contains(o.Peers, fmt.Sprintf("192.0.2.%d", i+1)) {
				return up, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// together waits until all nodes are up, and fails unless there is and was one mesh.
func (w *world) together(within time.Duration) {
	w.t.Helper()
	var missing []string
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		missing = missing[:0]
		for _, n := range w.nodes {
			n.mu.Lock()
			if n.up == "" {
				missing = append(missing, n.name)
			}
			n.mu.Unlock()
		}
		if len(missing) == 0 {
			break
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(missing) > 0 {
		w.t.Errorf("after %v not up: %s", within, strings.Join(missing, ", "))
	}
	if len(w.was) != 1 {
		w.t.Errorf("%d meshes were founded: %v", len(w.was), w.was)
	}
}

// founding reads the Secret.
func (w *world) founding() founding {
	w.t.Helper()
	var s secret
	if err := clusterOf(w.t, w.api, "test").secrets(testNamespace).get(context.Background(), SecretName, &s); err != nil {
		w.t.Fatal(err)
	}
	f, err := readFounding(&s)
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

func newID() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}
